"""The records of the event log: versioned msgpack envelopes.

Every message is a map `{v, type, event_id, ts, received_at, …}`. Fields are only ever added, with a
default; a reader skips fields it does not know and refuses a higher `v` with `DataError`
(code `newer-version`), which sends the record to the dead letter. Golden bytes: `tests/golden/`.
"""

from collections.abc import Sequence
from typing import Final, Literal, Union

import msgspec

from freshrank.errors import DataError

VERSION: Final = 1

# A feature value as a client sent it. JSON integers reach 2^64 - 1; a list holds either.
Scalar = bool | int | float | str
Value = bool | int | float | str | list[int | float | str] | None


class Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    gc=False,
    forbid_unknown_fields=True,  # `decode` reads them all the same
):
    """What every record carries.

    Attributes:
        event_id: Identity for de-duplication.
        ts_ms: Event time, milliseconds since 1970 UTC.
        received_at_ms: When it was ingested; set once and kept by every replay.
        v: Format version.
    """

    event_id: str
    ts_ms: int = msgspec.field(name="ts")
    received_at_ms: int = msgspec.field(name="received_at")
    v: int = VERSION


class Impression(Event, frozen=True, kw_only=True, tag="impression", gc=False):
    """Items shown (or served) to a user in one request, with the features as they were used.

    Attributes:
        request_id: Joins actions to this record.
        user: Canonical text of the user id, or None.
        items: Canonical text of each item id.
        shared: Values of user, context and feature-state features: once per request.
        columns: Values of item and candidate features, one entry per item.
        served: Per task, the probability served for each item; empty when we did not score.
        positions: 1-based position of each item as shown.
        version: Parameter version that scored, `d…-s…`.
        source: `rank` when the service wrote it, `client` when a client reported it.
        part: Index of this record when an impression was split for size.
        parts: Number of records the impression was split into.
    """

    request_id: str
    items: list[str]
    user: str | None = None
    shared: dict[str, Value] = {}
    columns: dict[str, list[Value]] = {}
    served: dict[str, list[float]] = {}
    positions: list[int] = []
    version: str = ""
    source: Literal["rank", "client"] = "rank"
    part: int = 0
    parts: int = 1


class Action(Event, frozen=True, kw_only=True, tag="action", gc=False):
    """Something a user did with an item of a request."""

    request_id: str
    item: str
    event: str
    user: str | None = None
    value: float = 1.0


class Entity(Event, frozen=True, kw_only=True, tag="entity", gc=False):
    """Features of an item or a user, sent once and merged into later requests."""

    scope: Literal["item", "user"]
    id: str
    features: dict[str, Value]


class Control(Event, frozen=True, kw_only=True, tag="control", gc=False):
    """An operator's command to the trainer; `forget` stands in every partition of actions as well.

    Attributes:
        command: What to do.
        reason: Why, for people.
        to: Of `rollback`: the name of the checkpoint.
        relearn: Of `rollback`: learn once more what was learned since.
        slot: Of `forget`: the feature whose table has the id.
        id: Of `forget`: the 64-bit id; of a string key its keyed hash.
        marks: Of `forget`, in the control topic: `topic:partition` -> offset of the same command
            among the actions.
    """

    command: Literal["pause", "resume", "rollback", "forget"]
    reason: str = ""
    to: str = ""
    relearn: bool = False
    slot: str = ""
    id: int = 0
    marks: dict[str, int] = {}


class Tick(Event, frozen=True, kw_only=True, tag="tick", gc=False):
    """Time passing in a topic that has nothing to say; appended by the joiner only."""


Message = Impression | Action | Entity | Control | Tick


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record of a dead-letter topic; no event, so it has no type and no times of its own.

    Attributes:
        topic: Where the value stood.
        partition: Its partition.
        offset: Its offset; the last one where rows of several records were refused together.
        code: Why, as a slug.
        reason: Why, for a person; may be empty.
        value: The record's bytes, or the refused example rows as a record of their own without
            offsets, so that it can be appended again. Empty when it does not fit into a record:
            then it can only be read at its offset.
        v: Format version.
    """

    topic: str
    partition: int
    offset: int
    code: str
    reason: str
    value: bytes
    v: int = VERSION


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_KINDS: Final[tuple[type[Message], ...]] = (Impression, Action, Entity, Control, Tick)
# The same, of programs that say more.
_KIND_OF: Final[dict[type[msgspec.Struct], type[Message]]] = {
    msgspec.defstruct(
        f"Later{kind.__name__}",
        [],
        bases=(kind,),
        tag=kind.__struct_config__.tag,
        frozen=True,
        kw_only=True,
        gc=False,
        forbid_unknown_fields=False,
    ): kind
    for kind in _KINDS
}
_skipping_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(
    Union[tuple(_KIND_OF)]  # noqa: UP007 - of types made here
)
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Version(msgspec.Struct):
    v: int = 0


_version_decoder = msgspec.msgpack.Decoder(_Version)


def encode(message: Message | DeadLetter) -> bytes:
    """The record's bytes."""
    return _encoder.encode(message)


def decode(value: bytes) -> Message:
    """Read a record back; what it says beyond what is known is skipped.

    Raises:
        DataError: not a message (code `malformed`), or written by a newer version
            (code `newer-version`). The text says which field.
    """
    return decode_noting(value)[0]


def decode_noting(value: bytes) -> tuple[Message, bool]:
    """As `decode`, and whether the record says more than is known."""
    try:
        message, says_more = _decode(value)
    except _UNREADABLE as error:
        _refuse_newer(value)
        raise DataError(f"not a freshrank message: {error}", code="malformed") from error
    if message.v > VERSION:
        _refuse_newer(value)
    return message, says_more


def decode_all(values: Sequence[bytes]) -> tuple[list[Message], int] | None:
    """Read many records back, and count those that say more; None when one is refused."""
    n_more = 0
    try:
        found = list(map(_decoder.decode, values))
    except _UNREADABLE:
        try:
            noted = list(map(_decode, values))
        except _UNREADABLE:
            return None
        found = [message for message, _ in noted]
        n_more = sum(says_more for _, says_more in noted)
    return None if any([message.v > VERSION for message in found]) else (found, n_more)


def _decode(value: bytes) -> tuple[Message, bool]:
    try:
        return _decoder.decode(value), False
    except msgspec.ValidationError:
        later = _skipping_decoder.decode(value)
    kind = _KIND_OF[type(later)]
    return kind(**{name: getattr(later, name) for name in kind.__struct_fields__}), True


def _refuse_newer(value: bytes) -> None:
    try:
        version = _version_decoder.decode(value).v
    except _UNREADABLE:
        return
    if version > VERSION:
        raise DataError(
            f"message version {version} is newer than {VERSION}, the newest this program reads: "
            "upgrade the reader before the writer",
            code="newer-version",
        )


def check_id(control: Control) -> None:
    """Refuse a command to forget what is no 64-bit id.

    Raises:
        DataError: code `bad-id`.
    """
    if not 0 <= control.id < 1 << 64:
        raise DataError(f"id {control.id} is none of 64 bits", code="bad-id")


def entity_key(scope: str, identity: str) -> bytes:
    """Key of an entity record, so that compaction keeps the last one."""
    return f"{scope}:{identity}".encode()
