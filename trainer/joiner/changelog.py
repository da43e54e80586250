"""What the rounds of a joiner on Kafka changed, as records of `freshrank.joiner-state`.

A round is one blob, cut into records that stay below the log's limit and stand together, as they
enter in one transaction:

| bytes | field (little endian) |
|--:|---|
| 2 | version |
| 4 | how many records of this round follow |
| … | the next piece of the blob: msgpack of `Round` |
"""

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from freshrank.errors import SchemaError, TransportError
from freshrank.transport.base import RECORD_BYTES_MAX, EventLog, NewRecord, TopicPartition
from trainer.joiner.changes import Changes, Rows

VERSION: Final = 1
_HEAD: Final = struct.Struct("<HI")
_PIECE_BYTES: Final = RECORD_BYTES_MAX - 1 - _HEAD.size
_READ_BYTES: Final = 8 << 20


class Round(msgspec.Struct, array_like=True):
    """One round.

    Attributes:
        log: Identity of the log whose offsets it names.
        fingerprint: What the stored requests depend on.
        rows: Rows as they were before the round, written once more so that earlier records can go.
        changes: What it changed.
    """

    log: str
    fingerprint: str
    rows: Rows
    changes: Changes


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Round)


def encode(one: Round) -> list[NewRecord]:
    """The records of a round, at least one."""
    blob = memoryview(_encoder.encode(one))
    starts = range(0, len(blob), _PIECE_BYTES)
    return [
        NewRecord(b"", _HEAD.pack(VERSION, n_left) + blob[start : start + _PIECE_BYTES])
        for start, n_left in zip(starts, reversed(range(len(starts))), strict=True)
    ]


def rounds_from(log: EventLog, place: TopicPartition, offset: int) -> Iterator[tuple[int, Round]]:
    """Every committed round from `offset` on, where one begins, with the offset behind it.

    Raises:
        SchemaError: a newer version wrote it (code `newer-version`).
        TransportError: a record is damaged (code `log-damaged`), or the log cannot be read.
    """
    log.end_offset(*place)  # what a log has told the end of, its reads do not miss
    pieces: list[bytes] = []
    while records := log.read(*place, offset, bytes_max=_READ_BYTES):
        for record in records:
            n_left = _n_left(record.value)
            pieces.append(record.value[_HEAD.size :])
            if n_left == 0:
                yield record.offset + 1, _decoded(b"".join(pieces), record.offset)
                pieces = []
        offset = records[-1].offset + 1


def _n_left(value: bytes) -> int:
    version, n_left = _HEAD.unpack_from(value)
    if version != VERSION:
        raise SchemaError(
            f"the joiner's changes are written in version {version}, this program reads {VERSION}: "
            "start the version that wrote them",
            code="newer-version",
        )
    return int(n_left)


def _decoded(blob: bytes, offset: int) -> Round:
    try:
        return _decoder.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TransportError(
            f"the joiner's changes that end at offset {offset} are damaged ({error}): begin with "
            "new topics, under another log.prefix",
            code="log-damaged",
        ) from error
