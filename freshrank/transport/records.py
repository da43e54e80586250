"""The bytes of one record in a segment file, little-endian.

| bytes | field |
|---|---|
| 4 | crc32 of everything after it |
| 4 | length of the record, these eight bytes included |
| 8 | appended_at, milliseconds since 1970 UTC |
| 8 | sequence of the producer, -1 without one |
| 2 | length of the key |
| 1 | length of the producer's name in UTF-8, 0 without one |
| 1 | mark 0xF5, so that a run of zeros is never a record |
| … | producer, key, value |
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from freshrank.transport.base import RECORD_BYTES_MAX, NewRecord, Record

_CRC: Final = struct.Struct("<I")
_BODY: Final = struct.Struct("<IqqHBB")
_HEADER: Final = struct.Struct("<IIqqHBB")
_HEADER_BYTES: Final = _HEADER.size
_MARK: Final = 0xF5

KEY_BYTES_MAX: Final = 0xFFFF
PRODUCER_BYTES_MAX: Final = 0xFF
# 28 + 255 + 65,535 + 524,288 bytes: below 1 MiB, so a chunk of 1 MiB always holds a whole record.
LENGTH_MAX: Final = _HEADER_BYTES + PRODUCER_BYTES_MAX + KEY_BYTES_MAX + RECORD_BYTES_MAX


class Header(NamedTuple):
    """What a scan needs of a record without its key and value."""

    end: int
    appended_at_ms: int
    sequence: int
    producer: bytes


def encode_records(
    records: Sequence[NewRecord],
    *,
    appended_at_ms: int,
    producer: bytes = b"",
    first_sequence: int = -1,
) -> bytes:
    """The bytes of `records`, one after another.

    Args:
        records: With keys and values inside their limits.
        appended_at_ms: The same for all.
        producer: Name in UTF-8; empty without one.
        first_sequence: Of the first record, counting up by one; ignored without a producer.
    """
    parts: list[bytes] = []
    n_producer = len(producer)
    step = 1 if producer else 0
    sequence = first_sequence if producer else -1
    for record in records:
        key, value = record.key, record.value
        n_key = len(key)
        length = _HEADER_BYTES + n_producer + n_key + len(value)
        head = _BODY.pack(length, appended_at_ms, sequence, n_key, n_producer, _MARK)
        body = b"".join((head, producer, key, value))
        parts.append(_CRC.pack(zlib.crc32(body)))
        parts.append(body)
        sequence += step
    return b"".join(parts)


def parse_records(
    data: bytes, topic: str, partition: int, offset: int, *, n_max: int, bytes_max: int
) -> tuple[list[Record], int]:
    """Whole, undamaged records from the start of `data`.

    Args:
        data: Bytes of a segment from the beginning of a record.
        topic: Of the records.
        partition: Of the records.
        offset: Of the first record.
        n_max: At most so many records.
        bytes_max: No record that starts after so many bytes.

    Returns:
        The records, and the bytes they take. It ends before the first that is cut off or damaged.
    """
    records: list[Record] = []
    n_bytes = len(data)
    stop = min(n_bytes - _HEADER_BYTES, bytes_max - 1)
    position = 0
    unpack, crc32 = _HEADER.unpack_from, zlib.crc32
    last = offset + n_max
    while position <= stop and offset < last:
        crc, length, appended_at_ms, _, n_key, n_producer, mark = unpack(data, position)
        end = position + length
        start = position + _HEADER_BYTES + n_producer
        middle = start + n_key
        if end > n_bytes or middle > end or mark != _MARK:
            break
        if crc32(data[position + 4 : end]) != crc:
            break
        records.append(
            Record(topic, partition, offset, data[start:middle], data[middle:end], appended_at_ms)
        )
        offset += 1
        position = end
    return records, position


def scan_headers(data: bytes) -> Iterator[Header]:
    """Headers of the whole, undamaged records from the start of `data`."""
    n_bytes = len(data)
    position = 0
    unpack, crc32 = _HEADER.unpack_from, zlib.crc32
    while position <= n_bytes - _HEADER_BYTES:
        crc, length, appended_at_ms, sequence, n_key, n_producer, mark = unpack(data, position)
        end = position + length
        start = position + _HEADER_BYTES
        if end > n_bytes or start + n_producer + n_key > end or mark != _MARK:
            return
        if crc32(data[position + 4 : end]) != crc:
            return
        yield Header(end, appended_at_ms, sequence, data[start : start + n_producer])
        position = end
