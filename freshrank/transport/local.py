"""The event log in a directory of this machine: one process writes, any number read.

```
log.json                                       format, number of partitions, identity
LOCK                                           held by the process that writes
groups/<group>.json                            committed offsets
<topic>/<partition>/00000000000000000000.log   segments, named after their first offset
<topic>/<partition>/END                        acknowledged end offset
```
`local_copy` copies it beside the process that writes. Runs where `flock` does: Linux and macOS.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from freshrank.clock import Clock
from freshrank.errors import TransportError
from freshrank.transport.base import (
    AGELESS_TOPICS,
    SINGLE_PARTITION_TOPICS,
    TOPICS,
    NewRecord,
    Record,
    TopicPartition,
)
from freshrank.transport.checks import check_append, check_partition, check_topic
from freshrank.transport.consumer_groups import ConsumerGroups
from freshrank.transport.local_checks import check_meta, take_lock
from freshrank.transport.partition_reader import PartitionReader
from freshrank.transport.partition_writer import Fsync, PartitionWriter, WriteSettings, Written
from freshrank.transport.partitioner import partition_of_key

logger = logging.getLogger(__name__)

# 64 MiB is what an open reads per partition at most: 0.2 s for records of 200 bytes.
SEGMENT_BYTES: Final = 64 * 1024 * 1024
# Another process' appends are seen after 5 ms on average; a look costs about 1 µs a partition.
_POLL_S: Final = 0.01
# Retention is counted in hours; looking once a minute is exact enough and costs nothing.
_RETENTION_CHECK_MS: Final = 60_000


class LocalLog:
    """An `EventLog` of append-only segment files.

    Args:
        directory: Holds everything; made if it is not there and the log is writable.
        clock: Tells `appended_at` and the age of segments. Waiting is in real time, always.
        n_partitions: Of every topic but `SINGLE_PARTITION_TOPICS`; 1 to 4,096. It is fixed at the
            first open: another number would send the records of one request to different places.
        fsync: See `WriteSettings`.
        segment_bytes: Size at which a segment is closed.
        retention_ms: Age at which whole segments are removed, but those of `AGELESS_TOPICS`;
            None keeps everything.
        writable: False reads what another process writes, and takes no lock.

    Raises:
        TransportError: another process writes (code `log-in-use`), the number of partitions
            differs (`log-partitions`), acknowledged records are damaged (`log-damaged`).
    """

    unacknowledged_bytes: Final = 0  # whoever appends waits until it is durable

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        n_partitions: int = 1,
        fsync: Fsync = "batch",
        segment_bytes: int = SEGMENT_BYTES,
        retention_ms: int | None = None,
        writable: bool = True,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._n_partitions = n_partitions
        self._fsync = fsync
        self._is_closed = False
        self._growth = threading.Condition()
        self._groups = ConsumerGroups(directory / "groups")
        self._readers: dict[TopicPartition, PartitionReader] = {}
        self._writers: dict[TopicPartition, PartitionWriter] = {}
        self._next_retention_ms = 0
        self._has_retention = writable and retention_ms is not None
        self._lock = take_lock(directory) if writable else None
        try:
            self.identity = check_meta(directory, n_partitions, writable=writable)
            self._open_partitions(WriteSettings(fsync, segment_bytes, retention_ms), writable)
            self._apply_retention()
        except BaseException:
            self.close()
            raise

    def n_partitions(self, topic: str) -> int:
        """Partitions of `topic`."""
        check_topic(topic)
        return 1 if topic in SINGLE_PARTITION_TOPICS else self._n_partitions

    def partition_of(self, topic: str, key: bytes) -> int:
        """The partition that records with `key` go to."""
        return partition_of_key(key, self.n_partitions(topic))

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        partition: int | None = None,
        producer: str | None = None,
        first_sequence: int | None = None,
    ) -> list[tuple[int, int]]:
        """Append durably; see `EventLog.append`.

        A refused append leaves nothing behind in any partition, unless a disk fails while syncing:
        then partitions synced before keep their part.
        """
        check_append(topic, records, partition, producer, first_sequence)
        spread = self._spread(topic, records, partition)
        self._apply_retention()
        with contextlib.ExitStack() as stack:
            # Always in the same order, so that two appends never wait for each other.
            for writer in spread:
                stack.enter_context(writer.lock)
            written = _write(spread, records, producer, first_sequence or 0)
            if self._fsync != "always":
                stack.close()  # others write meanwhile, and one sync serves all
            for writer, done in written.items():
                writer.sync(done)
        return _places(spread, written, len(records))

    def last_sequence(self, topic: str, partition: int, producer: str) -> int:
        """The highest sequence this producer has in the partition; -1 when it has none."""
        return self._writer(topic, partition).last_sequence(producer)

    def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        n_max: int = 1_000,
        bytes_max: int = 1 << 24,
    ) -> list[Record]:
        """Records from `offset` on; see `EventLog.read`."""
        return self._reader(topic, partition).read(offset, n_max=n_max, bytes_max=bytes_max)

    def start_offset(self, topic: str, partition: int) -> int:
        """The first offset still kept."""
        return self._reader(topic, partition).start_offset()

    def end_offset(self, topic: str, partition: int) -> int:
        """The offset the next record will get."""
        return self._reader(topic, partition).end_offset()

    def wait(self, positions: Mapping[TopicPartition, int], *, timeout_s: float) -> bool:
        """Block until any of the logs grows beyond its given offset; False when time ran out."""
        readers = [(self._reader(*place), offset) for place, offset in positions.items()]
        deadline_s = time.monotonic() + timeout_s
        self._apply_retention()
        with self._growth:
            while not self._is_closed:
                if any(reader.end_offset() > offset for reader, offset in readers):
                    return True
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._growth.wait(left_s if self._writers else min(left_s, _POLL_S))
        return False

    def lag(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Records between each position and the end of its partition."""
        return {place: self.end_offset(*place) - at for place, at in positions.items()}

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Store a consumer group's next offsets; places not named keep theirs."""
        self._groups.commit(group, offsets)

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """The group's stored offsets; empty when it has none."""
        return self._groups.committed(group)

    def close(self) -> None:
        """Flush and release files. Waiting readers return."""
        with self._growth:
            self._is_closed = True
            self._growth.notify_all()
        with contextlib.ExitStack() as stack:
            if self._lock is not None:
                stack.callback(os.close, self._lock)
                self._lock = None
            for reader in self._readers.values():
                stack.callback(reader.close)

    def _open_partitions(self, settings: WriteSettings, writable: bool) -> None:
        for topic in TOPICS:
            for partition in range(self.n_partitions(topic)):
                place = TopicPartition(topic, partition)
                directory = self._directory / topic / str(partition)
                if writable:
                    self._readers[place] = self._writers[place] = PartitionWriter(
                        topic,
                        partition,
                        directory,
                        clock=self._clock,
                        settings=settings,
                        on_growth=self._wake,
                    )
                else:
                    self._readers[place] = PartitionReader(topic, partition, directory)

    def _wake(self) -> None:
        with self._growth:
            self._growth.notify_all()

    def _apply_retention(self) -> None:
        now_ms = self._clock.now_ms()
        if self._has_retention and now_ms >= self._next_retention_ms:
            self._next_retention_ms = now_ms + _RETENTION_CHECK_MS
            aging = [w for place, w in self._writers.items() if place.topic not in AGELESS_TOPICS]
            for writer in aging:
                try:
                    writer.apply_retention()
                except TransportError as error:  # no reason to refuse an append or a read
                    logger.warning("partition=%s retention failed: %s", writer, error)

    def _reader(self, topic: str, partition: int) -> PartitionReader:
        n_partitions = self.n_partitions(topic)
        if self._is_closed:
            raise TransportError(f"the log in {self._directory} is closed", code="log-closed")
        check_partition(topic, partition, n_partitions)
        return self._readers[TopicPartition(topic, partition)]

    def _writer(self, topic: str, partition: int) -> PartitionWriter:
        self._reader(topic, partition)
        writer = self._writers.get(TopicPartition(topic, partition))
        if writer is None:
            raise TransportError(
                f"the log in {self._directory} was opened read-only: append in the process that "
                "writes it",
                code="log-read-only",
            )
        return writer

    def _spread(
        self, topic: str, records: Sequence[NewRecord], partition: int | None
    ) -> dict[PartitionWriter, list[int]]:
        """Indices of the records by the partition they go to, in order of partition."""
        if partition is None and self.n_partitions(topic) == 1:
            partition = 0
        if partition is not None:
            return {self._writer(topic, partition): list(range(len(records)))}
        indices: dict[int, list[int]] = {}
        for index, record in enumerate(records):
            indices.setdefault(self.partition_of(topic, record.key), []).append(index)
        return {self._writer(topic, place): indices[place] for place in sorted(indices)}


_WrittenBy = dict[PartitionWriter, Written]


def _write(
    spread: Mapping[PartitionWriter, list[int]],
    records: Sequence[NewRecord],
    producer: str | None,
    first_sequence: int,
) -> _WrittenBy:
    """Write to every partition or to none; all their locks are held."""
    written: _WrittenBy = {}
    try:
        for writer, indices in spread.items():
            part = records if len(spread) == 1 else [records[index] for index in indices]
            written[writer] = writer.write(part, producer=producer, first_sequence=first_sequence)
    except BaseException:
        for writer, done in written.items():
            writer.undo(done)
        raise
    for writer in written:
        writer.release()
    return written


def _places(
    spread: Mapping[PartitionWriter, list[int]], written: _WrittenBy, n_records: int
) -> list[tuple[int, int]]:
    """(partition, offset) of each record, -1 for those that were ignored."""
    places = [(-1, -1)] * n_records
    for writer, indices in spread.items():
        done = written[writer]
        for ordinal, index in enumerate(indices, start=-done.n_ignored):
            places[index] = (writer.partition, done.first_offset + ordinal if ordinal >= 0 else -1)
    return places
