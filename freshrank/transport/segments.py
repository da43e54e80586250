"""One segment: a file of records, named after the offset of its first one.

The file begins with what a reader cannot see from its records: the sequences of all producers and
the newest append time when it was begun. So producers stay known after retention removed everything
they wrote, and opening a log reads its last segment only.

`FRSEGM` + version u16 | length u32 | crc32 u32 | msgpack of `SegmentStart` | records …
"""

import logging
import os
import struct
import threading
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from freshrank.errors import TransportError
from freshrank.transport.base import Record
from freshrank.transport.files import disk_errors, replace_file, write_all
from freshrank.transport.records import LENGTH_MAX, parse_records, scan_headers

logger = logging.getLogger(__name__)

SUFFIX: Final = ".log"
_MAGIC: Final = b"FRSEGM"
_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<6sHII")

# Read in steps of 1 MiB: larger than any record (LENGTH_MAX), so each step makes progress.
_CHUNK_BYTES: Final = 1 << 20
assert _CHUNK_BYTES > LENGTH_MAX  # noqa: S101 - a damaged build must not start

# One position kept per 64 records: a read walks over 63 headers at most (about 40 µs), and
# a segment of 64 MiB with records of 200 bytes costs 40 KiB of memory.
_INDEX_EVERY: Final = 64

# Appends make the file longer, and fdatasync covers the length; macOS has only fsync.
_sync_data = getattr(os, "fdatasync", os.fsync)


class SegmentStart(msgspec.Struct, frozen=True):
    """The state of the partition at the first record of a segment."""

    base_offset: int
    last_appended_at_ms: int = 0
    producers: dict[str, int] = {}


@dataclass(slots=True)
class Scan:
    """What the records of a segment add up to."""

    n_records: int
    end_position: int
    file_bytes: int
    first_appended_at_ms: int | None
    last_appended_at_ms: int
    producers: dict[str, int]


class Segment:
    """Reads one segment file. Safe to use from several threads."""

    def __init__(self, path: Path, start: SegmentStart, data_position: int) -> None:
        self.path = path
        self.start = start
        self.data_position = data_position
        self._lock = threading.Lock()
        # Position of record 0, 64, 128 …; as far as somebody walked.
        self._index = array("Q", [data_position])

    @property
    def base_offset(self) -> int:
        """Offset of the first record."""
        return self.start.base_offset

    @classmethod
    def create(cls, directory: Path, start: SegmentStart, *, is_durable: bool) -> Self:
        """Begin an empty segment.

        Raises:
            OSError: The disk refused; nothing was left behind.
        """
        body = msgspec.msgpack.encode(start)
        path = directory / segment_name(start.base_offset)
        prefix = _PREFIX.pack(_MAGIC, _VERSION, len(body), zlib.crc32(body))
        replace_file(path, prefix + body, is_durable=is_durable)
        return cls(path, start, len(prefix) + len(body))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing segment.

        Raises:
            TransportError: its beginning is damaged, or a newer version wrote it.
            FileNotFoundError: it is gone.
        """
        with path.open("rb", buffering=0) as file:
            prefix = os.pread(file.fileno(), _PREFIX.size, 0)
            if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
                raise damaged(path, 0)
            _, version, length, crc = _PREFIX.unpack(prefix)
            body = os.pread(file.fileno(), length, _PREFIX.size)
        if version != _VERSION:
            raise TransportError(
                f"{path} has format {version}, this program reads {_VERSION}: "
                "open the log with the version that wrote it",
                code="newer-version",
            )
        if len(body) != length or zlib.crc32(body) != crc:
            raise damaged(path, 0)
        try:
            start = msgspec.msgpack.decode(body, type=SegmentStart)
        except msgspec.DecodeError as error:
            raise damaged(path, _PREFIX.size) from error
        return cls(path, start, _PREFIX.size + length)

    def scan(self) -> Scan:
        """Walk over all whole records; what follows the last one is torn or damaged."""
        producers = dict(self.start.producers)
        index = array("Q")
        position = self.data_position
        n_records = 0
        first_ms: int | None = None
        last_ms = self.start.last_appended_at_ms
        with disk_errors(f"read {self.path}"), self.path.open("rb", buffering=0) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            while True:
                base = position
                for header in scan_headers(os.pread(file.fileno(), _CHUNK_BYTES, base)):
                    if n_records % _INDEX_EVERY == 0:
                        index.append(position)
                    n_records += 1
                    position = base + header.end
                    last_ms = header.appended_at_ms
                    if first_ms is None:
                        first_ms = last_ms
                    if header.producer:
                        producers[header.producer.decode()] = header.sequence
                if position == base:
                    break
        with self._lock:
            self._index = index or array("Q", [self.data_position])
        return Scan(n_records, position, file_bytes, first_ms, last_ms, producers)

    def read(
        self, topic: str, partition: int, offset: int, *, n_max: int, bytes_max: int
    ) -> tuple[list[Record], int]:
        """Records from `offset` on; all that are asked for are known to be in the file.

        Returns:
            At least one record, and the bytes they take.

        Raises:
            TransportError: the record at `offset` is damaged.
            FileNotFoundError: retention removed the file.
        """
        records: list[Record] = []
        n_bytes = 0
        with self.path.open("rb", buffering=0) as file:
            position = self._seek(file.fileno(), offset)
            while len(records) < n_max and n_bytes < bytes_max:
                data = os.pread(file.fileno(), _CHUNK_BYTES, position + n_bytes)
                part, n_part = parse_records(
                    data,
                    topic,
                    partition,
                    offset + len(records),
                    n_max=n_max - len(records),
                    bytes_max=bytes_max - n_bytes,
                )
                if not part:
                    break
                records = records + part if records else part
                n_bytes += n_part
        if not records:
            raise damaged(self.path, position)
        return records, n_bytes

    def _seek(self, descriptor: int, offset: int) -> int:
        """Position of the record at `offset`; walks on from the nearest known one."""
        ordinal = offset - self.base_offset
        with self._lock:
            entry = min(ordinal // _INDEX_EVERY, len(self._index) - 1)
            position = self._index[entry]
            n_passed = entry * _INDEX_EVERY
            while n_passed < ordinal:
                base = position
                for header in scan_headers(os.pread(descriptor, _CHUNK_BYTES, base)):
                    position = base + header.end
                    n_passed += 1
                    if n_passed == len(self._index) * _INDEX_EVERY:
                        self._index.append(position)
                    if n_passed == ordinal:
                        break
                if position == base:
                    raise damaged(self.path, position)
        return position


class Tail:
    """Writes one segment file. Its caller sees to it that one thread at a time does.

    Attributes:
        segment: The segment.
        position: Where the next record goes, in bytes.
        first_appended_at_ms: Of its first record; None while it is empty.
    """

    def __init__(self, segment: Segment, position: int, first_appended_at_ms: int | None) -> None:
        self.segment = segment
        self.position = position
        self.first_appended_at_ms = first_appended_at_ms
        self._descriptor = os.open(segment.path, os.O_RDWR)

    @classmethod
    def recover(cls, segment: Segment, scan: Scan) -> Self:
        """Go on behind the last whole record that `scan` found; the rest is cut off."""
        tail = cls(segment, scan.end_position, scan.first_appended_at_ms)
        n_torn = scan.file_bytes - scan.end_position
        if n_torn > 0:
            logger.warning("segment=%s torn_bytes=%d cut", segment.path, n_torn)
            tail.cut(scan.end_position)
        return tail

    @property
    def is_empty(self) -> bool:
        """True while it holds no record."""
        return self.position == self.segment.data_position

    def append(self, data: bytes, appended_at_ms: int) -> None:
        """Write `data` behind the rest, or nothing of it.

        Raises:
            OSError: The disk refused.
        """
        try:
            write_all(self._descriptor, data, self.position)
        except OSError:
            os.ftruncate(self._descriptor, self.position)
            raise
        self.position += len(data)
        if self.first_appended_at_ms is None:
            self.first_appended_at_ms = appended_at_ms

    def cut(self, position: int) -> None:
        """Drop everything from byte `position` on."""
        os.ftruncate(self._descriptor, position)
        self.position = position
        if self.is_empty:
            self.first_appended_at_ms = None

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        _sync_data(self._descriptor)

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


def segment_name(base_offset: int) -> str:
    """File name of the segment that begins at `base_offset`; sorts as the offsets do."""
    return f"{base_offset:020d}{SUFFIX}"


def damaged(path: Path, position: int) -> TransportError:
    """The error of a segment whose bytes at `position` are not what was written."""
    return TransportError(
        f"{path} is damaged at byte {position}: restore this file from a backup, or, to go on "
        "without its remaining records, move it and every later segment of this partition away "
        "and delete the file END beside it",
        code="log-damaged",
    )
