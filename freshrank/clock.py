"""Time as a constructor argument, so that tests and replays own it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a part reads the time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never steps back; only differences mean anything."""


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds on a clock that never steps back."""
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved: for tests and replays.

    Example:
        >>> clock = ManualClock(now_ms=1_000)
        >>> clock.advance(ms=500)
        >>> clock.now_ms()
        1500
    """

    def __init__(self, *, now_ms: int = 0) -> None:
        self._now_ms = now_ms
        self._stepped_ms = 0

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, as last set."""
        return self._now_ms

    def monotonic_s(self) -> float:
        """The same instant in seconds, but for steps."""
        return (self._now_ms - self._stepped_ms) / 1_000

    def advance(self, *, ms: int) -> None:
        """Move the clock by `ms` milliseconds."""
        self._now_ms += ms

    def step(self, *, ms: int) -> None:
        """Set the wall clock ahead by `ms` milliseconds, or back; no time passes."""
        self._now_ms += ms
        self._stepped_ms += ms
