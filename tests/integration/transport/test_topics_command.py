"""`freshrank topics`: made once, never changed in silence, and looked into."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from freshrank import config
from freshrank.clock import ManualClock, SystemClock
from freshrank.dev.servers import Server
from freshrank.logs import open_log
from freshrank.messages import Action, encode
from freshrank.transport.base import (
    ACTIONS,
    ENTITIES,
    EXAMPLES,
    IMPRESSIONS,
    TOPICS,
    NewRecord,
    Record,
)
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.local import LocalLog
from tests.integration.transport.log_checks import new_records, read_all

FEATURES = """\
features: [{name: user_id, type: id, scope: user}, {name: item_id, type: id, scope: item}]
tasks: [{name: click, event: click}]
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def write(kafka_server: Server, tmp_path: Path) -> Callable[[str], Path]:
    """A configuration with this section `log`, its topics under a prefix of this test's own."""

    def write(log: str) -> Path:
        path = tmp_path / "freshrank.yaml"
        log = log.format(broker=kafka_server.address, prefix=f"{tmp_path.name[-40:]}.")
        path.write_text(f"service: {{data_dir: {tmp_path}}}\nlog: {{{log}}}\n{FEATURES}")
        return path

    return write


@pytest.fixture
def run() -> Run:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from freshrank.cli import main; main()", "topics"]
            + [str(one) for one in arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


KAFKA = "kind: kafka, brokers: ['{broker}'], prefix: '{prefix}', replication: 1"


def action(number: int) -> NewRecord:
    message = Action(
        event_id=f"e{number}",
        ts_ms=1,
        received_at_ms=2,
        request_id="r1",
        item="i1",
        event="click",
    )
    return NewRecord(b"r1", encode(message))


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_topics_are_made_once_and_their_differences_told(
    write: Callable[[str], Path], run: Run
) -> None:
    path = write(KAFKA + ", partitions: 2")
    (made,) = lines(run("create", "-c", path, "--json"))
    assert made == {"made": list(TOPICS), "differences": []}
    again = run("create", "-c", path)
    assert again.returncode == 0
    assert again.stdout == "made none: all topics are there\n"

    differs = run("create", "-c", write(KAFKA + ", partitions: 2, retention: 2d"))
    assert differs.returncode == 1
    assert "freshrank.actions: retention.ms is 604800000, planned is 172800000" in differs.stdout
    assert "freshrank.entities:" not in differs.stdout  # compacted: they are kept


def test_other_partitions_are_refused_before_anything_is_made(
    write: Callable[[str], Path], run: Run
) -> None:
    path = write(KAFKA + ", partitions: 2")
    settings = config.load(path, environ={})
    assert run("create", "-c", path).returncode == 0
    cluster = Cluster(tuple(settings.log.brokers), settings.log.prefix)
    with cluster.admin() as admin:
        admin.delete_topics([cluster.name(ACTIONS)])
    refused = run("create", "-c", write(KAFKA + ", partitions: 3"))
    assert refused.returncode == 3
    assert "set log.partitions to what the topics have" in refused.stderr
    with cluster.admin() as admin:
        assert cluster.name(ACTIONS) not in admin.list_topics()


def test_more_replicas_than_brokers_are_refused_with_the_setting(
    write: Callable[[str], Path], run: Run
) -> None:
    refused = run("create", "-c", write(KAFKA.replace("replication: 1", "replication: 3")))
    assert refused.returncode == 3
    assert "set log.replication" in refused.stderr


def test_topics_of_a_local_log_need_no_making(write: Callable[[str], Path], run: Run) -> None:
    refused = run("create", "-c", write("kind: local"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "log.kind is local" in refused.stderr


@pytest.mark.parametrize("log", [KAFKA, "kind: local"], ids=["kafka", "local"])
def test_the_last_records_are_shown_decoded(
    log: str, write: Callable[[str], Path], run: Run
) -> None:
    path = write(log)
    if log == KAFKA:
        run("create", "-c", path)
    settings = config.load(path, environ={})
    with closing(open_log(settings, SystemClock())) as writer:
        writer.append(ACTIONS, [action(i) for i in range(5)])
        writer.append(ACTIONS, [NewRecord(b"r2", b"\xc1")])
        shown = lines(run("tail", "actions", "-c", path, "-n", 3, "--json"))  # beside the writer
    assert [one["offset"] for one in shown] == [3, 4, 5]
    assert [one["key"] for one in shown] == ["r1", "r1", "r2"]
    assert [one["message"].get("event_id") for one in shown] == ["e3", "e4", None]
    assert shown[2]["message"]["bytes"] == 1
    assert {one["topic"] for one in shown} == {ACTIONS}
    text = run("tail", ACTIONS, "-c", path, "--offset", 4).stdout.splitlines()
    assert [line.split()[0] for line in text] == ["0:4", "0:5"]
    unknown = run("tail", "clicks", "-c", path)
    assert unknown.returncode == 3
    assert "unknown topic 'freshrank.clicks'" in unknown.stderr


def test_a_recorded_log_replays_on_kafka_byte_for_byte(
    write: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    path = write(KAFKA + ", partitions: 3")
    recorded = LocalLog(tmp_path / "recorded", clock=SystemClock(), n_partitions=3)
    run("create", "-c", path)
    with closing(recorded):
        for topic in (ACTIONS, IMPRESSIONS):
            recorded.append(topic, new_records(0, 1_500))
            recorded.append(topic, [NewRecord(b"", b"a tick")], partition=2)
        recorded.append(EXAMPLES, new_records(0, 1))
        (said,) = lines(run("replay", tmp_path / "recorded", "-c", path, "--json"))
        assert said["records"] == {ENTITIES: 0, IMPRESSIONS: 1_501, ACTIONS: 1_501}
        with closing(open_log(config.load(path, environ={}), SystemClock())) as log:
            assert log.end_offset(EXAMPLES, 0) == 0  # those are the joiner's to write
            for topic in (ACTIONS, IMPRESSIONS):
                for partition in range(3):
                    replayed = read_all(log, topic, partition)
                    original = read_all(recorded, topic, partition)
                    assert pairs(replayed) == pairs(original)
                    assert {log.partition_of(topic, one.key) for one in replayed if one.key} == {
                        partition
                    }
    differs = run("replay", tmp_path / "recorded", "-c", write(KAFKA + ", partitions: 2"))
    assert differs.returncode == 3
    assert "has 3 partitions, not 2" in differs.stderr


def pairs(records: list[Record]) -> list[tuple[int, bytes, bytes]]:
    return [(one.offset, one.key, one.value) for one in records]


def test_a_log_on_kafka_opens_as_configured(write: Callable[[str], Path], run: Run) -> None:
    path = write(KAFKA + ", partitions: 2, compression: gzip, in_flight: 1MiB")
    run("create", "-c", path)
    with closing(open_log(config.load(path, environ={}), ManualClock(now_ms=0))) as log:
        assert log.n_partitions(ACTIONS) == 2
        places = log.append(ACTIONS, [NewRecord(b"%d" % i, b"value") for i in range(20)])
        assert {partition for partition, _ in places} == {0, 1}
