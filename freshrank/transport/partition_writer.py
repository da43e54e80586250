"""Writing one partition: append, share fsyncs, roll segments, drop old ones, recover at open."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from freshrank.clock import Clock
from freshrank.errors import TransportError
from freshrank.transport.base import NewRecord
from freshrank.transport.files import disk_errors, make_directory, remove_temporary_files
from freshrank.transport.group_sync import GroupSync
from freshrank.transport.partition_reader import PartitionReader
from freshrank.transport.records import encode_records
from freshrank.transport.segments import Segment, SegmentStart, Tail

logger = logging.getLogger(__name__)

Fsync = Literal["always", "batch", "never"]

# Each segment header and each open lists all producers of the partition. They are stable names (one
# per joiner partition), so a thousand means that somebody makes up names.
_PRODUCERS_MAX: Final = 1_000

# A segment spans at most a quarter of the retention time, so no record outlives it by more.
_SPANS_PER_RETENTION: Final = 4


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """How a log is written.

    Attributes:
        fsync: `always` one fsync per append, `batch` concurrent appends share one, `never` leaves
            it to the system (a power cut loses records, a crash of the process does not).
        segment_bytes: A segment is closed before it grows beyond this.
        retention_ms: Records older than this are removed, whole segments at a time; None keeps all.
    """

    fsync: Fsync
    segment_bytes: int
    retention_ms: int | None


@dataclass(frozen=True, slots=True)
class Written:
    """Where a write went; it is not acknowledged yet."""

    first_offset: int
    n_ignored: int
    position: int
    end_offset: int
    generation: int


class PartitionWriter(PartitionReader):
    """The only writer of a partition, and a reader of it.

    `write`, `undo` and `release` are called with `lock` held; `sync` without, so that appends of
    several threads share one fsync.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        directory: Path,
        *,
        clock: Clock,
        settings: WriteSettings,
        on_growth: Callable[[], None],
    ) -> None:
        super().__init__(topic, partition, directory)
        self.lock = threading.Lock()
        self._clock = clock
        self._settings = settings
        self._is_durable = settings.fsync != "never"
        self._on_growth = on_growth
        self._group = GroupSync(self._sync_to)
        # The state after the last write, guarded by `lock`.
        self._is_closed = False
        self._tail: Tail | None = None
        self._next_offset = 0
        self._last_appended_at_ms = 0
        self._producers: dict[str, int] = {}
        if directory.is_dir():
            self._recover()

    def end_offset(self) -> int:
        """The offset after the last acknowledged record."""
        return self._end_offset

    def start_offset(self) -> int:
        """The first offset still kept."""
        return self._first_offset()

    def last_sequence(self, producer: str) -> int:
        """The highest sequence of `producer`, acknowledged before this returns; -1 without one."""
        with self.lock:
            self._ensure_usable()
            sequence = self._producers.get(producer, -1)
            written = self._written_nothing()
        self.sync(written)
        return sequence

    def write(
        self, records: Sequence[NewRecord], *, producer: str | None, first_sequence: int
    ) -> Written:
        """Write `records` behind the others, leaving out those whose sequence is already there.

        Raises:
            TransportError: a gap in the sequence, or the disk is full; nothing was written.
        """
        self._ensure_usable()
        n_ignored = self._n_ignored(producer, first_sequence, len(records))
        fresh = records[n_ignored:]
        if not fresh:
            return self._written_nothing(n_ignored)
        now_ms = max(self._clock.now_ms(), self._last_appended_at_ms)
        data = encode_records(
            fresh,
            appended_at_ms=now_ms,
            producer=(producer or "").encode(),
            first_sequence=first_sequence + n_ignored,
        )
        with disk_errors(f"append to {self} in {self._directory}"):
            tail = self._tail_for(len(data))
            position, first_offset = tail.position, self._next_offset
            tail.append(data, now_ms)
        self._next_offset += len(fresh)
        self._last_appended_at_ms = now_ms
        if producer is not None:
            self._producers[producer] = first_sequence + len(records) - 1
        generation = self._group.generation
        return Written(first_offset, n_ignored, position, self._next_offset, generation)

    def undo(self, written: Written) -> None:
        """Take back a write without producer, as another partition failed; `lock` is still held."""
        if self._tail is not None and written.end_offset > written.first_offset:
            with disk_errors(f"take back an append to {self}"):
                self._tail.cut(written.position)
            self._next_offset = written.first_offset

    def release(self) -> None:
        """Let what was written be synced and seen."""
        if self._tail is not None:
            self._group.release(self._next_offset, self._tail.position)

    def sync(self, written: Written) -> None:
        """Return when `written` is acknowledged: one caller syncs for all who wait.

        Raises:
            TransportError: the disk failed; the records are not in the log.
        """
        self._group.sync(written.end_offset, written.generation)

    def apply_retention(self) -> None:
        """Remove the segments whose newest record is older than the retention time."""
        retention_ms = self._settings.retention_ms
        if retention_ms is None:
            return
        now_ms = self._clock.now_ms()
        with self.lock, disk_errors(f"remove old segments of {self}"):
            self._ensure_usable()
            # First what needs no room, as rolling does.
            self._drop_segments(now_ms - retention_ms)
            first_ms = self._tail.first_appended_at_ms if self._tail else None
            if first_ms is not None and now_ms - first_ms > retention_ms // _SPANS_PER_RETENTION:
                self._roll()
                self._drop_segments(now_ms - retention_ms)

    def close(self) -> None:
        """Sync what was written and release files."""
        with self.lock:
            self._is_closed = True
            try:
                if not self._group.has_failed:
                    self.sync(self._written_nothing())
            finally:
                if self._tail is not None:
                    self._tail.close()
                    self._tail = None
                super().close()

    def _ensure_usable(self) -> None:
        if self._is_closed:
            raise TransportError(f"{self} is closed", code="log-closed")
        if self._group.has_failed:
            self._roll_back()

    def _written_nothing(self, n_ignored: int = 0) -> Written:
        """A place in the log that is acknowledged once everything written so far is."""
        offset = self._next_offset
        return Written(offset, n_ignored, 0, offset, self._group.generation)

    def _n_ignored(self, producer: str | None, first_sequence: int, n_records: int) -> int:
        if producer is None:
            return 0
        last = self._producers.get(producer, -1)
        if first_sequence > last + 1:
            raise TransportError(
                f"producer {producer!r} has sequence {last} in {self} and now sends "
                f"{first_sequence}: {first_sequence - last - 1} records are missing; "
                f"send from sequence {last + 1}",
                code="sequence-gap",
            )
        if producer not in self._producers and len(self._producers) >= _PRODUCERS_MAX:
            raise TransportError(
                f"{self} already has {_PRODUCERS_MAX} producers: a producer needs a name that "
                "stays the same over restarts",
                code="too-many-producers",
            )
        return min(last + 1 - first_sequence, n_records)

    def _sync_to(self, offset: int) -> None:
        """Make everything before `offset` durable, then tell everybody."""
        assert self._tail is not None  # noqa: S101 - it was written to, and close waits for us
        with disk_errors(f"sync {self} in {self._directory}"):
            if self._is_durable:
                self._tail.sync()
            self._mark.write(offset)
        self._end_offset = offset
        self._on_growth()

    def _tail_for(self, n_bytes: int) -> Tail:
        """A tail with room for `n_bytes`."""
        if self._tail is None:
            make_directory(self._directory, is_durable=self._is_durable)
            self._mark.create(0)
            return self._begin_segment()
        is_full = self._tail.position + n_bytes > self._settings.segment_bytes
        return self._roll() if is_full and not self._tail.is_empty else self._tail

    def _roll(self) -> Tail:
        """Close the last segment, all of it acknowledged, and begin the next one."""
        self.sync(self._written_nothing())
        return self._begin_segment()

    def _begin_segment(self) -> Tail:
        start = SegmentStart(self._next_offset, self._last_appended_at_ms, dict(self._producers))
        segment = Segment.create(self._directory, start, is_durable=self._is_durable)
        tail = Tail(segment, segment.data_position, None)
        if self._tail is not None:
            self._tail.close()
        self._tail = tail
        self._segments = (*self._segments, segment)
        self._group.move(tail.position)
        return tail

    def _drop_segments(self, oldest_ms: int) -> None:
        """Remove leading segments that hold nothing as new as `oldest_ms`."""
        while len(self._segments) > 1:
            newest_ms = self._segments[1].start.last_appended_at_ms
            if newest_ms >= oldest_ms:
                break
            oldest, self._segments = self._segments[0], self._segments[1:]
            oldest.path.unlink(missing_ok=True)
            logger.info("segment=%s removed newest_ms=%d", oldest.path, newest_ms)

    def _roll_back(self) -> None:
        """After a failed sync: forget what was not acknowledged and start from what is on disk."""
        with disk_errors(f"take back what {self} could not sync"):
            assert self._tail is not None  # noqa: S101 - a sync needs one
            self._tail.cut(self._group.acknowledged[1])
        self._recover()

    def _recover(self) -> None:
        """Take over the state of the last segment, without its torn tail.

        Raises:
            TransportError: acknowledged records are damaged or missing.
        """
        with disk_errors(f"open {self} in {self._directory}"):
            remove_temporary_files(self._directory)
            self._segments = self._load_segments()
            acknowledged = self._mark.read() or 0
            if not self._segments and acknowledged == 0:
                return
            scan = self._segments[-1].scan() if self._segments else None
            end = self._segments[-1].base_offset + scan.n_records if scan else 0
            if scan is None or (end < acknowledged and self._is_durable):
                raise TransportError(
                    f"{self} in {self._directory} lost acknowledged records: its last segment "
                    f"holds whole records up to offset {end}, END says {acknowledged}. Restore "
                    "the directory from a backup, or delete END to go on without them",
                    code="log-damaged",
                )
            if self._tail is not None:
                self._tail.close()
            self._tail = tail = Tail.recover(self._segments[-1], scan)
            if self._is_durable:
                tail.sync()
            self._mark.create(end)
        self._next_offset = self._end_offset = end
        self._last_appended_at_ms = scan.last_appended_at_ms
        self._producers = scan.producers
        self._group.restart(end, tail.position)
