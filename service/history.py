"""The last minutes, a point a second: whoever opens the page late sees what was before."""

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from freshrank.clock import Clock
from freshrank.metrics import Counts
from freshrank.progress import LoopView
from freshrank.settings import Settings
from service.follower import Follower
from service.learned import percentile
from service.replica import Replica
from service.signal import Signal

EVERY_S: Final = 1.0
# A quarter of an hour, at some 600 bytes a point: half a megabyte.
POINTS_MAX: Final = 900
# What becomes of actions; docs/semantics.md has the words.
OUTCOMES: Final = ("matched", "late", "unmatched", "duplicate", "dead_letter", "pending")


class History(Follower):
    """Notes how the loop is doing, once a second. Safe for threads.

    Args:
        settings: Tasks are read.
        replica: What is served.
        loop: Joiner and trainer of this process, or None.
        clock: Time; a point is named by it.
    """

    def __init__(
        self, settings: Settings, replica: Replica, loop: LoopView | None, clock: Clock
    ) -> None:
        super().__init__("history")
        self._tasks = [task.name for task in settings.tasks]
        self._replica = replica
        self._loop = loop
        self._clock = clock
        self._points: deque[tuple[int, bytes]] = deque(maxlen=POINTS_MAX)
        self._n_actions = self._n_beats = 0  # samples that a point has told of
        self._changed = Signal()

    @property
    def newest_ms(self) -> int:
        """Name of the last point; -1 before the first."""
        return self._points[-1][0] if self._points else -1

    def after(self, at_ms: int) -> list[tuple[int, bytes]]:
        """Points behind this one with their names, all if it names none of these; JSON each."""
        points = self._points.copy()
        if points and at_ms > points[-1][0]:  # of a process before this one, whose clock was ahead
            at_ms = -1
        return [point for point in points if point[0] > at_ms]

    async def wait(self, at_ms: int, *, timeout_s: float) -> None:
        """Return once there is a point behind this one, none will come, or time ran out."""
        await self._changed.wait_for(
            lambda: self.is_over or self.newest_ms > at_ms, timeout_s=timeout_s
        )

    def stop(self) -> None:
        """Let whoever waits for the next point go as well."""
        super().stop()
        self._changed.notify()

    @property
    def is_over(self) -> bool:
        """True once no more points will come."""
        return self._stop.is_set()

    def step(self, timeout_s: float) -> None:
        """Note one point, after a second."""
        if not self._stop.wait(EVERY_S):
            self.note()

    def note(self) -> dict[str, Any]:
        """Note one point of now; returns it."""
        at_ms = max(self._clock.now_ms(), self.newest_ms + 1)  # a clock set back names no two alike
        point = {"at_ms": at_ms} | self._point(at_ms)
        self._points.append((at_ms, msgspec.json.encode(point)))
        self._changed.notify()
        return point

    def _point(self, now_ms: int) -> dict[str, Any]:
        """What the page draws; null is what nobody knows here, or did not happen."""
        model, loop = self._replica.model, self._loop
        info = model.current.info if model else None
        gauges: Mapping[str, float] = loop.statistics() if loop else info.metrics if info else {}
        actions, self._n_actions = self._replica.action_freshness.since(self._n_actions)
        beats, self._n_beats = self._replica.beats.since(self._n_beats)
        totals = loop.accounting() if loop else None
        return {
            "auc": {
                task: gauges.get(f"{task}.auc", gauges.get(f"{task}.own_auc"))
                for task in self._tasks
                if f"{task}.auc" in gauges or f"{task}.own_auc" in gauges
            },
            "version": info.version if info else None,
            "epoch": info.epoch if info else None,
            "p50_seconds": percentile(actions, 50),
            "p99_seconds": percentile(actions, 99),
            "beat_seconds": max(beats, default=None),
            "age_seconds": max(now_ms - info.published_at_ms, 0) / 1_000 if info else None,
            "rows": {name: len(table) for name, table in model.tables.items()} if model else {},
            "lag": lag(loop),
            "actions": totals and {name: totals.get(name, 0) for name in OUTCOMES},
        }


def lag(loop: LoopView | None) -> dict[str, int] | None:
    """Records to be read by topic, over all partitions; None where others read them."""
    if loop is None:
        return None
    found: Counter[str] = Counter()
    for reading in loop.readings():
        if reading.name == "consumer_lag_records" and not isinstance(reading.value, Counts):
            found[reading.labels["topic"]] += int(reading.value)
    return dict(found)
