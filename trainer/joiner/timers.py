"""What falls due in one round, in the order (due time, request)."""

import heapq
from collections.abc import Iterable, Sequence

Due = tuple[int, str]


class Timers:
    """Due times of a round.

    Args:
        loaded: The first of those in the database, in order.
        is_complete: False when the database has more: nothing after the last one may fire yet.
    """

    def __init__(self, loaded: Sequence[Due], *, is_complete: bool) -> None:
        self._heap = list(loaded)  # sorted, hence a heap
        self._horizon = None if is_complete or not loaded else loaded[-1]

    def push(self, due: Iterable[Due]) -> None:
        """Add due times."""
        for one in due:
            heapq.heappush(self._heap, one)

    def pop(self, until_ms: int) -> Due | None:
        """The first that is due by `until_ms`; None when there is none, or not in this round."""
        if not self._heap or self._heap[0][0] > until_ms:
            return None
        if self._horizon is not None and self._heap[0] > self._horizon:
            return None
        return heapq.heappop(self._heap)

    def reaches(self, until_ms: int) -> bool:
        """True when everything due by `until_ms` has fired."""
        if self._horizon is not None and self._horizon[0] <= until_ms:
            return False
        return not self._heap or self._heap[0][0] > until_ms
