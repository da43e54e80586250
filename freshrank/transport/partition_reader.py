"""Reading one partition from its segment files, while this or another process writes them."""

import threading
from bisect import bisect_right
from pathlib import Path

from freshrank.errors import TransportError
from freshrank.transport.base import Record
from freshrank.transport.end_mark import EndMark
from freshrank.transport.files import disk_errors
from freshrank.transport.segments import SUFFIX, Segment, damaged


class PartitionReader:
    """The acknowledged records of one partition; follows the END file of the process that writes.

    Safe to use from several threads. A partition whose directory is not there yet is empty.
    """

    def __init__(self, topic: str, partition: int, directory: Path) -> None:
        self._topic = topic
        self.partition = partition
        self._directory = directory
        self._mark = EndMark(directory)
        self._refreshing = threading.Lock()
        # Both are replaced, never changed in place: readers take them without a lock, END first.
        self._end_offset = 0
        self._segments: tuple[Segment, ...] = ()

    def __str__(self) -> str:
        return f"{self._topic}:{self.partition}"

    def end_offset(self) -> int:
        """The offset after the last acknowledged record."""
        with disk_errors(f"read {self._mark.path}"), self._refreshing:
            offset = self._mark.read()
            if offset is None:
                if self._list_paths():
                    raise TransportError(
                        f"{self._mark.path} is missing: open the log for writing once, "
                        "that makes it anew",
                        code="log-damaged",
                    )
            elif offset != self._end_offset or not self._segments:
                self._segments = self._load_segments()
                self._end_offset = offset
            return self._end_offset

    def start_offset(self) -> int:
        """The first offset still kept."""
        with disk_errors(f"list {self._directory}"), self._refreshing:
            self._segments = self._load_segments()
        return self._first_offset()

    def read(self, offset: int, *, n_max: int, bytes_max: int) -> list[Record]:
        """Records from `offset` on; see `EventLog.read`."""
        end = self.end_offset()
        segments = self._segments
        self._check_range(offset, end)
        records: list[Record] = []
        i = bisect_right(segments, offset, key=lambda segment: segment.base_offset) - 1
        while i < len(segments) and offset < end and len(records) < n_max and bytes_max > 0:
            segment_end = segments[i + 1].base_offset if i + 1 < len(segments) else end
            n_wanted = min(n_max - len(records), min(segment_end, end) - offset)
            try:
                with disk_errors(f"read {segments[i].path}"):
                    part, n_bytes = self._read_segment(segments[i], offset, n_wanted, bytes_max)
            except TransportError:
                if records:  # hand out what is whole; the next read meets the error again
                    break
                raise
            records = records + part if records else part
            offset += len(part)
            bytes_max -= n_bytes
            if offset == segment_end:
                i += 1
        return records

    def close(self) -> None:
        """Release files."""
        self._mark.close()

    def _read_segment(
        self, segment: Segment, offset: int, n_max: int, bytes_max: int
    ) -> tuple[list[Record], int]:
        try:
            return segment.read(
                self._topic, self.partition, offset, n_max=n_max, bytes_max=bytes_max
            )
        except FileNotFoundError:
            # Retention was faster than this reader.
            self.start_offset()
            self._check_range(offset, self._end_offset)
            raise

    def _check_range(self, offset: int, end: int) -> None:
        first = self._first_offset()
        if offset < first:
            raise TransportError(
                f"offset {offset} of {self} was removed by retention: the log begins at {first}; "
                "start from there and count what is lost",
                code="offset-removed",
            )
        if offset > end:
            raise TransportError(
                f"offset {offset} of {self} lies beyond its end {end}: this reader's position "
                "belongs to another log, or the log lost records; check which log it points to",
                code="offset-beyond-end",
            )

    def _first_offset(self) -> int:
        segments = self._segments
        return segments[0].base_offset if segments else 0

    def _list_paths(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if path.suffix == SUFFIX)

    def _load_segments(self) -> tuple[Segment, ...]:
        """All segments on disk; those known keep their index."""
        known = {segment.path: segment for segment in self._segments}
        segments: list[Segment] = []
        for path in self._list_paths():
            try:
                segment = known.get(path) or Segment.open(path)
            except FileNotFoundError:  # removed since it was listed
                continue
            if path.stem != f"{segment.base_offset:020d}":
                raise damaged(path, 0)
            segments.append(segment)
        return tuple(segments)
