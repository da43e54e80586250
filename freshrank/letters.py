"""Dead letters: what was refused, why, and how it is put back where it stood.

A letter that is put back gets a mark behind it in its own topic, so that it is put back once. What
is refused again comes as another letter with the same bytes: its attempt is 2.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from freshrank.errors import DataError, TransportError
from freshrank.messages import Action, DeadLetter, Entity, Impression, decode, encode, entity_key
from freshrank.transport.base import (
    CONSUMED_TOPICS,
    DEAD_LETTER_SUFFIX,
    EXAMPLES,
    EventLog,
    NewRecord,
    Record,
    TopicPartition,
)

# `code` of a mark: the letter at its `offset` of its `topic` was put back.
REPLAYED: Final = "replayed"
# `code` of what stands in a dead-letter topic and is no letter.
UNREADABLE: Final = "unreadable"
# Of one append or transaction: an eighth of what may be under way to Kafka.
_CHUNK_BYTES: Final = 4 << 20

_decoder: Final = msgspec.msgpack.Decoder(DeadLetter)


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of a dead-letter topic.

    Attributes:
        record: As it stands there.
        content: What it says.
        is_replayed: It was put back.
        attempt: How often these bytes were refused, this time included, as far as letters tell.
    """

    record: Record
    content: DeadLetter
    is_replayed: bool
    attempt: int

    @property
    def place(self) -> TopicPartition:
        """Where the letter stands."""
        return TopicPartition(self.record.topic, self.record.partition)

    @property
    def source(self) -> TopicPartition:
        """Where its bytes stood."""
        return TopicPartition(self.content.topic, self.content.partition)


def letters(log: EventLog, topic: str, partition: int) -> Iterator[Letter]:
    """The letters of a dead-letter topic, oldest first, up to its present end.

    Raises:
        TransportError: the log cannot be read.
    """
    end = log.end_offset(topic, partition)
    marked = {
        content.offset
        for _, content in _contents(log, topic, partition, end)
        if content.code == REPLAYED and content.topic == topic
    }
    n_replayed: Counter[bytes] = Counter()
    for record, content in _contents(log, topic, partition, end):
        if content.code == REPLAYED:
            continue
        digest = hashlib.blake2b(content.value, digest_size=16).digest()
        is_replayed = record.offset in marked
        yield Letter(record, content, is_replayed, 1 + n_replayed[digest])
        n_replayed[digest] += is_replayed and bool(content.value)  # those without look alike


def _contents(
    log: EventLog, topic: str, partition: int, end: int
) -> Iterator[tuple[Record, DeadLetter]]:
    offset = log.start_offset(topic, partition)
    while offset < end and (records := log.read(topic, partition, offset)):
        offset = records[-1].offset + 1
        for record in records:
            if record.offset < end:
                yield record, _content(record)


def _content(record: Record) -> DeadLetter:
    try:
        return _decoder.decode(record.value)
    except msgspec.DecodeError as error:
        return DeadLetter(
            topic=record.topic.removesuffix(DEAD_LETTER_SUFFIX),
            partition=record.partition,
            offset=-1,
            code=UNREADABLE,
            reason=str(error),
            value=b"",
        )


def back(log: EventLog, letter: Letter) -> NewRecord | None:
    """What is put back for a letter; None where nothing is left of it.

    A record too large for a letter is read where it stood; rows of examples are not, as the others
    of their record were learned.

    Raises:
        TransportError: the log cannot be read.
    """
    content, value = letter.content, letter.content.value
    if content.topic not in CONSUMED_TOPICS or content.code == UNREADABLE:
        return None
    if not value and content.topic != EXAMPLES:
        try:
            found = log.read(*letter.source, content.offset, n_max=1)
        except TransportError as error:
            if error.code not in ("offset-removed", "offset-beyond-end"):
                raise
            return None
        value = found[0].value if found and found[0].offset == content.offset else b""
    return NewRecord(letter.record.key or _key(value), value) if value else None


def _key(value: bytes) -> bytes:
    """The key that records of a request or an entity have; none for what cannot be read."""
    try:
        message = decode(value)
    except DataError:
        return b""
    if isinstance(message, Impression | Action):
        return message.request_id.encode()
    return entity_key(message.scope, message.id) if isinstance(message, Entity) else b""


class Put(Protocol):
    """Appends records to partitions; together, where the log can."""

    def __call__(self, records: Mapping[TopicPartition, Sequence[NewRecord]], /) -> object:
        """Append them all, in this order."""


def put_back(chosen: Iterator[tuple[Letter, NewRecord]], put: Put) -> Iterator[int]:
    """Put records back where they stood, and a mark behind the letters of each.

    Args:
        chosen: Letters and their records.
        put: As of the log: in transactions on Kafka. A local log appends one partition after the
            other, marks last: after a crash between them a letter may be put back once more.

    Yields:
        How many letters each append held.
    """
    records: dict[TopicPartition, list[NewRecord]] = {}
    marks: dict[TopicPartition, list[NewRecord]] = {}
    n_letters = n_bytes = 0
    for letter, record in chosen:
        records.setdefault(letter.source, []).append(record)
        marks.setdefault(letter.place, []).append(NewRecord(b"", _mark(letter)))
        n_letters, n_bytes = n_letters + 1, n_bytes + len(record.value)
        if n_bytes >= _CHUNK_BYTES:
            put(records | marks)
            yield n_letters
            records, marks, n_letters, n_bytes = {}, {}, 0, 0
    if n_letters:
        put(records | marks)
        yield n_letters


def _mark(letter: Letter) -> bytes:
    place, offset = letter.place, letter.record.offset
    return encode(DeadLetter(**place._asdict(), offset=offset, code=REPLAYED, reason="", value=b""))
