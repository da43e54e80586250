"""Requests in memory; the database is the truth."""

from collections.abc import Iterable, Sequence
from typing import Final

from freshrank import messages
from freshrank.errors import DataError, SchemaError
from freshrank.messages import Impression
from trainer.joiner.arena import Arena
from trainer.joiner.requests import Accepted, Part, Request
from trainer.joiner.state import State

# A request of five items takes about 1 KB here and its encoded rows 1 KB in the arena: at most
# 150 MB. Others are read back when needed.
REQUESTS_MAX: Final = 65_536
# Rows kept encoded: 2^18 rows of 20 ids are 80 MB.
ARENA_ROWS_MAX: Final = 1 << 18


class Cache:
    """The requests whose windows are open, and those that a round asks for.

    Whatever is here has its encoded rows in the arena.

    Args:
        state: The database.
        arena: Where encoded rows stand.

    Attributes:
        seen: Key of an event id -> when it is forgotten, of those asked for that are known.
    """

    def __init__(self, state: State, arena: Arena) -> None:
        self._state = state
        self._arena = arena
        self._requests: dict[str, Request] = {}
        self._loaded: list[Request] = []  # in this round
        self._next = 0
        self.seen: dict[int, int] = {}
        self.reset()

    def prefetch(self, request_ids: Iterable[str]) -> None:
        """Read what a round will ask for in a few statements.

        Raises:
            SchemaError: a stored record does not fit the features configured now.
        """
        wanted = list({one for one in request_ids if one not in self._requests})
        found = list(self._state.requests(wanted))
        if not found:
            return
        records = self._state.parts(request.number for request in found)
        shown = {
            number: [_impression(value) for _, value in parts] for number, parts in records.items()
        }
        impressions = [one for parts in shown.values() for one in parts]
        appended_at_ms = [at_ms for parts in records.values() for at_ms, _ in parts]
        row = self._encode(impressions, appended_at_ms) if impressions else 0
        for request in found:
            row = _complete(request, shown[request.number], row)
            self._requests[request.request_id] = request
        self._loaded += found

    def prefetch_seen(self, event_keys: Iterable[int]) -> None:
        """Read which of these event ids are known."""
        self.seen = self._state.seen(list(set(event_keys)))

    def get(self, request_id: str) -> Request | None:
        """The request as it is now, of those asked for in `prefetch`; None when it is unknown."""
        return self._requests.get(request_id)

    def add(self, request_id: str) -> Request:
        """A new request."""
        request = Request(number=self._next, request_id=request_id)
        self._next += 1
        self._requests[request_id] = request
        return request

    def drop(self, request: Request) -> None:
        """Forget a request that is removed from the database, too."""
        del self._requests[request.request_id]

    def settle(self, changed: Iterable[Request], needed: int) -> None:
        """After a commit: keep the requests whose window is open, up to the limits.

        Args:
            changed: The requests that were written.
            needed: Number of the first encoded row that others still need.
        """
        for request in changed:
            request.saved_due_ms = request.due_at_ms
        idle = [one for one in changed if one.saved_due_ms is None]
        self._evict([*idle, *(one for one in self._loaded if one.due_at_ms is None)])
        self._loaded = []
        if (excess := len(self._requests) - REQUESTS_MAX) > 0:
            self._evict(list(self._requests.values())[:excess])
        if self._arena.end - self._arena.start > 2 * ARENA_ROWS_MAX:
            start = min(needed, self._arena.end - ARENA_ROWS_MAX)
            stale = [
                request
                for request in self._requests.values()
                if any(part.first_row < start for part in request.parts)
            ]
            self._evict(stale)
            self._arena.trim(start)

    def reset(self) -> None:
        """After a failed commit: forget everything, the database knows."""
        self._requests.clear()
        self._loaded = []
        # Never back to numbers that were given before: what is removed is told by its number.
        self._next = max(self._next, self._state.last_number() + 1)

    def _evict(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._requests.pop(request.request_id, None)

    def _encode(self, impressions: Sequence[Impression], appended_at_ms: Sequence[int]) -> int:
        try:
            return self._arena.encode(impressions, appended_at_ms)
        except DataError as error:
            raise SchemaError(
                f"an impression accepted earlier does not fit today's features: {error}; "
                "start with the earlier features until the windows are closed",
                code="joiner-state",
            ) from error


def _complete(request: Request, shown: Sequence[Impression], row: int) -> int:
    """Tell a request what stands in its records; returns the number of the row behind them."""
    parts = []
    for one in shown:
        parts.append(Part(one.items, row))
        row += len(one.items)
    request.parts = tuple(parts)
    if shown and request.served is None:
        (only,) = shown
        request.user = only.user
        request.served = Accepted(only.event_id, only.parts, (only.part,))
    if request.places is not None:
        request.items = [parts[part].items[index] for part, index in request.places]
    elif request.status:
        request.items = parts[0].items
    return row


def _impression(value: bytes) -> Impression:
    message = messages.decode(value)
    assert isinstance(message, Impression)  # noqa: S101 - nothing else is kept
    return message
