"""Requests in memory; the database is the truth."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from freshrank import messages
from freshrank.errors import DataError, SchemaError
from freshrank.feature_types import U64
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
        tokens: Ids of canonical users, `uint64[n]`.

    Attributes:
        next_number: Of the next new request.
        seen: Key of an event id or a user -> when it is forgotten, of those asked for.
    """

    def __init__(self, state: State, arena: Arena, tokens: Callable[[Sequence[str]], U64]) -> None:
        self._state = state
        self._arena = arena
        self._tokens = tokens
        self._requests: dict[str, Request] = {}
        self._loaded: list[Request] = []  # in this round
        self.next_number = 0
        self.seen: dict[int, int] = {}

    def __len__(self) -> int:
        """Requests in memory."""
        return len(self._requests)

    def prefetch(self, request_ids: Iterable[str], watermark_ms: int) -> None:
        """Read what a round will ask for in a few statements.

        Args:
            request_ids: What it may ask for.
            watermark_ms: Before the round.

        Raises:
            SchemaError: a stored record does not fit the features configured now.
        """
        wanted = list({one for one in request_ids if one not in self._requests})
        found = list(self._state.requests(wanted))
        if not found:
            return
        # Of requests whose time has passed a database may lack any part, or have it still: others
        # swept theirs before, or between, the rounds that it was brought up to date with.
        for request in found:
            if request.is_past(watermark_ms):
                request.forget_all_but_times()
        records = self._state.parts(
            request.number for request in found if not request.is_past(watermark_ms)
        )
        shown = {
            number: [_impression(value) for _, value in parts] for number, parts in records.items()
        }
        impressions = [one for parts in shown.values() for one in parts]
        appended_at_ms = [at_ms for parts in records.values() for at_ms, _ in parts]
        row = self._encode(impressions, appended_at_ms) if impressions else 0
        for request in found:
            row = _complete(request, shown.get(request.number, ()), row)
            self._requests[request.request_id] = request
        self._loaded += found

    def load_of_user(self, user: int, watermark_ms: int) -> list[Request]:
        """Every request of a user, and those that an action of the user waits for.

        Args:
            user: Id of 64 bits.
            watermark_ms: As of `prefetch`.

        Raises:
            SchemaError: as `prefetch`.
        """
        wanted = self._state.requests_of_user(lambda users: self._tokens(users) == np.uint64(user))
        self.prefetch(wanted, watermark_ms)
        return [request for one in wanted if (request := self.get(one)) is not None]

    def is_of(self, user: str | None, token: int) -> bool:
        """Whether this canonical user has that id."""
        return user is not None and int(self._tokens([user])[0]) == token

    def prefetch_seen(self, keys: Iterable[int]) -> None:
        """Read which of these event ids and users are known."""
        self.seen = self._state.seen(list(set(keys)))

    def get(self, request_id: str) -> Request | None:
        """The request as it is now, of those asked for in `prefetch`; None when it is unknown."""
        return self._requests.get(request_id)

    def add(self, request_id: str) -> Request:
        """A new request."""
        request = Request(number=self.next_number, request_id=request_id)
        self.next_number += 1
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

    def reset(self, next_number: int) -> None:
        """At the start and after a failed commit: forget everything, the database knows.

        Args:
            next_number: Of requests, as last committed.
        """
        self._requests.clear()
        self._loaded = []
        # Never back to numbers that were given before: what is removed is told by its number.
        known = self._state.last_key("requests") + 1
        self.next_number = max(self.next_number, next_number, known)

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
