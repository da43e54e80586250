"""How fast event time passes in a replay, and what falls due in it."""

import time
from collections.abc import Callable
from datetime import timedelta

from freshrank.clock import Clock, SystemClock


class Pace:
    """Lets event time pass at a multiple of real time.

    Args:
        speed: 1 as it happened, 10 ten times as fast; None as fast as it goes.
        clock: Real time.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        speed: float | None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._speed = speed
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._began: tuple[int, float] | None = None

    def wait(self, ts_ms: int) -> None:
        """Return when this event time has come; the first one has come at once."""
        if self._speed is None:
            return
        now_s = self._clock.monotonic_s()
        if self._began is None:
            self._began = ts_ms, now_s
        first_ms, began_s = self._began
        ahead_s = began_s + (ts_ms - first_ms) / 1_000 / self._speed - now_s
        if ahead_s > 0:
            self._sleep(ahead_s)


class Schedule:
    """The multiples of a period of event time, counted from the first time it is asked about.

    Args:
        every: The period; less than a millisecond counts as one.

    Attributes:
        next_ms: When the next one is; None before the first question.
    """

    def __init__(self, every: timedelta) -> None:
        self._every_ms = max(every // timedelta(milliseconds=1), 1)
        self.next_ms: int | None = None

    def is_due(self, ts_ms: int) -> bool:
        """Whether one has come at or before this time since the last question; never at first."""
        if self.next_ms is None:
            self.next_ms = ts_ms + self._every_ms
        elif ts_ms >= self.next_ms:
            self.next_ms += ((ts_ms - self.next_ms) // self._every_ms + 1) * self._every_ms
            return True
        return False
