"""The log on Kafka passes the checks of all logs, and keeps what only it promises."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import pytest
from kafka import KafkaConsumer

from freshrank.dev.servers import Server
from freshrank.errors import TransportError
from freshrank.transport import kafka_pace, kafka_topics
from freshrank.transport.base import (
    ACTIONS,
    ENTITIES,
    EXAMPLES,
    IMPRESSIONS,
    NewRecord,
    TopicPartition,
)
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_writer import Room
from tests.integration.transport.log_checks import (
    DEADLINE_S,
    LOG_CHECKS,
    N_PARTITIONS,
    Check,
    eventually,
    new_records,
    read_all,
    values,
)
from tests.servers import NewCluster

PLACE: Final = TopicPartition(ACTIONS, 0)


@pytest.mark.parametrize(
    "check", LOG_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
def test_kafka_log_passes(check: Check, new_cluster: NewCluster) -> None:
    cluster = new_cluster(N_PARTITIONS)
    check(lambda: KafkaLog(cluster, n_partitions=N_PARTITIONS))


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """The broker stands still, as a machine does that swaps."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def refusal(log: KafkaLog, records: list[NewRecord]) -> str:
    with pytest.raises(TransportError) as refused:
        log.append(ACTIONS, records, partition=0)
    return refused.value.code


def test_a_broker_that_stands_still_refuses_what_exceeds_the_bound_and_loses_nothing(
    new_cluster: NewCluster, kafka_server: Server
) -> None:
    with closing(KafkaLog(new_cluster(1), in_flight_bytes_max=100_000)) as log:
        log.append(ACTIONS, new_records(0, 1))
        waiting = threading.Thread(target=log.append, args=(ACTIONS, new_records(1, 50)))
        with paused(kafka_server):
            waiting.start()
            eventually(lambda: log.unacknowledged_bytes > 0)
            assert refusal(log, [NewRecord(b"", bytes(60_000))]) == "log-busy"
            assert 50_000 <= log.unacknowledged_bytes <= 100_000
        waiting.join(DEADLINE_S)
        assert log.append(ACTIONS, new_records(51, 1)) == [(0, 51)]
        assert values(read_all(log, ACTIONS, 0)) == [b"value-%d" % i for i in range(52)]
        assert log.unacknowledged_bytes == 0


def test_a_broker_that_stands_still_for_too_long_is_given_up_and_found_again(
    new_cluster: NewCluster, kafka_server: Server
) -> None:
    cluster = new_cluster(1)
    impatient = Cluster(cluster.brokers, cluster.prefix, timeout_ms=1_000)
    with closing(KafkaLog(impatient)) as log:
        log.append(ACTIONS, new_records(0, 1))
        with paused(kafka_server):
            assert refusal(log, new_records(1, 1)) == "broker-timeout"
            assert log.unacknowledged_bytes == 0
        # Whether the refused record is in the log is open; those that were taken are, in order.
        taken = [log.append(ACTIONS, new_records(i, 1))[0][1] for i in (2, 3)]
        assert [log.read(ACTIONS, 0, at, n_max=1)[0].value for at in taken] == [
            b"value-2",
            b"value-3",
        ]
        got = values(read_all(log, ACTIONS, 0))
        assert [one for one in got if one != b"value-1"] == [b"value-0", b"value-2", b"value-3"]
        assert got.count(b"value-1") <= 1


def test_a_cluster_that_nobody_answers_for_is_named(leaky_client: None) -> None:
    with pytest.raises(TransportError, match=r"Kafka at 127\.0\.0\.1:1: .* is it running"):
        KafkaLog(Cluster(("127.0.0.1:1",), timeout_ms=500))


def test_missing_topics_are_named_with_the_command_that_makes_them(kafka_server: Server) -> None:
    with pytest.raises(
        TransportError, match=r"nobody\.freshrank\.actions.*topics create"
    ) as missing:
        KafkaLog(Cluster((kafka_server.address,), "nobody."))
    assert missing.value.code == "unknown-topic"


def test_topics_of_unequal_partitions_are_refused(new_cluster: NewCluster) -> None:
    cluster = new_cluster(2)
    with pytest.raises(TransportError, match="actions 2") as all_of_them:
        KafkaLog(cluster, n_partitions=4)
    with cluster.admin() as admin:
        admin.create_partitions({cluster.name(ENTITIES): 3})
        eventually(lambda: len(kafka_topics.described(admin, cluster)[ENTITIES]["partitions"]) == 3)
    with pytest.raises(TransportError, match="entities 3:") as one_of_them:
        KafkaLog(cluster, n_partitions=2)
    assert all_of_them.value.code == one_of_them.value.code == "log-partitions"


def test_a_topic_made_anew_gives_the_log_another_identity(new_cluster: NewCluster) -> None:
    cluster = new_cluster(1)
    name = cluster.name(EXAMPLES)
    with closing(KafkaLog(cluster)) as log, cluster.admin() as admin:
        before = log.identity
        admin.delete_topics([name])
        admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})
        admin.wait_for_topics([name])
    with closing(KafkaLog(cluster)) as log:
        assert log.identity != before


def waiting_ends_with(log: KafkaLog) -> str:
    """Code of the error that who waits for news gets."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        try:
            log.wait({PLACE: 4}, timeout_s=DEADLINE_S)
        except TransportError as error:
            return error.code
    return "nothing"


@pytest.mark.parametrize("n_records", [0, 8], ids=["shorter", "longer"])
def test_a_topic_made_anew_under_a_reader_stops_it(n_records: int, new_cluster: NewCluster) -> None:
    cluster = new_cluster(1)
    name = cluster.name(ACTIONS)
    with closing(KafkaLog(cluster, verify_s=0.2)) as log, cluster.admin() as admin:
        log.append(ACTIONS, new_records(0, 4))
        assert len(log.read(ACTIONS, 0, 0)) == 4
        admin.delete_topics([name])
        create = {name: {"num_partitions": 1, "replication_factor": 1}}
        cluster.ask("make it anew", lambda: admin.create_topics(create))
        admin.wait_for_topics([name])
        with closing(KafkaLog(cluster)) as other:
            other.append(ACTIONS, new_records(100, n_records))
        assert waiting_ends_with(log) == "log-replaced"
        for ask in (lambda: log.read(ACTIONS, 0, 0), lambda: log.append(ACTIONS, [])):
            with pytest.raises(TransportError) as refused:
                ask()
            assert refused.value.code == "log-replaced"


def test_partitions_raised_under_a_writer_stop_it(new_cluster: NewCluster) -> None:
    cluster = new_cluster(1)
    with closing(KafkaLog(cluster, verify_s=0.2)) as log, cluster.admin() as admin:
        log.append(ACTIONS, new_records(0, 1))
        admin.create_partitions({cluster.name(ACTIONS): 2})
        assert waiting_ends_with(log) == "log-partitions"
        assert refusal(log, new_records(1, 1)) == "log-partitions"


def test_what_retention_removed_under_a_reader_is_refused(new_cluster: NewCluster) -> None:
    cluster = new_cluster(1)
    with closing(KafkaLog(cluster)) as log, cluster.admin() as admin:
        log.append(ACTIONS, new_records(0, 3))
        assert len(log.read(ACTIONS, 0, 0)) == 3
        log.append(ACTIONS, new_records(3, 3))
        admin.delete_records({cluster.place(PLACE): 5})
    with closing(KafkaLog(cluster)) as log:
        assert log.start_offset(ACTIONS, 0) == 5
        with pytest.raises(TransportError, match="begins at offset 5, 2 was removed") as removed:
            log.read(ACTIONS, 0, 2)
        assert removed.value.code == "offset-removed"
        assert values(log.read(ACTIONS, 0, 5)) == [b"value-5"]


def test_readers_far_apart_in_one_partition_both_get_everything(new_cluster: NewCluster) -> None:
    value = bytes(400_000)
    with closing(KafkaLog(new_cluster(1))) as log:
        for i in range(30):  # 12 MB: three times what is held ahead of readers
            log.append(ACTIONS, [NewRecord(b"%d" % i, value)])
        got: dict[int, list[bytes]] = {}

        def read(first: int) -> None:
            got[first] = []
            for offset in range(first, 30):
                got[first] += [record.key for record in log.read(ACTIONS, 0, offset, n_max=1)]

        readers = [threading.Thread(target=read, args=(first,)) for first in (0, 10, 20)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(2 * DEADLINE_S)
        assert got == {first: [b"%d" % i for i in range(first, 30)] for first in (0, 10, 20)}


def test_a_consumer_that_stands_still_is_replaced(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[KafkaConsumer] = []
    make = Cluster.consumer

    def consumer(cluster: Cluster) -> KafkaConsumer:
        made.append(make(cluster))
        return made[-1]

    monkeypatch.setattr(Cluster, "consumer", consumer)
    with closing(KafkaLog(new_cluster(1), stall_s=0.3)) as log:
        log.append(ACTIONS, new_records(0, 1))
        assert len(log.read(ACTIONS, 0, 0)) == 1
        # Deaf, as kafka-python's consumers were: it polls, and nothing comes.
        is_deaf = threading.Event()

        def hear_nothing(**_: object) -> dict[object, object]:
            is_deaf.set()
            return {}

        monkeypatch.setattr(made[0], "poll", hear_nothing)
        assert is_deaf.wait(DEADLINE_S)
        log.append(ACTIONS, new_records(1, 1))
        assert values(log.read(ACTIONS, 0, 1)) == [b"value-1"]
        assert log.n_stalls == 1


def test_appending_with_sequences_is_refused(new_cluster: NewCluster) -> None:
    with closing(KafkaLog(new_cluster(1))) as log:
        for ask in (
            lambda: log.append(
                ACTIONS, new_records(0, 1), partition=0, producer="a", first_sequence=0
            ),
            lambda: log.last_sequence(ACTIONS, 0, "a"),
        ):
            with pytest.raises(TransportError, match="in a transaction") as refused:
                ask()
            assert refused.value.code == "bad-append"


def test_a_room_lets_one_in_that_is_larger_than_itself_and_none_beside_it() -> None:
    room = Room(10)
    assert room.take(100, wait_s=0)
    assert not room.take(1, wait_s=0)
    room.give(100)
    assert room.take(6, wait_s=0)
    assert room.take(4, wait_s=0)
    assert not room.take(1, wait_s=0.01)


def test_what_was_fetched_of_a_paused_partition_comes_back(
    kafka_server: Server, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(1)
    with closing(KafkaLog(cluster)) as log:
        for topic in (ACTIONS, IMPRESSIONS):
            log.append(topic, new_records(0, 100))
    held, other = (cluster.place(TopicPartition(one, 0)) for one in (ACTIONS, IMPRESSIONS))
    consumer = cluster.consumer()
    try:
        consumer.assign([held])
        consumer.seek(held, 0)
        fetched = 0
        while not fetched:  # and 99 stay behind
            fetched = len(consumer.poll(timeout_ms=1_000, max_records=1).get(held, ()))
        consumer.assign([held, other])
        consumer.seek(other, 0)
        consumer.pause(held)
        while consumer.position(other) < 100:
            assert held not in consumer.poll(timeout_ms=1_000)
        consumer.resume(held)
        for _ in range(10):
            fetched += len(consumer.poll(timeout_ms=1_000).get(held, ()))
        assert fetched == 100
    finally:
        consumer.close()


def test_who_has_appended_goes_on_behind_it_without_reading_it(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(KafkaLog(new_cluster(1))) as log:
        log.append(ACTIONS, new_records(0, 1), partition=0)
        assert len(log.read(ACTIONS, 0, 0)) == 1  # the consumer is here

        def ask(*_: object, **__: object) -> None:
            raise AssertionError("neither the end is asked for nor the consumer moved")

        monkeypatch.setattr(log._follower, "offsets", ask)
        for n in range(1, 40):
            ((_, offset),) = log.append(ACTIONS, new_records(n, 1), partition=0)
            assert log.read(ACTIONS, 0, offset + 1) == []
            assert not log.wait({PLACE: offset + 1}, timeout_s=0.005)
        log.append(ACTIONS, new_records(40, 1), partition=0)
        assert log.wait({PLACE: 40}, timeout_s=DEADLINE_S)
        assert values(log.read(ACTIONS, 0, 40)) == [b"value-40"]


def test_a_stream_is_fetched_in_company(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOON_S", "GATHER_S"):
        monkeypatch.setattr(kafka_pace, name, gather_s := 0.5)
    found: list[int] = []
    with closing(KafkaLog(new_cluster(1))) as log:
        rest_s = log._follower._pace.rest_s

        def count(n_records: int) -> float:
            found.append(n_records)
            return rest_s(n_records)

        monkeypatch.setattr(log._follower._pace, "rest_s", count)
        assert log.read(ACTIONS, 0, 0) == []
        began_s = time.monotonic()
        for n in range(40):
            log.append(ACTIONS, new_records(n, 1), partition=0)
        eventually(lambda: sum(found) == 40)
        lasted_s = time.monotonic() - began_s
    assert len([n for n in found if n]) <= 3 + lasted_s / gather_s


def test_who_reads_elsewhere_does_not_wait_for_the_company_of_others(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_pace, "SOON_S", 1_000.0)
    with closing(KafkaLog(new_cluster(1))) as log:
        log.append(IMPRESSIONS, new_records(0, 1), partition=0)
        for n in range(2):  # it rests after the second
            log.append(ACTIONS, new_records(n, 1), partition=0)
            assert values(log.read(ACTIONS, 0, n)) == [b"value-%d" % n]
        assert values(log.read(IMPRESSIONS, 0, 0)) == [b"value-0"]
