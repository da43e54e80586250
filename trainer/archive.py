"""The archive: every record of `freshrank.examples` once more, as Parquet by hour.

```
hour=2026-11-21T10/part-<partition>-<first offset>-<last offset>-<log>.parquet
```
The writer follows the topic. A file's name says which offsets of which log it covers and a file
appears whole or not at all, so names alone tell where to go on: nothing is lost or doubled by a
crash. The hour is that of the joiner's watermark, which never goes back: files close, and their
order is that of the examples. Rows keep their own times. docs/archive.md says what is in a file.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from freshrank import examples
from freshrank.clock import Clock
from freshrank.errors import DataError
from freshrank.examples import BatchInfo
from freshrank.settings import ArchiveSettings
from freshrank.transport.base import EXAMPLES, EventLog, Record, TopicPartition
from freshrank.transport.files import disk_errors, make_directory, sync_directory
from trainer.archive_claims import Claims
from trainer.archive_files import PartName, hour_of, names_of, not_overtaken, part_names
from trainer.archive_part import OpenPart, placed

logger = logging.getLogger(__name__)

# What is not in a file yet is only in the log: five minutes are far below any retention, and twelve
# files an hour are few.
FLUSH_S: Final = 300.0
_RECORDS_MAX, _BYTES_MAX = 1_000, 4 << 20
_LAST_READS: Final = 10


class Archiver:
    """Follows the examples of some partitions into Parquet files.

    A partition that another process writes is followed once that has ended. One thread at a time
    may call `step` and `close`; the others may be called from any.

    Args:
        settings: Where, and for how long.
        log: Whose examples.
        clock: When a file has waited long enough.
        wanted: The partitions to follow from the next step on; None for all, always.

    Raises:
        TransportError: the directory cannot be read or made.
    """

    def __init__(
        self,
        settings: ArchiveSettings,
        log: EventLog,
        clock: Clock,
        *,
        wanted: Callable[[], Collection[int]] | None = None,
    ) -> None:
        self._directory = settings.dir
        self._keep_ms = None if settings.keep is None else settings.keep.total_seconds() * 1_000
        self._log = log
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._parts: dict[int, OpenPart] = {}
        # Per partition: the next record to read, and the first that is in no whole file.
        self._next: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._hours: dict[int, str] = {}
        self._claims = Claims(self._directory, log.identity)
        self._wanted = wanted or partial(range, log.n_partitions(EXAMPLES))
        self._waiting: set[int] = set()
        with disk_errors(f"open the archive in {self._directory}"):
            make_directory(self._directory)
        try:
            self._follow_wanted()
        except BaseException:
            self.release()
            raise

    def step(self, timeout_s: float) -> int:
        """Archive some records of every partition; wait if there are none.

        Returns:
            Records archived.

        Raises:
            DataError: examples of a newer format: the archiver must stop.
            TransportError: the log cannot be read, or the disk refused; calling again goes on from
                the last whole file.
        """
        self._follow_wanted()
        n_records = sum(self._follow(partition) for partition in list(self._next))
        if not n_records:
            self._log.wait(self.positions(), timeout_s=timeout_s)
        for partition, part in list(self._parts.items()):
            if self._clock.monotonic_s() - part.opened_s >= FLUSH_S:
                self._finish(partition)
        return n_records

    def close(self) -> None:
        """Archive what stands in the log, finish every file and leave the partitions to others.

        Raises:
            TransportError: as `step`; the next archiver goes on from the last whole file.
        """
        try:
            self._follow_wanted()
            ends = {one: self._log.end_offset(EXAMPLES, one) for one in self._next}
            for partition, end in ends.items():  # not what comes meanwhile
                while self._next[partition] < end and self._follow(partition):
                    pass
            for partition in list(self._parts):
                self._finish(partition)
        finally:
            self.release()

    def release(self) -> None:
        """Leave the partitions to others, without what is in no whole file."""
        self._claims.release_all()

    def accounting(self) -> dict[str, int]:
        """Totals since the start.

        `archive_files` and the `archive_rows` in them, `archive_gap_records` that the log removed
        before they were archived, `archive_unreadable` records that are no examples.
        """
        return dict(self._counts)

    def positions(self) -> dict[TopicPartition, int]:
        """The next record to read of each partition; from any thread."""
        return {TopicPartition(EXAMPLES, p): offset for p, offset in self._next.copy().items()}

    def _follow_wanted(self) -> None:
        wanted = set(self._wanted())
        for partition in list(self._next):
            if partition not in self._claims:
                del self._next[partition]
            elif partition not in wanted:
                self._leave(partition)
        for partition in sorted(wanted - self._next.keys()):
            with disk_errors(f"open the archive in {self._directory}"):
                is_mine = self._claims.take(partition)
            if is_mine:
                self._waiting.discard(partition)
                self._begin(partition)
            elif partition not in self._waiting:
                self._waiting.add(partition)
                logger.info("archive=waiting partition=%d", partition)

    def _begin(self, partition: int) -> None:
        """Go on behind the last whole file of a partition that is written here now."""
        log = self._log
        try:
            own = names_of(self._directory, log.identity, partition)
            own = not_overtaken(self._directory, own, log.end_offset(EXAMPLES, partition))
            start = log.start_offset(EXAMPLES, partition)
        except BaseException:
            self._claims.release(partition)
            raise
        self._hours[partition] = own[-1].hour if own else ""
        self._done[partition] = max((name.last + 1 for name in own), default=start)
        self._next[partition] = self._done[partition]

    def _leave(self, partition: int) -> None:
        """Finish its file with what is in the log, a few seconds' work of it."""
        try:
            with self._whole_files(partition):
                end = self._log.end_offset(EXAMPLES, partition)
                for _ in range(_LAST_READS):
                    if self._next[partition] >= end or not self._follow(partition):
                        break
                self._finish(partition)
        finally:
            self._next.pop(partition, None)
            self._claims.release(partition)

    def _follow(self, partition: int) -> int:
        start = self._log.start_offset(EXAMPLES, partition)
        n_missed = start - self._next[partition]
        if n_missed > 0:
            self._counts["archive_gap_records"] += n_missed
            logger.error(
                "archive=gap partition=%d offsets=%d..%d: the log removed them before they were "
                "archived; raise log.retention above the longest pause",
                *(partition, self._next[partition], start - 1),
            )
            self._finish(partition)
            self._done[partition] = self._next[partition] = start
        records = self._log.read(
            EXAMPLES, partition, self._next[partition], n_max=_RECORDS_MAX, bytes_max=_BYTES_MAX
        )
        with self._whole_files(partition):
            for record in records:
                self._add(record)
        return len(records)

    def _add(self, record: Record) -> None:
        partition = record.partition
        part = self._parts.get(partition)
        try:
            rows, info = examples.unpack(record.value)
        except DataError as error:
            if error.code == "newer-version":
                raise
            self._counts["archive_unreadable"] += 1
            logger.error("archive=unreadable offset=%d error=%s", record.offset, error)
            self._next[partition] = record.offset + 1
            return
        rows = placed(rows, record)
        hour = max(self._hours[partition], hour_of(info.watermark_ms))
        if part is not None and not part.fits(rows, info, hour):
            self._finish(partition)
            part = None
        if part is None:
            part = self._open(record, rows.schema, info, hour)
        part.add(rows, len(record.value))
        for place, offset in info.offsets.items():
            part.offsets[place] = max(part.offsets.get(place, 0), offset)
        self._next[partition] = record.offset + 1

    def _open(self, record: Record, schema: pa.Schema, info: BatchInfo, hour: str) -> OpenPart:
        partition = record.partition
        self._hours[partition] = hour
        path = self._claims.temporary(partition)
        part = self._parts[partition] = OpenPart(
            path=path,
            hour=hour,
            opened_s=self._clock.monotonic_s(),
            schema_hash=info.schema_hash,
            schema=schema,
            writer=pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True),
        )
        return part

    def _finish(self, partition: int) -> None:
        """Complete the partition's file and put it in its place."""
        part = self._parts.get(partition)
        if part is None:
            return
        with self._whole_files(partition):
            self._claims.check(partition)  # whoever takes it from now on removes the file
            own = names_of(self._directory, self._log.identity, partition)
            if own and own[-1].last >= self._done[partition]:
                raise self._claims.lost(partition)  # who took it has given it back
            part.write_group()
            last = self._next[partition] - 1
            name = PartName(part.hour, partition, self._done[partition], last, self._log.identity)
            part.writer.add_key_value_metadata(part.info.encode())
            part.writer.close()
            sync_directory(part.path)  # syncs a file as well
            target = self._directory / name.path
            make_directory(target.parent)
            part.path.replace(target)
            self._done[partition] = self._next[partition]  # whatever follows: its name counts now
            del self._parts[partition]
            sync_directory(target.parent)
        self._counts["archive_files"] += 1
        self._counts["archive_rows"] += part.n_rows
        self._drop_old(part.hour)

    @contextlib.contextmanager
    def _whole_files(self, partition: int) -> Iterator[None]:
        """Whatever fails inside, the partition goes on behind its last whole file."""
        try:
            with disk_errors(f"write the archive in {self._directory}"):
                yield
        except BaseException:
            self._next[partition] = self._done[partition]
            part = self._parts.pop(partition, None)
            if part is not None:
                with contextlib.suppress(OSError, pa.ArrowException):
                    part.writer.close()
            raise

    def _drop_old(self, newest: str) -> None:
        """Remove whole hours, the oldest first: what a crash leaves has no gap."""
        if self._keep_ms is None:
            return
        newest_ms = datetime.fromisoformat(f"{newest}:00+00:00").timestamp() * 1_000
        oldest = hour_of(int(newest_ms - self._keep_ms))
        with disk_errors(f"remove old hours from {self._directory}"):
            for name in part_names(self._directory):
                if name.hour < oldest:
                    path = self._directory / name.path
                    path.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # the hour has more files
                        path.parent.rmdir()
