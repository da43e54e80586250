"""What our clients ask of a broker, as the broker has it: the promises of the log rest on that."""

from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from freshrank.clock import SystemClock
from freshrank.logs import open_log
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, NewRecord, TopicPartition
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_members import Membership
from tests.fault.joined_on_kafka import RAW
from tests.integration.transport.log_checks import eventually
from tests.servers import NewCluster

PLACE = TopicPartition(ACTIONS, 0)
RECORD = NewRecord(b"key", b"value")


def test_an_append_is_idempotent_and_so_acknowledged_by_all_replicas(
    new_cluster: NewCluster,
) -> None:
    cluster = new_cluster(1)
    with closing(KafkaLog(cluster)) as log, closing(cluster.admin()) as admin:
        log.append(ACTIONS, [RECORD] * 3)
        [told] = admin.describe_producers([cluster.place(PLACE)]).values()
        # Whoever writes without an id and a sequence is not among them, and who asks fewer
        # replicas than all may have none: kafka-python refuses to be set up so.
        assert [one.last_sequence for one in told.active_producers] == [2]


@pytest.mark.parametrize("compression", ["lz4", "gzip", "none"])
def test_batches_are_compressed_as_configured(compression: str, new_cluster: NewCluster) -> None:
    cluster, n_bytes = new_cluster(1), 100_000
    raw = {
        "kind": "kafka",
        "brokers": list(cluster.brokers),
        "prefix": cluster.prefix,
        "replication": 1,
        "compression": compression,
    }
    settings = Settings.model_validate(RAW | {"log": raw})
    with (
        closing(open_log(settings, SystemClock())) as log,
        closing(cluster.admin()) as admin,
    ):
        log.append(ACTIONS, [NewRecord(b"key", bytes(n_bytes))], partition=0)
        [broker] = admin.describe_log_dirs([cluster.name(ACTIONS)])
    [n_stored] = [
        partition["partition_size"]
        for one in broker["log_dirs"]
        for topic in one["topics"]
        for partition in topic["partitions"]
    ]
    assert (n_stored > n_bytes) if compression == "none" else (n_stored < n_bytes / 10)


def test_joiners_share_partitions_without_stopping_each_other(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Membership, "session_s", 30.0)  # none is missed on a busy machine
    cluster = new_cluster(2)
    with ExitStack() as stack:
        admin = stack.enter_context(closing(cluster.admin()))
        kept: list[int] = []
        lost: list[int] = []
        first = Membership(
            cluster, "group", ACTIONS, on_assigned=kept.extend, on_revoked=lost.extend
        )
        stack.enter_context(closing(first))

        members = [first]

        def has(partitions: list[int], n: int) -> Callable[[], bool]:
            def look() -> bool:
                for member in members:
                    member.poll(0.1)
                return len(partitions) == n

            return look

        eventually(has(kept, 2))
        gained: list[int] = []
        second = Membership(
            cluster, "group", ACTIONS, on_assigned=gained.extend, on_revoked=lambda _: None
        )
        members.append(stack.enter_context(closing(second)))
        eventually(has(gained, 1))
        # One that keeps its partition is not told that it lost it, and got it back.
        assert (len(kept), lost) == (2, gained)

        def protocol() -> str:
            name = cluster.name("group")
            return str(admin.describe_groups([name])[name]["protocol_data"])

        eventually(lambda: has(gained, 1)() and bool(protocol()))  # empty while the group meets
        assert protocol() == "cooperative-sticky"
