"""Who of a group's processes works on which partitions of a topic; nothing is read through it."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from freshrank.transport.kafka_cluster import Cluster

_BEATS: Final = 4  # in a session: three may be lost
_LEAVE_MS: Final = 2_000
# Between two looks at a group that meets, and at one in which nothing happens.
_PASS_S, _QUIET_PASS_S = 0.02, 0.1

Told = Callable[[list[int]], None]


class Membership:
    """This process as a member of a group. For one thread.

    What a partition moves for is told before anybody else may have it, as long as the session
    lasts; after that its writer is fenced. So what is told last holds.

    Args:
        cluster: Where the group is.
        group: Its name.
        topic: Whose partitions are shared out, each to one member; few of them move at a time.
        on_assigned: Told in `poll` of partitions that are this process' from now on.
        on_revoked: Told in `poll` of those that are not any more. It has to end within the session.

    Raises:
        TransportError: the cluster cannot be reached.
    """

    # A process that dies without a word is replaced after so long: the least that brokers allow
    # by default. One that was only slow is fenced.
    session_s = 6.0

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topic: str,
        *,
        on_assigned: Told,
        on_revoked: Told,
    ) -> None:
        self._cluster = cluster
        self._group = group
        session_ms = int(self.session_s * 1_000)
        options = {
            "group_id": cluster.name(group),
            "partition_assignment_strategy": [CooperativeStickyAssignor()],
            "session_timeout_ms": session_ms,
            "heartbeat_interval_ms": session_ms // _BEATS,
            "auto_offset_reset": "latest",
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        self._consumer = cluster.made(_Consumer, options)
        listener = _Listener(self._consumer, on_assigned, on_revoked)
        name = cluster.name(topic)
        # What is not known yet when the group meets is shared out to nobody, and where it becomes
        # known just then kafka-python takes that for done: no partition is anybody's for good.
        with cluster.errors(f"ask for the partitions of {topic}"):
            self._consumer.partitions_for_topic(name)
        self._consumer.subscribe([name], listener=listener)

    def poll(self, timeout_s: float) -> None:
        """Stay a member and hear what has changed, for about so long; often within a session.

        Raises:
            TransportError: the group cannot be reached for now.
        """
        with self._cluster.errors(f"be a member of group {self._group}"):
            self._consumer.poll(timeout_ms=int(timeout_s * 1_000))

    def close(self) -> None:
        """Leave the group: the others have the partitions at once."""
        self._consumer.close(timeout_ms=_LEAVE_MS)


class _Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """Mends two faults of kafka-python 3.0.

    - It spins while a heartbeat is overdue, for all of a core: as long as the broker stands still,
      or a session is not found.
    - A leader whose topic has changed has its group meet again. Once the broker answers, nothing
      differs any more, and a poll that begins only then forgets the meeting under way: the process
      stays between two generations for good, and sends no heartbeats.
    """

    def _poll_once(self, *arguments: Any, **options: Any) -> Any:
        began_s = time.monotonic()
        if self._coordinator.rebalance_in_progress():
            self._coordinator.request_rejoin()  # the poll waits for it, as Java's client does
        records = super()._poll_once(*arguments, **options)
        meets = self._coordinator.need_rejoin() or self._coordinator.rebalance_in_progress()
        pass_s = _PASS_S if meets else _QUIET_PASS_S
        time.sleep(max(0.0, began_s + pass_s - time.monotonic()))
        return records


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    def __init__(self, consumer: KafkaConsumer, on_assigned: Told, on_revoked: Told) -> None:
        self._consumer = consumer
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._consumer.pause(*assigned)  # the partitions' readers have their own consumers
        self._on_assigned(sorted(one.partition for one in assigned))

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._on_revoked(sorted(one.partition for one in revoked))
