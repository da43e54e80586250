"""How many requests are answered at once; what exceeds it is refused before it queues."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from service.problems import ProblemError

# A waiting request costs a future and a socket, a working one a thread.
WAITING_PER_IN_FLIGHT: Final = 4


class Gate:
    """Counts requests; used by one event loop.

    Args:
        n_max: Requests at work at once.
    """

    def __init__(self, n_max: int) -> None:
        self._n_max = n_max
        self._n_working = 0
        self._n_waiting = 0

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


def _overloaded(detail: str) -> ProblemError:
    return ProblemError("overloaded", detail, headers={"Retry-After": "1"})
