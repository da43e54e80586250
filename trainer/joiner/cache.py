"""Requests and event ids in memory; the database is the truth."""

from collections.abc import Iterable
from typing import Final

from freshrank.messages import Action, Impression
from trainer.joiner.merge import Head
from trainer.joiner.requests import Request
from trainer.joiner.state import State

# A request of ten items takes about 3 KB: at most 200 MB. Others are read back when needed.
REQUESTS_MAX: Final = 65_536


class Cache:
    """What a round reads and changes, by id.

    Args:
        state: The database.

    Attributes:
        changed: Requests to write, by id.
        gone: Requests to remove, before `changed` is written.
        new_seen: Event id -> when it is forgotten.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._requests: dict[str, Request | None] = {}
        self._seen: dict[str, int] = {}
        self.changed: dict[str, Request] = {}
        self.gone: set[str] = set()
        self._touched: set[str] = set()  # read or changed in this round
        self.new_seen: dict[str, int] = {}

    def prefetch(self, heads: Iterable[Head]) -> None:
        """Read what these records will ask for in a few statements."""
        request_ids, event_ids = set(), set()
        for head in heads:
            if isinstance(head.message, Impression | Action):
                request_ids.add(head.message.request_id)
                if isinstance(head.message, Action):
                    event_ids.add(head.message.event_id)
        self.prefetch_requests(request_ids)
        self._seen = self._state.seen(list(event_ids))

    def prefetch_requests(self, request_ids: Iterable[str]) -> None:
        """Read requests that are not here yet."""
        wanted = [one for one in dict.fromkeys(request_ids) if one not in self._requests]
        self._touched.update(wanted)
        self._requests |= dict.fromkeys(wanted)
        for request in self._state.requests(wanted):
            self._requests[request.request_id] = request

    def request(self, request_id: str) -> Request | None:
        """The request as it is now; None when it is unknown."""
        if request_id not in self._requests:
            self.prefetch_requests([request_id])
        return self._requests[request_id]

    def put(self, request: Request) -> None:
        """Note a new or changed request."""
        self._touched.add(request.request_id)
        self._requests[request.request_id] = request
        self.changed[request.request_id] = request

    def drop(self, request_id: str) -> None:
        """Remove a request."""
        self._touched.add(request_id)
        self._requests[request_id] = None
        self.changed.pop(request_id, None)
        self.gone.add(request_id)

    def has_seen(self, event_id: str, watermark_ms: int) -> bool:
        """True when the event id is known and has not expired."""
        expires_at_ms = self.new_seen.get(event_id, self._seen.get(event_id))
        return expires_at_ms is not None and expires_at_ms > watermark_ms

    def see(self, event_id: str, expires_at_ms: int) -> None:
        """Remember an event id."""
        self.new_seen[event_id] = expires_at_ms

    def settle(self) -> None:
        """After a commit: keep the requests whose window is open, up to the limit."""
        for request_id in self._touched:
            if not _is_open(self._requests[request_id]):
                del self._requests[request_id]
        excess = len(self._requests) - REQUESTS_MAX
        if excess > 0:
            for request_id in list(self._requests)[:excess]:
                del self._requests[request_id]
        self._clear_changes()

    def reset(self) -> None:
        """After a failed commit: forget everything, the database knows."""
        self._requests.clear()
        self._clear_changes()

    def _clear_changes(self) -> None:
        self.changed.clear()
        self.gone.clear()
        self._touched.clear()
        self.new_seen = {}
        self._seen = {}


def _is_open(request: Request | None) -> bool:
    return request is not None and request.due_at_ms is not None
