"""A copy of a local log as it is at one moment, taken while another process may write it.

The copy holds what was acknowledged and nothing behind it, so it needs no recovery. Of a producer
whose own state is older than its records it holds no more than that state knows.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from freshrank.errors import TransportError
from freshrank.transport.base import TOPICS, TopicPartition
from freshrank.transport.end_mark import EndMark
from freshrank.transport.files import disk_errors
from freshrank.transport.records import Header, scan_headers
from freshrank.transport.segments import SUFFIX, Segment, damaged

_CHUNK_BYTES: Final = 1 << 20  # longer than any record
# Each try but the last loses a race with retention, which looks once a minute.
_TRIES: Final = 10


class Limit(NamedTuple):
    """Where a producer's records end in a copy: before this sequence."""

    producer: str
    sequence: int


def copy_log(
    source: Path, target: Path, limits: Mapping[TopicPartition, Limit]
) -> dict[TopicPartition, tuple[int, int]]:
    """Copy every partition; consumer groups are left out.

    Args:
        source: Directory of the log.
        target: An empty directory.
        limits: Partitions that end where a producer's sequence does.

    Returns:
        The first offset and the end of each partition that has records or had some.

    Raises:
        TransportError: a segment is damaged, or the disk refused.
    """
    with disk_errors(f"copy the log in {source} to {target}"):
        shutil.copyfile(source / "log.json", target / "log.json")
        held = {}
        for topic in TOPICS:
            for directory in sorted((source / topic).glob("[0-9]*")):
                place = TopicPartition(topic, int(directory.name))
                copied = target / topic / directory.name
                offsets = _copy_partition(directory, copied, limits.get(place))
                if offsets is not None:
                    held[place] = offsets
        return held


def _copy_partition(directory: Path, target: Path, limit: Limit | None) -> tuple[int, int] | None:
    for _ in range(_TRIES):
        end = _end(directory)  # first: every record before it is in a segment that is there by now
        if end is None:
            return None
        target.mkdir(parents=True)
        try:
            segments = [Segment.open(path) for path in sorted(directory.glob(f"*{SUFFIX}"))]
            end = _copy_segments(segments, target, end, limit)
        except FileNotFoundError:  # removed by retention since it was listed
            shutil.rmtree(target)
            continue
        mark = EndMark(target)
        mark.create(end)
        mark.close()
        return segments[0].base_offset, end
    raise TransportError(
        f"retention removed segments of {directory} faster than they were copied: raise "
        "log.retention, or try again",
        code="log-busy",
    )


def _end(directory: Path) -> int | None:
    mark = EndMark(directory)
    end = mark.read()
    mark.close()
    return end


def _copy_segments(segments: list[Segment], target: Path, end: int, limit: Limit | None) -> int:
    """Copy what lies before `end` and the limit; returns where the copy ends."""
    for segment, behind in zip(segments, [*segments[1:], None], strict=True):
        if segment is not segments[0] and segment.base_offset >= end:
            break
        copy = target / segment.path.name
        if behind and behind.base_offset <= end and not _is_reached(behind, limit):
            shutil.copyfile(segment.path, copy)
            continue
        n_records, n_bytes = _extent(segment, end - segment.base_offset, limit)
        _copy_bytes(segment.path, copy, n_bytes)
        end = segment.base_offset + n_records
    return end


def _is_reached(segment: Segment, limit: Limit | None) -> bool:
    """Whether records at the limit or beyond it stand before this segment."""
    return limit is not None and segment.start.producers.get(limit.producer, -1) >= limit.sequence


def _extent(segment: Segment, n_max: int, limit: Limit | None) -> tuple[int, int]:
    """How many of the first `n_max` records lie before the limit, and the bytes up to their end."""
    n_records, position = 0, segment.data_position
    with segment.path.open("rb", buffering=0) as file:
        while n_records < n_max:
            base = position
            for header in scan_headers(os.pread(file.fileno(), _CHUNK_BYTES, base)):
                if n_records == n_max or _is_beyond(header, limit):
                    return n_records, position
                n_records += 1
                position = base + header.end
            if position == base:
                raise damaged(segment.path, position)
    return n_records, position


def _is_beyond(header: Header, limit: Limit | None) -> bool:
    if limit is None or header.producer.decode() != limit.producer:
        return False
    return header.sequence >= limit.sequence


def _copy_bytes(source: Path, target: Path, n_bytes: int) -> None:
    with source.open("rb") as file, target.open("wb") as copy:
        while n_bytes and (data := file.read(min(n_bytes, _CHUNK_BYTES))):
            copy.write(data)
            n_bytes -= len(data)
