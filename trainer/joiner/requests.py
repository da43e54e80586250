"""What the joiner remembers of one request, as it stands in the database.

Times are event time in milliseconds: `min(ts, received_at)` of a record, so that a client's fast
clock moves nothing into the future.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Final

import msgspec

# Status of one item for one task.
PENDING: Final = 0  # nothing known yet
POSITIVE: Final = 1  # its action left as a row (weight 1)
NEGATIVE: Final = 2  # it left as a negative (weight 1)
SAMPLED_OUT: Final = 3  # it is a negative that was not kept (weight 0)
HELD: Final = 4  # its action is known and leaves when the window closes (emit: at_close)
N_STATUSES: Final = 5


class Accepted(msgspec.Struct, array_like=True):
    """The impression event that won a role of this request, and the parts of it that are here."""

    event_id: str
    n_parts: int
    parts: list[int]

    @property
    def is_complete(self) -> bool:
        """True when no further part can come."""
        return len(self.parts) >= self.n_parts


class Part(msgspec.Struct, array_like=True):
    """One impression record with features; its bytes are kept beside, in the table `parts`.

    Attributes:
        items: Item of each row.
        served: Per item, the prediction served for each task; empty when nothing was served.
        appended_at_ms: When the record entered the log.
    """

    items: list[str]
    served: list[tuple[float, ...]]
    appended_at_ms: int


class Parked(msgspec.Struct, array_like=True, frozen=True):
    """What is needed to decide on an action; kept while it waits for its impression."""

    offset: int
    appended_at_ms: int
    time_ms: int
    event_id: str
    item: str
    event: str
    user: str | None
    value: float


class Held(msgspec.Struct, array_like=True, frozen=True):
    """An action that labels an item when the window closes (emit: at_close)."""

    row: int
    tasks: tuple[int, ...]
    value: float
    offset: int
    appended_at_ms: int


class Request(msgspec.Struct, array_like=True):
    """One request.

    Attributes:
        request_id: Its id.
        user: Canonical user of the impression.
        accepted: Role (`served`; or `rank` and `client` when impressions are reported) -> winner.
        parts: Records with features, in order of arrival.
        named: Items a client reported, in order of arrival.
        items: Items that are live: (part, row in it), in the order in which they became live.
        rows: Item -> index in `items`.
        status: `len(items) * n_tasks` statuses, the tasks of an item side by side.
        time_ms: Event time of the impression; 0 until an item can be live.
        close_at_ms: When its window closes; 0 until an item can be live.
        purge_at_ms: When all but its id is dropped: later actions are late.
        forget_at_ms: When its id is dropped too.
        is_armed: The window has yet to close, or to close again for a part that came after it.
        is_closed: The window has closed once.
        has_first: A row of positive weight was written.
        parked: Actions that wait for their impression, in order of (expiry, offset).
        held: Actions that wait for the window to close.
    """

    request_id: str
    user: str | None = None
    accepted: dict[str, Accepted] = {}
    parts: list[Part] = []
    named: list[str] = []
    items: list[tuple[int, int]] = []
    rows: dict[str, int] = {}
    status: bytearray = msgspec.field(default_factory=bytearray)
    time_ms: int = 0
    close_at_ms: int = 0
    purge_at_ms: int = 0
    forget_at_ms: int = 0
    is_armed: bool = False
    is_closed: bool = False
    has_first: bool = False
    parked: list[tuple[int, Parked]] = []
    held: list[Held] = []

    @property
    def due_at_ms(self) -> int | None:
        """When time alone next changes this request; None when it does not."""
        parked = self.parked[0][0] if self.parked else None
        if not self.is_armed:
            return parked
        return self.close_at_ms if parked is None else min(parked, self.close_at_ms)

    def park(self, action: Parked, expires_at_ms: int) -> None:
        """Keep an action until its impression comes or `expires_at_ms` has passed."""
        insort(self.parked, (expires_at_ms, action), key=lambda entry: (entry[0], entry[1].offset))

    def item_of(self, row: int) -> str:
        """The item of a live row."""
        part, index = self.items[row]
        return self.parts[part].items[index]

    def make_live(self, candidates: Iterable[tuple[int, int, str]], n_tasks: int) -> int:
        """Make (part, row in it, item) live unless the item is; returns how many became so."""
        before = len(self.items)
        for part, index, item in candidates:
            if item not in self.rows:
                self.rows[item] = len(self.items)
                self.items.append((part, index))
        n_new = len(self.items) - before
        self.status.extend(bytes(n_new * n_tasks))
        return n_new


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Request)


def encode(request: Request) -> bytes:
    """The request as the database keeps it."""
    return _encoder.encode(request)


def decode(state: bytes) -> Request:
    """The same, read back."""
    return _decoder.decode(state)
