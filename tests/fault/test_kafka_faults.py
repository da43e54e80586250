"""Kafka dies and comes back: what was acknowledged is there once, and everybody goes on."""

import itertools
import threading
from contextlib import closing
from pathlib import Path

from freshrank.dev.kafka import kafka
from freshrank.dev.servers import Server, free_ports
from freshrank.errors import TransportError
from freshrank.transport import kafka_topics
from freshrank.transport.base import ACTIONS, NewRecord, Record, TopicPartition
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_topics import TopicPlan

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
