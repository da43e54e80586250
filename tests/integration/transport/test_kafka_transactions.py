"""Records and input offsets are there together or not at all, whoever dies or is replaced."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Final

import pytest

from freshrank.errors import TransportError
from freshrank.transport.base import (
    ACTIONS,
    EXAMPLES,
    JOINER_STATE,
    RECORD_BYTES_MAX,
    NewRecord,
    TopicPartition,
)
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_transactions import Transactions
from tests.integration.transport.log_checks import eventually, new_records, read_all, values
from tests.servers import NewCluster

INPUT: Final = TopicPartition(ACTIONS, 0)
OUTPUT: Final = TopicPartition(EXAMPLES, 0)


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster(1)


@pytest.fixture
def log(cluster: Cluster) -> Iterator[KafkaLog]:
    with closing(KafkaLog(cluster)) as log:
        yield log


def commit(transactions: Transactions, first: int, n_records: int) -> list[int]:
    """So many records that follow from the input before `first + n_records`."""
    return transactions.commit(
        {OUTPUT: new_records(first, n_records)},
        group="joiner",
        offsets={INPUT: first + n_records},
    )[OUTPUT]


def reach(log: KafkaLog, end: int) -> None:
    """Wait until readers see all before `end`: a commit returns some milliseconds earlier."""
    eventually(lambda: log.end_offset(EXAMPLES, 0) >= end)
    assert log.end_offset(EXAMPLES, 0) == end


def leave_open(transactions: Transactions, cluster: Cluster, first: int) -> None:
    """Do what a process has done that dies before it commits."""
    producer = transactions._open()
    producer.begin_transaction()
    record = new_records(first, 1)[0]
    name = cluster.name(OUTPUT.topic)
    producer.send(name, key=record.key, value=record.value, partition=0).get(10)


def test_records_and_offsets_enter_together(cluster: Cluster, log: KafkaLog) -> None:
    with closing(Transactions(cluster, "joiner-0")) as transactions:
        assert commit(transactions, 0, 3) == [0, 1, 2]
        assert commit(transactions, 3, 2) == [4, 5]  # offset 3 is the mark of the first commit
    reach(log, 7)
    assert values(read_all(log, EXAMPLES, 0)) == [b"value-%d" % i for i in range(5)]
    assert log.committed("joiner") == {INPUT: 5}


def test_the_mark_at_the_end_is_nothing_to_read(cluster: Cluster, log: KafkaLog) -> None:
    with closing(Transactions(cluster, "joiner-0")) as transactions:
        commit(transactions, 0, 3)
        reach(log, 4)
        assert len(log.read(EXAMPLES, 0, 0)) == 3
        assert log.read(EXAMPLES, 0, 3) == []
        assert not log.wait({OUTPUT: 3}, timeout_s=0.05)
        assert log.lag({OUTPUT: 3}) == {OUTPUT: 0}
        commit(transactions, 3, 1)
        reach(log, 6)
        assert log.lag({OUTPUT: 3}) == {OUTPUT: 3}
        assert values(log.read(EXAMPLES, 0, 3)) == [b"value-3"]


def test_what_is_not_committed_is_not_seen_and_ends_with_its_successor(
    cluster: Cluster, log: KafkaLog
) -> None:
    dead = Transactions(cluster, "joiner-0")
    commit(dead, 0, 2)
    reach(log, 3)
    leave_open(dead, cluster, 2)
    assert values(read_all(log, EXAMPLES, 0)) == [b"value-0", b"value-1"]
    with closing(Transactions(cluster, "joiner-0")) as successor:
        assert log.committed("joiner") == {INPUT: 2}
        commit(successor, 2, 2)
    reach(log, 8)  # two marks, the aborted record and its mark
    assert values(read_all(log, EXAMPLES, 0)) == [b"value-%d" % i for i in range(4)]
    dead.close()


def test_what_was_committed_is_seen_once_it_is_settled(cluster: Cluster, log: KafkaLog) -> None:
    with closing(Transactions(cluster, "joiner-0")) as transactions:
        for n in range(0, 40, 2):  # each with its mark
            assert commit(transactions, n, 1) == [n]
            transactions.settle()
            assert log.end_offset(EXAMPLES, 0) == n + 2  # at once: nobody waits for it


def test_one_that_was_replaced_is_fenced_for_good(cluster: Cluster, log: KafkaLog) -> None:
    with (
        closing(Transactions(cluster, "joiner-0")) as zombie,
        closing(Transactions(cluster, "joiner-0")) as successor,
    ):
        for _ in range(2):
            with pytest.raises(TransportError) as refused:
                commit(zombie, 0, 1)
            assert refused.value.code == "fenced"
        commit(successor, 5, 1)
    reach(log, 2)
    assert values(read_all(log, EXAMPLES, 0)) == [b"value-5"]
    assert log.committed("joiner") == {INPUT: 6}


def test_two_ids_do_not_disturb_each_other(cluster: Cluster, log: KafkaLog) -> None:
    with (
        closing(Transactions(cluster, "joiner-0")) as one,
        closing(Transactions(cluster, "joiner-1")) as other,
    ):
        commit(one, 0, 1)
        commit(other, 1, 1)
        commit(one, 2, 1)
    reach(log, 6)
    assert values(read_all(log, EXAMPLES, 0)) == [b"value-0", b"value-1", b"value-2"]


def test_a_record_that_is_too_large_leaves_the_writer_usable(
    cluster: Cluster, log: KafkaLog
) -> None:
    too_large = [*new_records(0, 1), NewRecord(b"", bytes(RECORD_BYTES_MAX))]
    with closing(Transactions(cluster, "joiner-0")) as transactions:
        with pytest.raises(TransportError) as refused:
            transactions.commit({OUTPUT: too_large}, group="joiner", offsets={INPUT: 9})
        assert refused.value.code == "record-too-large"
        commit(transactions, 0, 1)
    reach(log, 2)
    assert values(read_all(log, EXAMPLES, 0)) == [b"value-0"]
    assert log.committed("joiner") == {INPUT: 1}


def test_a_commit_that_the_cluster_refuses_is_aborted_whole(
    cluster: Cluster, log: KafkaLog
) -> None:
    nowhere = TopicPartition(EXAMPLES, 7)
    with closing(Transactions(cluster, "joiner-0")) as transactions:
        with pytest.raises(TransportError):
            transactions.commit(
                {OUTPUT: new_records(0, 1), nowhere: new_records(1, 1)},
                group="joiner",
                offsets={INPUT: 9},
            )
        commit(transactions, 0, 1)
    eventually(lambda: values(read_all(log, EXAMPLES, 0)) == [b"value-0"])
    assert log.committed("joiner") == {INPUT: 1}


def test_a_record_that_is_not_delivered_keeps_all_of_its_transaction_out(
    cluster: Cluster, log: KafkaLog
) -> None:
    hasty = replace(cluster, timeout_ms=1_500)  # for as long a record may be on its way
    state = TopicPartition(JOINER_STATE, 0)
    with closing(Transactions(hasty, "joiner-0")) as transactions:
        # One partition takes nothing for longer, as one does that has too few replicas.
        writer = transactions._open()
        writer._accumulator.muted.add(hasty.place(OUTPUT))
        # The client's thread looks about once the record has expired, while the commit waits.
        looking = threading.Timer(1.7, writer._sender.wakeup)
        looking.start()
        with pytest.raises(TransportError) as refused:
            transactions.commit(
                {OUTPUT: new_records(0, 1), state: new_records(1, 1)},
                group="joiner",
                offsets={INPUT: 9},
                meanwhile=lambda: time.sleep(0.5),
            )
        looking.join()
        assert refused.value.code == "broker-timeout"
        assert commit(transactions, 0, 1)
    eventually(lambda: values(read_all(log, EXAMPLES, 0)) == [b"value-0"])
    assert read_all(log, JOINER_STATE, 0) == []
    assert log.committed("joiner") == {INPUT: 1}


@pytest.mark.parametrize("offsets", [{}, {INPUT: 9}], ids=["records-alone", "offsets-too"])
@pytest.mark.parametrize("is_full", [False, True], ids=["disk-well", "disk-full"])
def test_one_that_was_replaced_says_so_whatever_else_fails(
    cluster: Cluster, offsets: dict[TopicPartition, int], *, is_full: bool
) -> None:
    with closing(Transactions(cluster, "joiner-0")) as zombie:
        commit(zombie, 0, 1)  # from now on it knows the topic, and its next steps wait for nothing
        with closing(Transactions(cluster, "joiner-0")) as successor:
            writer, told = zombie._open(), []

            def write() -> None:
                eventually(lambda: writer.trouble is not None)  # in the client's own thread
                told.append(writer.trouble)
                if is_full:
                    raise TransportError("the disk is full", code="disk-full")

            for _ in range(2):  # opening again would fence the other
                with pytest.raises(TransportError) as refused:
                    zombie.commit(
                        {OUTPUT: new_records(1, 1)},
                        group="joiner",
                        offsets=offsets,
                        meanwhile=write,
                    )
                assert refused.value.code == "fenced"
            assert len(told) == 1
            assert commit(successor, 1, 1)
