"""What the applied frames say of events: how far, when, and with which outcome.

Receipts rest on it. Memory is bounded: old entries leave, and what they said becomes unknown.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from freshrank.frames import FrameInfo, Outcome

OUTCOMES_MAX: Final = 100_000
# One entry per frame that moved a log: at a frame a second, almost three hours.
HISTORY_MAX: Final = 10_000
# Enough for a p99 that rests on 20 samples.
SAMPLES_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Reached:
    """When a record had its effect here; None where it was there from the start or long ago.

    Attributes:
        published_at_ms: When the frame that first held it was published; None as well when that
            was a delta that a base stood in for. Its outcome is known only where this is.
        applied_at_ms: When this process had applied it.
    """

    published_at_ms: int | None
    applied_at_ms: int | None


class SampleWindow:
    """The last samples of a duration. Safe for threads.

    Example:
        >>> window = SampleWindow()
        >>> window.add([1.0, 2.0, 3.0])
        >>> window.percentile(50)
        2.0
    """

    def __init__(self, n_max: int = SAMPLES_MAX) -> None:
        self._lock = threading.Lock()
        self._samples: deque[float] = deque(maxlen=n_max)
        self._n_added = 0

    def add(self, samples_s: Sequence[float]) -> None:
        """Record durations in seconds."""
        with self._lock:
            self._samples.extend(samples_s)
            self._n_added += len(samples_s)

    def since(self, n_seen: int) -> tuple[list[float], int]:
        """Samples behind the first `n_seen` there ever were, if kept, and how many there were."""
        with self._lock:
            n_new = min(self._n_added - n_seen, len(self._samples))
            return list(self._samples)[len(self._samples) - n_new :], self._n_added

    def percentile(self, q: float) -> float | None:
        """The q-th percentile, q in 0..100; None without samples."""
        with self._lock:
            samples = list(self._samples)
        return percentile(samples, q)

    def __len__(self) -> int:
        return len(self._samples)


def percentile(samples: Sequence[float], q: float) -> float | None:
    """The q-th percentile, q in 0..100; None without samples."""
    return float(np.percentile(samples, q)) if samples else None


class OffsetHistory:
    """When each offset of one log was reached. Not safe for threads by itself."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, Reached]] = []

    @property
    def offset(self) -> int:
        """The next offset; 0 when nothing was reached yet."""
        return self._entries[-1][0] if self._entries else 0

    def reach(self, offset: int, reached: Reached) -> None:
        """Every record before `offset` is in; a lower one than before takes records back."""
        entries = self._entries
        while entries and entries[-1][0] > offset:
            entries.pop()
        if self.offset < offset:
            entries.append((offset, reached))
        if len(entries) > HISTORY_MAX:
            del entries[: HISTORY_MAX // 10]
            entries[0] = (entries[0][0], Reached(None, None))

    def reached(self, offset: int) -> Reached | None:
        """When the record at `offset` came in; None while it has not."""
        index = bisect_right(self._entries, offset, key=lambda entry: entry[0])
        return self._entries[index][1] if index < len(self._entries) else None


class Learned:
    """Offsets, times and outcomes of applied frames. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histories: defaultdict[str, OffsetHistory] = defaultdict(OffsetHistory)
        self._outcomes: OrderedDict[tuple[str, int, int], str] = OrderedDict()

    def record(self, info: FrameInfo, *, applied_at_ms: int | None) -> None:
        """Take in an applied frame; `applied_at_ms` is None when nobody waited for it here.

        A trainer that resumed from a checkpoint brings lower offsets: it learns what it lost again.
        """
        is_told = applied_at_ms is not None and info.kind == "delta"
        reached = Reached(info.published_at_ms if is_told else None, applied_at_ms)
        with self._lock:
            for log, offset in info.offsets.items():
                self._histories[log].reach(offset, reached)
            for outcome in info.outcomes:
                self._note(outcome)

    def offset(self, topic: str, partition: int) -> int:
        """The next offset: every earlier record has had its effect on the parameters served."""
        with self._lock:
            return self._histories[f"{topic}:{partition}"].offset

    def reached(self, topic: str, partition: int, offset: int) -> Reached | None:
        """The frame that first held the record at `offset`; None while none does."""
        with self._lock:
            return self._histories[f"{topic}:{partition}"].reached(offset)

    def outcome(self, topic: str, partition: int, offset: int) -> str | None:
        """What became of a record when that is not simply `trained`."""
        with self._lock:
            return self._outcomes.get((topic, partition, offset))

    def _note(self, outcome: Outcome) -> None:
        key = (outcome.topic, outcome.partition, outcome.offset)
        if outcome.outcome == "trained":  # what was pending is decided
            self._outcomes.pop(key, None)
            return
        self._outcomes[key] = outcome.outcome
        self._outcomes.move_to_end(key)
        if len(self._outcomes) > OUTCOMES_MAX:
            self._outcomes.popitem(last=False)
