"""How many requests are answered at once; what exceeds it is refused before it queues."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from service.problems import ProblemError

# A waiting request costs a future and a socket, a working one a thread.
WAITING_PER_IN_FLIGHT: Final = 4
# Some tabs and dashboards; a limit of their own, so that they never keep a receipt waiting.
STREAMS_MAX: Final = 50


class Gate:
    """Counts requests; used by one event loop.

    Args:
        n_max: Requests at work at once.
    """

    def __init__(self, n_max: int) -> None:
        self._n_max = n_max
        self._n_working = 0
        self._n_waiting = 0
        self._n_streams = 0

    @property
    def n_working(self) -> int:
        """Requests at work."""
        return self._n_working

    def enter(self) -> None:
        """Begin a request.

        Raises:
            ProblemError: 503, too many are at work.
        """
        if self._n_working >= self._n_max:
            raise _overloaded(f"{self._n_working} requests are at work, at most {self._n_max}")
        self._n_working += 1

    def leave(self) -> None:
        """End a request."""
        self._n_working -= 1

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Step aside while waiting for something, so that others can work.

        Raises:
            ProblemError: 503, too many are waiting.
        """
        if self._n_waiting >= WAITING_PER_IN_FLIGHT * self._n_max:
            raise _overloaded(f"{self._n_waiting} requests wait already")
        self._n_waiting += 1
        self._n_working -= 1
        try:
            yield
        finally:
            self._n_working += 1
            self._n_waiting -= 1

    def check_stream(self) -> None:
        """Refuse one more stream before its answer begins.

        Raises:
            ProblemError: 503, too many are open.
        """
        if self._n_streams >= STREAMS_MAX:
            raise _overloaded(f"{self._n_streams} streams are open, at most {STREAMS_MAX}", 60)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Step aside for as long as a stream lasts."""
        self._n_streams += 1
        self._n_working -= 1
        try:
            yield
        finally:
            self._n_working += 1
            self._n_streams -= 1


def _overloaded(detail: str, retry_s: int = 1) -> ProblemError:
    return ProblemError("overloaded", detail, headers={"Retry-After": str(retry_s)})
