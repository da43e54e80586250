"""The event log on Kafka: what is acknowledged is on every replica in sync.

The bytes of keys and values, the topics and the rule from key to partition are those of the
embedded log. Appends are idempotent within a producer's life; what must survive its death exactly
once goes through `kafka_transactions`, so `append` takes no sequences of its own here.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from freshrank.errors import TransportError
from freshrank.transport import kafka_topics
from freshrank.transport.base import TOPICS, NewRecord, Record, TopicPartition
from freshrank.transport.checks import check_append, check_partition, check_topic
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_follower import STALL_S, VERIFY_S, Follower
from freshrank.transport.kafka_transactions import Transactions
from freshrank.transport.kafka_writer import IN_FLIGHT_BYTES_MAX, Writer
from freshrank.transport.partitioner import partition_of_key

_NO_SEQUENCES: Final = (
    "Kafka keeps no sequences of ours: append what must be there exactly once in a transaction"
)


class KafkaLog:
    """An `EventLog` on a Kafka cluster.

    Two readers of one partition that are far apart make its consumer seek to and fro: give each a
    log of its own.

    Args:
        cluster: Where it is.
        n_partitions: Of every topic but `SINGLE_PARTITION_TOPICS`; checked against the cluster.
        compression: Codec of appended batches; None sends them as they are.
        in_flight_bytes_max: Bound on bytes that are not acknowledged yet; appends beyond it wait a
            second and are refused (code `log-busy`).
        stall_s: A consumer that stands still for so long while records wait is replaced.
        verify_s: How often it is checked that the topics are those that were opened.

    Raises:
        TransportError: the cluster cannot be reached, lacks topics (code `unknown-topic`) or has
            another number of partitions (`log-partitions`).
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        n_partitions: int = 1,
        compression: str | None = "lz4",
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        stall_s: float = STALL_S,
        verify_s: float = VERIFY_S,
    ) -> None:
        self.cluster = cluster
        self._compression = compression
        self._plan = kafka_topics.TopicPlan(n_partitions)
        with contextlib.ExitStack() as stack:
            self._admin = stack.enter_context(cluster.admin())
            self.identity = kafka_topics.check(self._admin, cluster, n_partitions)
            self._writer = Writer(
                cluster, compression=compression, in_flight_bytes_max=in_flight_bytes_max
            )
            stack.callback(self._writer.close)
            self._follower = Follower(
                cluster, verify=self._verify, stall_s=stall_s, verify_s=verify_s
            )
            stack.callback(self._follower.close)
            self._clients = stack.pop_all()
        self._is_closed = False

    def n_partitions(self, topic: str) -> int:
        """Partitions of `topic`."""
        check_topic(topic)
        return self._plan.n_partitions_of(topic)

    def partition_of(self, topic: str, key: bytes) -> int:
        """The partition that records with `key` go to: that of Kafka's own partitioner."""
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
        """Append to all replicas in sync; see `EventLog.append`.

        Raises:
            TransportError: as there; `log-busy` when too much is under way, `broker-timeout` and
                other codes when the broker did not take them. Some may be in the log then.
        """
        if producer is not None or first_sequence is not None:
            raise TransportError(_NO_SEQUENCES, code="bad-append")
        check_append(topic, records, partition, producer, first_sequence)
        self._follower.check_open()
        if partition is None:
            partitions = [self.partition_of(topic, record.key) for record in records]
        else:
            self._place(topic, partition)
            partitions = [partition] * len(records)
        offsets = self._writer.append(topic, records, partitions)
        places = list(zip(partitions, offsets, strict=True))
        for partition, offset in dict(places).items():
            self._follower.note_end(TopicPartition(topic, partition), offset + 1)
        return places

    def last_sequence(self, topic: str, partition: int, producer: str) -> int:
        """Refused: see `append`."""
        raise TransportError(_NO_SEQUENCES, code="bad-append")

    def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        n_max: int = 1_000,
        bytes_max: int = 1 << 24,
    ) -> list[Record]:
        """Committed records from `offset` on; see `EventLog.read`.

        It never misses what this log has appended or told the end of; what others append it may
        see some milliseconds later.
        """
        place = self._place(topic, partition)
        return self._follower.read(place, offset, n_max=n_max, bytes_max=bytes_max)

    def start_offset(self, topic: str, partition: int) -> int:
        """The first offset still kept."""
        return self._follower.offsets([self._place(topic, partition)], is_end=False)[0]

    def end_offset(self, topic: str, partition: int) -> int:
        """The offset after the last committed record, marks of transactions included."""
        return self._follower.offsets([self._place(topic, partition)], is_end=True)[0]

    def wait(self, positions: Mapping[TopicPartition, int], *, timeout_s: float) -> bool:
        """Block until any of the logs grows beyond its given offset; False when time ran out."""
        for topic, partition in positions:
            self._place(topic, partition)
        return self._follower.wait(positions, timeout_s=timeout_s)

    def lag(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Offsets between each position and the end of its partition."""
        places = list(positions)
        ends = self._follower.offsets(places, is_end=True)
        return {
            place: self._follower.n_behind(place, positions[place], end)
            for place, end in zip(places, ends, strict=True)
        }

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        """Let go of the records before `offset`; their space comes back a segment at a time."""
        place = self.cluster.place(self._place(topic, partition))
        self.cluster.ask(
            f"remove records of {topic}:{partition} before offset {offset}",
            lambda: self._admin.delete_records({place: offset}),
        )

    def transactions(self, transactional_id: str) -> Transactions:
        """The writer under this id; it fences whoever had it before, see `Transactions`."""
        return Transactions(self.cluster, transactional_id, compression=self._compression)

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Store a consumer group's next offsets; places not named keep theirs."""
        named = self.cluster.next_offsets(offsets)
        name = self.cluster.name(group)

        def alter() -> None:
            for error in self._admin.alter_group_offsets(name, named).values():
                if error.errno:
                    raise error(f"group {name}")

        self.cluster.ask(f"commit offsets of group {group}", alter)

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """The group's stored offsets; empty when it has none."""
        name = self.cluster.name(group)
        found = self.cluster.ask(
            f"tell the offsets of group {group}",
            lambda: self._admin.list_group_offsets(name)[name],
        )
        ours = {self.cluster.name(topic): topic for topic in TOPICS}
        return {
            TopicPartition(ours[one.topic], one.partition): at.offset
            for one, at in found.items()
            if one.topic in ours and at.offset >= 0
        }

    @property
    def unacknowledged_bytes(self) -> int:
        """Of at most `in_flight_bytes_max`."""
        return self._writer.room.n_bytes

    @property
    def n_stalls(self) -> int:
        """Consumers that stood still and were replaced."""
        return self._follower.n_stalls

    def close(self) -> None:
        """End the clients. Waiting readers return, appends under way end first."""
        if not self._is_closed:
            self._is_closed = True
            self._clients.close()

    def _verify(self) -> TransportError | None:
        """Why the log is not any more the one that was opened; None as long as it is."""
        try:
            identity = kafka_topics.check(self._admin, self.cluster, self._plan.n_partitions)
        except TransportError as error:
            return error if error.code == "log-partitions" else None  # else away for now
        if identity == self.identity:
            return None
        return TransportError(
            f"{self.cluster} had topics of {self.cluster.prefix or 'ours'} made anew since this "
            "log was opened, so its offsets mean other records: start again, which says how to "
            "go on",
            code="log-replaced",
        )

    def _place(self, topic: str, partition: int) -> TopicPartition:
        check_partition(topic, partition, self.n_partitions(topic))
        return TopicPartition(topic, partition)
