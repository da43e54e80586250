"""Appends to Kafka: acknowledged by every replica in sync, with a bound on what is under way."""

import threading
from collections.abc import Sequence
from typing import Any, Final

from freshrank.errors import TransportError
from freshrank.transport.base import NewRecord
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_producer import Producer, delivered, producer

# kafka-python bounds nothing itself: with a frozen broker it took 170 MB in 5 s. 32 MiB are 64 of
# the largest records.
IN_FLIGHT_BYTES_MAX: Final = 32 << 20
# How long an append waits for room before it is refused: a broker that falls behind for a moment
# costs latency, one that stands still must not hold requests up.
_ROOM_WAIT_S: Final = 1.0
# What the client keeps for a record beside its bytes: futures, headers, bookkeeping.
_RECORD_OVERHEAD_BYTES: Final = 1_000
# A delivery ends by itself after its own timeout; this much later its future was forgotten.
_GRACE_S: Final = 5.0
# After these a producer of kafka-python may hold batches that it never ends, and sequences that the
# broker never saw: a new one begins without them.
_SPENT_AFTER: Final = ("broker-timeout", "broker-error")


class Room:
    """Counts the bytes under way, and refuses more than the limit.

    One append always passes an empty room, however large it is.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._condition = threading.Condition()
        self.n_bytes = 0

    def take(self, n_bytes: int, *, wait_s: float) -> bool:
        """Enter with so many bytes; False when there was no room for so long."""

        def is_room() -> bool:
            return self.n_bytes == 0 or self.n_bytes + n_bytes <= self._bytes_max

        with self._condition:
            if not self._condition.wait_for(is_room, wait_s):
                return False
            self.n_bytes += n_bytes
            return True

    def give(self, n_bytes: int) -> None:
        """Leave."""
        with self._condition:
            self.n_bytes -= n_bytes
            self._condition.notify_all()


class Writer:
    """An idempotent producer whose every record is waited for.

    Args:
        cluster: Where to.
        compression: `lz4` or another codec of kafka-python, or None.
        in_flight_bytes_max: Bytes of all appends together that are not acknowledged yet.

    Raises:
        TransportError: the cluster cannot be reached.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        compression: str | None,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
    ) -> None:
        self._cluster = cluster
        self._compression = compression
        self._lock = threading.Lock()
        self._producer: Producer | None = producer(cluster, compression)
        self.room = Room(in_flight_bytes_max)

    def append(
        self, topic: str, records: Sequence[NewRecord], partitions: Sequence[int]
    ) -> list[int]:
        """Append each record to its partition. Returns their offsets.

        Raises:
            TransportError: the broker did not take them all, or too many are under way (code
                `log-busy`). Some may be in the log.
        """
        sizes = [len(record.key) + len(record.value) + _RECORD_OVERHEAD_BYTES for record in records]
        n_bytes = sum(sizes)
        if not self.room.take(n_bytes, wait_s=_ROOM_WAIT_S):
            raise self._busy(f"{self.room.n_bytes:,} bytes are not acknowledged")
        sent: list[Any] = []
        used: Producer | None = None
        try:
            used = self._open()
            name = self._cluster.name(topic)
            for record, partition, size in zip(records, partitions, sizes, strict=True):
                future = used.send(name, key=record.key, value=record.value, partition=partition)
                n_bytes -= size
                future.add_both(lambda _, size=size: self.room.give(size))
                sent.append(future)
            return delivered(sent, self._cluster.timeout_ms / 1_000 + _GRACE_S)
        except TransportError:
            raise
        except Exception as error:
            failure = self._cluster.explained(f"append to {topic}", error)
            if used is not None and failure.code in _SPENT_AFTER:
                self._retire(used)
            raise failure from error
        finally:
            self.room.give(n_bytes)  # of what was not sent; the rest leaves as it is acknowledged

    def close(self) -> None:
        """End the client; appends under way fail or succeed first."""
        with self._lock:
            if self._producer is not None:
                self._producer.end(self._cluster.timeout_ms / 1_000)
                self._producer = None

    def _open(self) -> Producer:
        # While one append tries to reach a broker that is away, the others do not queue up.
        if not self._lock.acquire(timeout=_ROOM_WAIT_S):
            raise self._busy("it is being reached again")
        try:
            if self._producer is None:
                self._producer = producer(self._cluster, self._compression)
            return self._producer
        finally:
            self._lock.release()

    def _retire(self, used: Producer) -> None:
        with self._lock:
            if self._producer is not used:
                return  # somebody else met the same trouble
            self._producer = None
        used.end(0.0)

    def _busy(self, why: str) -> TransportError:
        return TransportError(
            f"{self._cluster} takes no more for now, {why}: send the records again later",
            code="log-busy",
        )
