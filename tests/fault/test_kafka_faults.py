"""Kafka dies and comes back: what was acknowledged is there once, and everybody goes on."""

import itertools
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.producer.sender import Sender

from freshrank.dev.kafka import kafka
from freshrank.dev.servers import Server, free_ports
from freshrank.errors import TransportError
from freshrank.transport import kafka_topics
from freshrank.transport.base import ACTIONS, NewRecord, Record, TopicPartition
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_members import Membership
from freshrank.transport.kafka_topics import TopicPlan
from tests.integration.transport.log_checks import eventually
from tests.servers import NewCluster

DEADLINE_S = 60.0
PLACE = TopicPartition(ACTIONS, 0)


class Appender(threading.Thread):
    """Appends numbers, each again until it is taken; every try has a value of its own."""

    def __init__(self, log: KafkaLog) -> None:
        super().__init__()
        self.log = log
        self.taken: dict[int, bytes] = {}
        self.n_refused = 0
        self.must_end = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            for attempt in itertools.count():
                if self.must_end.is_set():
                    return
                value = b"%d-%d" % (number, attempt)
                try:
                    ((_, offset),) = self.log.append(ACTIONS, [NewRecord(b"key", value)])
                except TransportError:
                    self.n_refused += 1
                    continue
                self.taken[offset] = value
                break


def read_until(log: KafkaLog, got: list[Record], is_enough: threading.Event | int) -> None:
    """Follow the log from where `got` ends: until so many are there, or to its end once told."""
    while True:
        is_told = isinstance(is_enough, threading.Event) and is_enough.is_set()
        position = got[-1].offset + 1 if got else 0
        try:
            records = log.read(ACTIONS, 0, position)
            got += records
            if is_told and position >= log.end_offset(ACTIONS, 0):
                return
            if isinstance(is_enough, int) and len(got) >= is_enough:
                return
            log.wait({PLACE: position}, timeout_s=1.0)
        except TransportError:
            continue


def test_a_broker_that_is_killed_and_started_again_loses_nothing_that_was_acknowledged(
    kafka_server: Server, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    cluster = Cluster((f"127.0.0.1:{port}",), timeout_ms=3_000)
    got: list[Record] = []
    with kafka(tmp_path, port=port) as first:
        with cluster.admin() as admin:
            kafka_topics.create(admin, cluster, TopicPlan(1))
        log, reading = KafkaLog(cluster), KafkaLog(cluster)
        appender = Appender(log)
        appender.start()
        read_until(reading, got, 50)
        first.process.kill()
        first.process.wait()
    with closing(log), closing(reading), kafka(tmp_path, port=port):
        read_until(reading, got, len(got) + 50)
        appender.must_end.set()
        appender.join(DEADLINE_S)
        read_until(reading, got, appender.must_end)
    assert appender.n_refused > 0
    values = [record.value for record in got]
    assert [record.offset for record in got] == list(range(len(got)))
    assert len(set(values)) == len(values)  # no try is there twice
    assert {offset: values[offset] for offset in appender.taken} == appender.taken
    numbers = [int(value.split(b"-")[0]) for value in values]
    assert numbers == sorted(numbers)


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_a_broker_that_stands_still_under_load_costs_no_more_memory_than_the_bound(
    kafka_server: Server, new_cluster: NewCluster
) -> None:
    # 40 writers offer 20 MB each time round; without the bound that was 170 MB in 5 s.
    record, bound = NewRecord(b"key", os.urandom(500_000)), 8 << 20
    cluster = replace(new_cluster(1), timeout_ms=1_000)
    outcomes: Counter[str] = Counter()
    taken: list[int] = []
    must_end = threading.Event()
    with closing(KafkaLog(cluster, in_flight_bytes_max=bound)) as log:

        def append() -> None:
            while not must_end.is_set():
                try:
                    ((_, offset),) = log.append(ACTIONS, [record])
                    taken.append(offset)
                    outcomes["taken"] += 1
                except TransportError as error:
                    outcomes[error.code] += 1

        log.append(ACTIONS, [record])
        before_bytes = peak_bytes = resident_bytes()
        writers = [threading.Thread(target=append) for _ in range(40)]
        kafka_server.process.send_signal(signal.SIGSTOP)
        try:
            for writer in writers:
                writer.start()
            while outcomes["log-busy"] < 200:  # each waited a second: 5 s and more
                peak_bytes = max(peak_bytes, resident_bytes())
                assert log.unacknowledged_bytes <= bound
        finally:
            kafka_server.process.send_signal(signal.SIGCONT)
        n_taken = len(taken)
        eventually(lambda: len(taken) >= n_taken + 50)
        must_end.set()
        for writer in writers:
            writer.join(DEADLINE_S)
        assert peak_bytes - before_bytes < 4 * bound  # 2 of them measured
        assert outcomes["broker-timeout"] > 0
        assert len(set(taken)) == len(taken)
        end = log.end_offset(ACTIONS, 0)
        assert max(taken) < end
        (last,) = log.read(ACTIONS, 0, max(taken), n_max=1)
        assert last.value == record.value


def test_a_member_whose_group_meets_slowly_is_a_member_again_and_hears_of_it(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a topic consists of has changed, so it asks its group to meet; the answer comes after the
    # poll has ended. It stayed between two generations then, for good.
    monkeypatch.setattr(Membership, "session_s", 2.0)
    told: list[int] = []
    member = Membership(
        new_cluster(1), "group", ACTIONS, on_assigned=told.extend, on_revoked=lambda _: None
    )

    def polled(timeout_s: float, is_so: Callable[[], object]) -> Callable[[], bool]:
        def look() -> bool:
            member.poll(timeout_s)
            return bool(is_so())

        return look

    with closing(member):
        eventually(polled(0.1, lambda: told))
        coordinator = member._consumer._coordinator
        earlier = coordinator.group_metadata().generation_id
        coordinator._assignment_snapshot = {}
        eventually(polled(0.0, lambda: coordinator.group_metadata().generation_id != earlier))
        eventually(polled(0.1, coordinator.stable))


def test_a_writer_whose_broker_stands_still_does_not_spin(
    kafka_server: Server, new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_passes, inner = 0, Sender.run_once

    def counting(sender: Sender) -> None:
        nonlocal n_passes
        n_passes += 1
        inner(sender)

    monkeypatch.setattr(Sender, "run_once", counting)
    record = NewRecord(b"key", b"value")
    with closing(KafkaLog(replace(new_cluster(1), timeout_ms=4_000))) as log:
        log.append(ACTIONS, [record])
        kafka_server.process.send_signal(signal.SIGSTOP)
        try:
            began_s, n_passes = time.monotonic(), 0
            # It asks again after half the time, by a connection that is made and stays silent.
            with pytest.raises(TransportError):
                log.append(ACTIONS, [record])
            assert n_passes <= 100 * (time.monotonic() - began_s)  # tens of thousands
        finally:
            kafka_server.process.send_signal(signal.SIGCONT)


def test_a_member_whose_broker_stands_still_does_not_spin(
    kafka_server: Server, new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_passes, inner = 0, KafkaConsumer._poll_once

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal n_passes
        n_passes += 1
        return inner(*arguments, **options)

    monkeypatch.setattr(KafkaConsumer, "_poll_once", counting)
    monkeypatch.setattr(Membership, "session_s", 2.0)
    assigned: list[int] = []
    member = Membership(
        new_cluster(1), "group", ACTIONS, on_assigned=assigned.extend, on_revoked=lambda _: None
    )
    with closing(member):
        while not assigned:
            member.poll(0.5)
        kafka_server.process.send_signal(signal.SIGSTOP)
        try:
            began_s, n_passes = time.monotonic(), 0
            while time.monotonic() - began_s < 2.0:  # a session, whose heartbeats are overdue
                member.poll(0.5)
            assert n_passes <= 100 * (time.monotonic() - began_s)  # thousands
        finally:
            kafka_server.process.send_signal(signal.SIGCONT)
        member.poll(0.5)
