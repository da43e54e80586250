"""The two seams to the outside: the event log and the parameter channel.

Each has an embedded implementation (`local.py` and `directory.py`: files on this machine's disk)
and a real one (Kafka, Redis). Both pass the same conformance suites, and the bytes in them are the
same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

IMPRESSIONS = "freshrank.impressions"
ACTIONS = "freshrank.actions"
ENTITIES = "freshrank.entities"
CONTROL = "freshrank.control"
EXAMPLES = "freshrank.examples"
JOINER_STATE = "freshrank.joiner-state"  # on Kafka: what each round of a joiner changed
DEAD_LETTER_SUFFIX = ".dlq"

CONSUMED_TOPICS = (IMPRESSIONS, ACTIONS, ENTITIES, CONTROL, EXAMPLES)
TOPICS = (
    *CONSUMED_TOPICS,
    JOINER_STATE,
    *(topic + DEAD_LETTER_SUFFIX for topic in CONSUMED_TOPICS),
)
SINGLE_PARTITION_TOPICS = (CONTROL,)
# State, not history: age alone removes no record. Of one topic the last record of a key holds until
# another one replaces it, of the other the joiner removes what it has written again.
COMPACTED_TOPICS = (ENTITIES,)
AGELESS_TOPICS = (*COMPACTED_TOPICS, JOINER_STATE)

# How often a trainer says that it is there.
BEAT_EVERY_S = 0.5

# A record stays below 512 KiB: half of Kafka's default message.max.bytes (1 MiB), so that a batch
# of two always fits.
RECORD_BYTES_MAX = 512 * 1024


class TopicPartition(NamedTuple):
    """One ordered log."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to append. `key` chooses the partition unless one is given."""

    key: bytes
    value: bytes


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as it stands in the log. A struct, as reading makes a million a minute of them."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    appended_at_ms: int


class EventLog(Protocol):
    """Ordered, durable, partitioned records.

    Every method is safe to call from several threads. `TransportError` is raised when the log
    cannot do what it was asked; its text says which topic, which offset and what to do.

    Attributes:
        identity: Names this log among all others, for as long as it lives: offsets of equal
            identity mean the same records.
    """

    identity: str

    def n_partitions(self, topic: str) -> int:
        """Partitions of `topic`."""

    def partition_of(self, topic: str, key: bytes) -> int:
        """The partition that records with `key` go to; the same for every topic of equal size."""

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        partition: int | None = None,
        producer: str | None = None,
        first_sequence: int | None = None,
    ) -> list[tuple[int, int]]:
        """Append durably; when this returns the records survive a crash as the fsync policy says.

        Args:
            topic: One of `TOPICS`.
            records: Each with a value below `RECORD_BYTES_MAX` bytes.
            partition: Where all of them go; by default each goes by its key.
            producer: A stable name; with it the append is idempotent and needs `partition`.
            first_sequence: Sequence of the first record; the following count up by one. Records
                whose sequence this producer already has in the partition are ignored.

        Returns:
            (partition, offset) of each record, in order. An ignored record gets offset -1.

        Raises:
            TransportError: code `unknown-topic`, `unknown-partition`, `record-too-large`,
                `sequence-gap`, `bad-append` (arguments that do not go together) or `disk-full`.
        """

    def last_sequence(self, topic: str, partition: int, producer: str) -> int:
        """The highest sequence this producer has in the partition; -1 when it has none."""

    def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        n_max: int = 1_000,
        bytes_max: int = 1 << 24,
    ) -> list[Record]:
        """Records from `offset` on, at most `n_max` and about `bytes_max`; empty at the end.

        Raises:
            TransportError: `offset` lies before `start_offset` as retention removed it (code
                `offset-removed`), or after `end_offset` (code `offset-beyond-end`).
        """

    def start_offset(self, topic: str, partition: int) -> int:
        """The first offset still kept."""

    def end_offset(self, topic: str, partition: int) -> int:
        """The offset after the last acknowledged record: what may be read ends here."""

    def wait(self, positions: Mapping[TopicPartition, int], *, timeout_s: float) -> bool:
        """Block until any of the logs grows beyond its given offset.

        Returns:
            False when time ran out or the log was closed. Time is real time, whatever the clock.
        """

    def lag(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Offsets between each position and the end of its partition; 0 once no record is there.

        Offsets of Kafka have gaps, so this may be more than there are records, and an end that is
        reached may lie beyond the last record's next offset.
        """

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes of appends under way that wait for the log to have them for good."""

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Store a consumer group's next offsets (for dashboards and lag, not for correctness)."""

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """The group's stored offsets."""

    def close(self) -> None:
        """Flush and release files. Waiting readers return."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a channel holds: the newest frame, and the base a new replica starts from."""

    epoch: int
    seq: int
    base_seq: int
    published_at_ms: int


class ParameterChannel(Protocol):
    """Versioned parameter frames from one trainer to many replicas.

    A frame is opaque here, but for (epoch, seq). Epochs fence: once epoch e + 1 is opened, a
    publication of epoch e is refused.
    """

    def open_epoch(self, *, above: int = 0) -> int:
        """Claim the next epoch for this writer, before anything is published in it.

        Args:
            above: An epoch that this writer has had; the channel may be another one, or emptied.
        """

    def publish_base(self, epoch: int, seq: int, frame: bytes) -> None:
        """Publish a complete base; replicas of other epochs switch to it.

        Raises:
            SyncError: a newer epoch was opened (code `fenced`), the channel no longer knows this
                one (code `lost`: open another), or `seq` lies before the last base (code `gap`).
            TransportError: the channel cannot be written (code `disk-full` and others); nothing
                was published.
        """

    def publish_delta(self, epoch: int, seq: int, frame: bytes) -> None:
        """Publish the delta that leads from seq - 1 to seq.

        Publishing the newest delta again with the same bytes changes nothing, so a writer that
        does not know whether a publication arrived repeats it.

        Raises:
            SyncError: as `publish_base`; code `gap` when `seq` does not follow the head.
            TransportError: as `publish_base`.
        """

    def beat(self, epoch: int) -> None:
        """Say that the writer of this epoch is there; a publication says so too.

        It does so every `BEAT_EVERY_S`, but while it publishes, saves or waits for the channel.

        Raises:
            SyncError: code `fenced` or `lost`, as `publish_base`.
            TransportError: as `publish_base`.
        """

    def beat_age_s(self) -> float | None:
        """Seconds since the writer was last heard; None when it never was.

        Without news in the channel this tells a trainer that has none from one that is away.

        Raises:
            TransportError: the channel cannot be read.
        """

    def head(self) -> Head | None:
        """The newest published state; None before the first base."""

    def base(self) -> tuple[int, int, bytes] | None:
        """(epoch, seq, frame) of the newest base."""

    def base_beginning(self, n_bytes: int) -> bytes | None:
        """What the newest base begins with; None before the first.

        At least its first `n_bytes`, or all where it has fewer. Whether they are what was published
        is not checked here, as the checksum is one of the whole.

        Raises:
            TransportError: the base lacks them (code `channel-damaged`).
        """

    def delta(self, epoch: int, seq: int) -> bytes | None:
        """One delta; None if it is not there whole (not yet, no more, or damaged)."""

    def request_base(self, epoch: int, seq: int) -> None:
        """Ask whoever publishes for a base newer than (epoch, seq), which a replica cannot leave.

        Asking again changes nothing, and the request outlives who asked. One beyond the head is
        ignored: no replica can be there, and it might never be met.

        Raises:
            TransportError: the channel cannot be written. The caller goes on: the next periodic
                base helps as well, later.
        """

    def wanted_base(self) -> bool:
        """Whether a base newer than the newest one is needed; False before the first.

        A replica asked for it, or the channel cannot keep so many deltas behind the last one.

        Raises:
            TransportError: the channel cannot be read.
        """

    def wait(self, epoch: int, seq: int, *, timeout_s: float) -> bool:
        """Block until there is a head other than (epoch, seq); False as for `EventLog.wait`."""

    def close(self) -> None:
        """Release what is held. Waiting readers return."""
