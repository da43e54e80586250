"""What the joiner remembers of one request.

Times are event time in milliseconds: `min(ts, received_at)` of a record, so that a client's fast
clock moves nothing into the future. Tens of thousands of requests are open at a time: their structs
are left out of garbage collection, as nothing in them refers back.
"""

from bisect import insort
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from trainer.joiner.merge import Shown

# Status of one item for one task.
PENDING: Final = 0  # nothing known yet
POSITIVE: Final = 1  # its action left as a row (weight 1)
NEGATIVE: Final = 2  # it left as a negative (weight 1)
SAMPLED_OUT: Final = 3  # it is a negative that was not kept (weight 0)
HELD: Final = 4  # its action is known and leaves when the window closes (emit: at_close)
N_STATUSES: Final = 5

UNSAVED: Final = -1


class Accepted(msgspec.Struct, array_like=True, gc=False):
    """The impression event that won a role of a request, and the parts of it that are here."""

    event_id: str
    n_parts: int
    parts: tuple[int, ...]

    @property
    def is_complete(self) -> bool:
        """True when no further part can come."""
        return len(self.parts) >= self.n_parts


class Part(msgspec.Struct, gc=False):
    """One impression record with features; its bytes are kept in the table `parts`.

    Attributes:
        items: Item of each row.
        first_row: Number of its first row in the arena.
    """

    items: list[str]
    first_row: int


class Parked(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is needed to decide on an action; kept while it waits for its impression."""

    offset: int
    appended_at_ms: int
    time_ms: int
    event_id: str
    item: str
    event: str
    user: str | None
    value: float


class Acted(NamedTuple):
    """A matched action that feature state wants.

    Attributes:
        number: Of the row it was matched with, in the arena.
        action: What was done.
        user: Canonical user, its own or else the impression's; None for nobody.
    """

    number: int
    action: Parked
    user: str | None


class Held(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An action that labels an item when the window closes (emit: at_close)."""

    row: int
    tasks: tuple[int, ...]
    value: float
    offset: int
    appended_at_ms: int


class Extra(msgspec.Struct, array_like=True, gc=False):
    """What most requests do not have: waiting actions, several records, a client's report.

    Attributes:
        user: Canonical user of the first impression that names one.
        served: The impression that brought features; read from its record where there is no extra.
        client: What a client reported (only when reports decide what is live).
        named: Items reported, in order of arrival.
        places: (part, row in it) of each live item; None when they are the rows of the only part.
        parked: (expiry, action that waits for its impression), in order of (expiry, offset).
        held: Actions that wait for the window to close.
    """

    user: str | None
    served: Accepted | None
    client: Accepted | None
    named: list[str]
    places: list[tuple[int, int]] | None
    parked: list[tuple[int, Parked]]
    held: list[Held]


class Request(msgspec.Struct, gc=False, kw_only=True):
    """One request.

    Attributes:
        number: Counts requests up in the order in which they were first heard of.
        request_id: Its id.
        time_ms: Event time of the impression; 0 until an item can be live.
        close_at_ms: When its window closes; 0 until an item can be live.
        purge_at_ms: When all but its id is dropped: later actions are late. 0 before an impression.
        forget_at_ms: When its id is dropped too.
        is_armed: The window has yet to close, or to close again for a part that came after it.
        is_closed: The window has closed once.
        has_first: A row of positive weight was written.
        status: `len(items) * n_tasks` statuses, the tasks of an item side by side.
        items: Items that are live, in the order in which they became so.
        parts: Records with features, in order of arrival.
        saved_due_ms: Its `due_at_ms` as the database has it; `UNSAVED` when it has no such request.

    The others are those of `Extra`; empty lists are shared, so they are replaced and never changed.
    """

    number: int
    request_id: str
    time_ms: int = 0
    close_at_ms: int = 0
    purge_at_ms: int = 0
    forget_at_ms: int = 0
    is_armed: bool = False
    is_closed: bool = False
    has_first: bool = False
    status: bytearray = msgspec.field(default_factory=bytearray)
    items: Sequence[str] = ()
    parts: tuple[Part, ...] = ()
    saved_due_ms: int | None = UNSAVED
    user: str | None = None
    served: Accepted | None = None
    client: Accepted | None = None
    named: Sequence[str] = ()
    places: list[tuple[int, int]] | None = None
    parked: Sequence[tuple[int, Parked]] = ()
    held: Sequence[Held] = ()

    @property
    def due_at_ms(self) -> int | None:
        """When time alone next changes this request; None when it does not."""
        parked = self.parked[0][0] if self.parked else None
        if not self.is_armed:
            return parked
        return self.close_at_ms if parked is None else min(parked, self.close_at_ms)

    def is_past(self, watermark_ms: int) -> bool:
        """Whether nothing can come of a stored request any more but that something was late."""
        return self.saved_due_ms is None and 0 < self.purge_at_ms <= watermark_ms

    def forget_all_but_times(self) -> None:
        """Become what the database keeps of a request whose time has passed."""
        self.status, self.user = bytearray(), None
        self.items, self.parts, self.named, self.places, self.held = (), (), (), None, ()
        self.served = self.client = None

    def accept(self, role: str, impression: Shown, watermark_ms: int) -> bool:
        """Whether this record is a new part of the event that won the role.

        Args:
            role: "client" for what a client reported; others brought features.
            impression: It becomes the winner where there is none.
            watermark_ms: A request that is past by then takes no part.
        """
        if self.purge_at_ms and self.purge_at_ms <= watermark_ms:
            return False
        won = self.client if role == "client" else self.served
        parts: tuple[int, ...] = (impression.part,)
        if won is not None:
            if won.event_id != impression.event_id or impression.part in won.parts:
                return False
            parts += won.parts
        accepted = Accepted(impression.event_id, impression.parts, parts)
        if role == "client":
            self.client = accepted
        else:
            self.served = accepted
        return True

    def is_complete(self, *, is_reported: bool) -> bool:
        """Whether no item can become live any more; `is_reported` as of `make_live`."""
        winners = (self.served, self.client) if is_reported else (self.served,)
        return all(won is not None and won.is_complete for won in winners)

    def park(self, action: Parked, expires_at_ms: int) -> None:
        """Keep an action until its impression comes or `expires_at_ms` has passed."""
        parked = list(self.parked)
        insort(parked, (expires_at_ms, action), key=lambda entry: (entry[0], entry[1].offset))
        self.parked = parked

    def numbers(self, rows: Sequence[int]) -> list[int]:
        """Numbers in the arena of these live rows."""
        if self.places is None:
            first = self.parts[0].first_row
            return [first + row for row in rows]
        places = [self.places[row] for row in rows]
        return [self.parts[part].first_row + index for part, index in places]

    def make_live(self, n_tasks: int, *, is_reported: bool) -> int:
        """Make every item live that is shown (and named by the client); returns how many are new.

        Args:
            n_tasks: Number of tasks.
            is_reported: Only items that a client's impression names count.
        """
        before = len(self.items)
        if before == 0 and len(self.parts) == 1 and not is_reported:
            items = self.parts[0].items
            if len(set(items)) == len(items):
                self.items = items
                self.status.extend(bytes(len(items) * n_tasks))
                return len(items)
        wanted = set(self.named if is_reported else (i for part in self.parts for i in part.items))
        wanted.difference_update(self.items)
        live = list(self.items)
        places = [(0, i) for i in range(before)] if self.places is None else self.places
        for number, part in enumerate(self.parts):
            for index, item in enumerate(part.items):
                if item in wanted:
                    wanted.remove(item)
                    live.append(item)
                    places.append((number, index))
        self.items, self.places = live, places
        n_new = len(live) - before
        self.status.extend(bytes(n_new * n_tasks))
        return n_new

    def extra(self) -> bytes | None:
        """The `Extra` of this request; None when its only record says it all."""
        served = self.served
        if (
            served is not None
            and served.n_parts == len(self.parts) == 1
            and self.places is None
            and self.client is None
            and not self.parked
            and not self.held
        ):
            return None
        extra = Extra(
            user=self.user,
            served=self.served,
            client=self.client,
            named=list(self.named),
            places=self.places,
            parked=list(self.parked),
            held=list(self.held),
        )
        return _encoder.encode(extra)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Extra)


def decode_extra(data: bytes) -> Extra:
    """An `Extra` read back."""
    return _decoder.decode(data)
