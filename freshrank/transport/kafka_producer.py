"""kafka-python's producer, with an end to everything it waits for.

Its own `commit_transaction` waits for ever for a broker that stands still, and its `close` gives up
before it has ended its thread when a batch is left over.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import kafka.errors
from kafka import KafkaProducer
from kafka.net.compat import KafkaNetClient

from freshrank.transport.kafka_cluster import Cluster

# Of small records; a larger record is a batch of its own.
_BATCH_BYTES: Final = 256 << 10
# A sender that is told to end at once looks up within milliseconds.
_END_S: Final = 1.0
# How often a sender looks whether a broker is connected that it waits for; what comes from there
# wakes it.
_CONNECTING_MS: Final = 50.0


class _Net(KafkaNetClient):  # type: ignore[misc]  # kafka-python has no types
    """The client's connections, for its sender, which asks how long to rest until one is there.

    kafka-python's own answer is 0 while it connects, so the sender spins on a broker that takes the
    connection and says nothing (its issue 1907), and keeps the GIL from all that the process does
    for its clients: a request waited five seconds. And it is in seconds, taken as milliseconds.
    """

    def connection_delay(self, node_id: Any) -> float:
        """Milliseconds until the node is worth another look."""
        delay_s: float = super().connection_delay(node_id)
        return max(delay_s * 1_000, _CONNECTING_MS)


class Producer(KafkaProducer):  # type: ignore[misc]  # kafka-python has no types
    """An idempotent producer that waits for all replicas in sync, and for nothing for ever."""

    def begin(self, places: Iterable[Any]) -> None:
        """Begin a transaction that will have records in these partitions: one request tells all."""
        self.begin_transaction()
        for place in places:
            self._transaction_manager.maybe_add_partition_to_transaction(place)

    @property
    def trouble(self) -> Exception | None:
        """What has ended the transaction, whose every further step fails without saying why."""
        trouble: Exception | None = self._transaction_manager.last_error
        return trouble

    def send_offsets(self, offsets: Mapping[Any, Any], group: str) -> Any:
        """Put a group's offsets into the transaction; `settle` waits for what is returned."""
        sent = self._transaction_manager.send_offsets_to_transaction(offsets, group)
        self._sender.wakeup()
        return sent

    def commit_transaction(self) -> None:
        """Commit, or raise within `max_block_ms`; nobody knows then whether it is committed."""
        committed = self._transaction_manager.begin_commit()
        self._sender.wakeup()
        self.settle(committed)

    def end(self, timeout_s: float) -> None:
        """Close; what is not delivered after so long fails."""
        with contextlib.suppress(kafka.errors.KafkaError):
            self.close(timeout=timeout_s)
        if self._sender.is_alive():
            self._sender.force_close()
            self._sender.join(_END_S)

    def settle(self, result: Any) -> None:
        """Wait for something of the transaction that is under way, at most `max_block_ms`."""
        timeout_ms = self.config["max_block_ms"]
        if not result.wait(timeout_ms):
            raise kafka.errors.KafkaTimeoutError(f"no answer in {timeout_ms} ms")


def delivered(records: Sequence[Any], timeout_s: float) -> list[int]:
    """Offsets of records that were sent; every one is looked at, as errors show nowhere else.

    Raises:
        KafkaError: the first that is not delivered in time, once all were looked at.
    """
    deadline_s = time.monotonic() + timeout_s
    offsets, failure = [], None
    for record in records:
        try:
            offsets.append(record.get(max(0.0, deadline_s - time.monotonic())).offset)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return offsets


def producer(cluster: Cluster, compression: str | None, **options: Any) -> Producer:
    """A producer for the cluster; further options are those of kafka-python.

    Raises:
        TransportError: the cluster cannot be reached.
    """
    common = {
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": compression,
        "delivery_timeout_ms": cluster.timeout_ms,
        "request_timeout_ms": cluster.timeout_ms // 2,
        "max_block_ms": cluster.timeout_ms,
        "batch_size": _BATCH_BYTES,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    return cluster.made(Producer, common | options, _Net)
