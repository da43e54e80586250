"""Feature state as its rules say it, from a list of everything that happened."""

from collections.abc import Hashable


class SlowState:
    """Remembers every event; reads look at all of them."""

    def __init__(self) -> None:
        self.times: dict[Hashable, list[int]] = {}
        self.did: dict[Hashable, set[tuple[int, int, str]]] = {}

    def add(self, key: Hashable, ts_ms: int) -> None:
        self.times.setdefault(key, []).append(ts_ms)

    def before(self, key: Hashable, ts_ms: int) -> list[int]:
        return sorted(one for one in self.times.get(key, ()) if one < ts_ms)

    def sum(self, key: Hashable, ts_ms: int, half_life_ms: float) -> float:
        ages = [ts_ms - one for one in self.before(key, ts_ms)]
        return float(sum(2.0 ** (-age / half_life_ms) for age in ages))

    def last_s(self, key: Hashable, ts_ms: int, within_ms: float) -> float | None:
        times = [one for one in self.before(key, ts_ms) if ts_ms - one <= within_ms]
        return (ts_ms - times[-1]) / 1_000 if times else None

    def first_s(self, key: Hashable, ts_ms: int, within_ms: float) -> float | None:
        """Since the first of a run of events without a pause longer than `within_ms`."""
        first = last = None
        for one in [*self.before(key, ts_ms), ts_ms]:
            if last is None or one - last > within_ms:
                first = one
            last = one
        return None if first is None or first == ts_ms else (ts_ms - first) / 1_000

    def act(self, key: Hashable, ts_ms: int, tie: int, item: str) -> None:
        self.did.setdefault(key, set()).add((ts_ms, tie, item))

    def recent(self, key: Hashable, ts_ms: int, n_kept: int) -> list[str]:
        """The last `n_kept` that happened, of which those before `ts_ms` are seen."""
        kept = sorted(self.did.get(key, ()))[-n_kept:]
        return [item for ts, _, item in sorted(kept, reverse=True) if ts < ts_ms]
