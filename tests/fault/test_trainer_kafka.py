"""Trainers on Kafka that die, freeze and hand over: the parameters are those of one undisturbed."""

import json
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from freshrank.clock import SystemClock
from freshrank.dev.kafka import kafka
from freshrank.dev.servers import Server, free_ports
from freshrank.errors import TransportError
from freshrank.transport import kafka_topics
from freshrank.transport.base import EXAMPLES, TopicPartition
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from tests.fault.processes import finished, shaken_by_kills
from tests.fault.trained_on_kafka import (
    N_ROWS,
    PARTS,
    PLACE,
    OnKafka,
    append,
    assert_refused,
    followed,
    recorded,
    saved,
    undisturbed,
)
from tests.integration.transport.log_checks import eventually
from tests.proofs import record, scale
from tests.servers import NewCluster
from tests.unit.trainer.archives import archived, opened
from tests.unit.trainer.example_records import Bench, make_settings
from trainer.fingerprint import fingerprint
from trainer.loop import Trainer
from trainer.queue import Position

DEADLINE_S = 240.0


def test_examples_on_kafka_are_learned_as_those_of_a_local_log(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    records = recorded(60)
    trained = OnKafka(new_cluster(1), tmp_path)
    append(trained.cluster, records[:32])  # whole batches: what is left over at a stop is learned
    for part in (records[32:], []):
        with trained.trainer("trainer", "--until-lag", "0", "--json") as process:
            assert process.wait(60) == 0, trained.told("trainer")
        append(trained.cluster, part)
    told = json.loads(trained.told("trainer").splitlines()[-1])
    assert told["stream"] == 28 * N_ROWS
    assert saved(trained.data_dir) == (undisturbed(tmp_path / "local", records), 60 * N_ROWS)
    with closing(trained.log()) as log:
        end = log.end_offset(*PLACE)
        assert end > len(records)  # marks of transactions
        assert log.lag(log.committed("trainer")) == {PLACE: 0}


def test_a_trainer_that_dies_or_is_stopped_is_replaced_by_one_that_waits(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    records = recorded(96)
    trained = OnKafka(new_cluster(1), tmp_path)
    append(trained.cluster, records[:32])
    with ExitStack() as running:
        first = running.enter_context(trained.trainer("first"))
        trained.until(lambda: trained.n_examples() > 0)
        second = running.enter_context(trained.trainer("second"))
        trained.until(lambda: trained.is_waiting("second"))
        append(trained.cluster, records[32:64])
        first.kill()
        takes_s = {"after kill -9": trained.until(lambda: trained.epoch() == 2, 15.0)}

        third = running.enter_context(trained.trainer("third"))
        trained.until(lambda: trained.is_waiting("third"))
        append(trained.cluster, records[64:])
        second.terminate()
        takes_s["after SIGTERM"] = trained.until(lambda: trained.epoch() == 3, 5.0)
        assert second.wait(10) == 0

        trained.until(lambda: trained.n_examples() == 96 * N_ROWS)
        third.terminate()
        assert third.wait(10) == 0, trained.told("third")
    assert saved(trained.data_dir) == (undisturbed(tmp_path / "local", records), 96 * N_ROWS)
    record("a trainer that waits takes over", **{k: f"{v:.1f} s" for k, v in takes_s.items()})


@pytest.fixture(params=["directory", "redis"])
def channel(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Section `sync.channel`: where parameters go."""
    if request.param == "directory":
        return {"kind": "directory"}
    address = request.getfixturevalue("redis_server").address
    return {"kind": "redis", "url": f"redis://{address}/0", "prefix": tmp_path.name[-40:]}


def test_a_trainer_that_was_frozen_ends_and_changes_nothing(
    new_cluster: NewCluster, tmp_path: Path, channel: dict[str, Any]
) -> None:
    records = recorded(64)
    parts = {**PARTS, "sync": {**PARTS["sync"], "channel": channel}}
    trained = OnKafka(new_cluster(1), tmp_path, parts)
    append(trained.cluster, records[:32])
    with ExitStack() as running:
        replica = running.enter_context(trained.replica())
        frozen = running.enter_context(trained.trainer("frozen"))
        trained.until(lambda: followed(replica)[1] == 32 * N_ROWS)
        epoch = trained.epoch()
        second = running.enter_context(trained.trainer("second"))
        trained.until(lambda: trained.is_waiting("second"))
        frozen.send_signal(signal.SIGSTOP)
        append(trained.cluster, records[32:])
        trained.until(lambda: followed(replica) == (epoch + 1, 64 * N_ROWS))
        frozen.send_signal(signal.SIGCONT)
        assert frozen.wait(20) == 3
        told = trained.told("frozen")  # by its lease, or by the channel that it was about to tell
        assert "the lease to write is lost" in told or "another trainer took over" in told
        assert trained.epoch() == epoch + 1
        assert_refused(trained, epoch)
        second.terminate()
        assert second.wait(10) == 0
        assert followed(replica) == (epoch + 1, 64 * N_ROWS)
    assert trained.checkpoints()[-1].startswith(f"checkpoint-{epoch + 1:06d}-")
    assert saved(trained.data_dir) == (undisturbed(tmp_path / "local", records), 64 * N_ROWS)
    assert trained.is_saved(replica)


@pytest.mark.timeout(600)  # two brokers, and two trainers with torch to load
@pytest.mark.parametrize("outlasts_lease", [False, True])
def test_a_broker_that_dies_and_comes_back_finds_a_trainer_that_learns_each_example_once(
    kafka_server: Server, tmp_path: Path, *, outlasts_lease: bool
) -> None:
    records, (port,) = recorded(96), free_ports(1)
    cluster = Cluster((f"127.0.0.1:{port}",))
    with ExitStack() as running:
        with kafka(tmp_path / "kafka", port=port) as broker:
            with cluster.admin() as admin:
                kafka_topics.create(admin, cluster, kafka_topics.TopicPlan(1))
            trained = OnKafka(cluster, tmp_path)
            append(cluster, records[:64])
            supervised = running.enter_context(trained.supervised())
            trained.until(lambda: trained.n_examples() > 0, DEADLINE_S)
            broker.process.kill()
            broker.process.wait()
            if outlasts_lease:  # it ends by design: another one may hold the lease by now
                assert supervised.process.wait(DEADLINE_S) == 3
                assert "the lease to write is lost" in trained.told(supervised.names[0])
        with kafka(tmp_path / "kafka", port=port):
            append(cluster, records[64:])
            trained.until(
                lambda: supervised.goes_on() and trained.n_examples() == 96 * N_ROWS, DEADLINE_S
            )
            supervised.process.terminate()
            assert supervised.process.wait(DEADLINE_S) == 0, trained.told(supervised.names[-1])
    assert saved(trained.data_dir) == (undisturbed(tmp_path / "local", records), 96 * N_ROWS)


def _learn(directory: Path, is_ready: Connection) -> None:
    """In a process of its own: learn all that is on Kafka."""
    brokers, prefix = json.loads((directory / "cluster.json").read_text())
    with closing(KafkaLog(Cluster(tuple(brokers), prefix))) as log:
        bench = Bench(directory, make_settings(**PARTS), clock=SystemClock(), log=log)
        trainer = bench.trainer()
        is_ready.send(True)
        step_all(trainer)
        trainer.drain()
        trainer.close()
        bench.channel.close()


def test_a_trainer_killed_at_random_points_ends_where_an_undisturbed_one_does(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    n_kills, seed = scale("kills", 6), random.randrange(1 << 32)
    records = recorded(120 + 4 * n_kills)  # some 20 s of work for 200 kills
    cluster = new_cluster(1)
    append(cluster, records)
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    for directory in (calm, shaken):
        directory.mkdir()
        (directory / "cluster.json").write_text(json.dumps([cluster.brokers, cluster.prefix]))
    shaken_by_kills(_learn, shaken, finished(_learn, calm), seed, n_kills)
    expected = (undisturbed(tmp_path / "local", records), len(records) * N_ROWS)
    assert [saved(calm), saved(shaken)] == [expected, expected], f"seed {seed}"
    record("a trainer on Kafka, killed", kills=n_kills, rows=expected[1], lost=0, doubled=0)


@pytest.fixture
def bench(new_cluster: NewCluster, tmp_path: Path) -> Iterator[Bench]:
    """A trainer's surroundings, with 20 records on Kafka."""
    cluster = new_cluster(1)
    append(cluster, recorded(20))
    bench = Bench(tmp_path, make_settings(**PARTS), log=KafkaLog(cluster))
    yield bench
    bench.close()


def step_all(trainer: Trainer) -> int:
    n_rows = trainer.start()
    while (n := trainer.step(0.05)) or trainer.reader.n_behind():
        n_rows += n
    return n_rows


def test_what_kafka_no_longer_has_is_refused_unless_gaps_are_allowed(bench: Bench) -> None:
    assert isinstance(bench.log, KafkaLog)
    trainer = bench.trainer()
    trainer.step(0.05)
    trainer._saver.save()
    n_learned = trainer.accounting()["rows_learned"]
    bench.log.remove_before(*PLACE, 11)
    bench.log.close()  # it has read ahead
    bench.log = KafkaLog(bench.log.cluster)
    with pytest.raises(TransportError, match="--allow-gaps") as refused:
        step_all(bench.trainer())
    assert refused.value.code == "offset-removed"
    again = bench.trainer(allow_gaps=True)
    assert step_all(again) + again.drain() == (20 - 10) * N_ROWS
    assert again.accounting()["rows_learned"] == n_learned + (20 - 10) * N_ROWS
    assert again.accounting()["example_gap_records"] > 0


def test_retention_of_an_idle_topic_costs_nothing(bench: Bench) -> None:
    assert isinstance(bench.log, KafkaLog)
    trainer = bench.trainer()
    step_all(trainer)
    bench.manual.advance(ms=1_000)
    trainer.step(0.0)  # saves
    trainer._saver.settle()
    end = bench.log.end_offset(*PLACE)
    assert trainer._state.positions[0] == Position(end, 0)
    bench.log.remove_before(*PLACE, end)
    bench.log.close()
    bench.log = KafkaLog(bench.log.cluster)
    assert step_all(bench.trainer()) == 0


def test_every_example_of_every_partition_is_learned_once(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(4)
    parts = {**PARTS, "trainer": {"batching": "adaptive"}, "log": {"partitions": 4}}
    bench = Bench(tmp_path, make_settings(**parts), log=KafkaLog(cluster, n_partitions=4))
    for first in (0, 4):  # a restart between
        for partition in range(4):
            records = recorded(5, seed=first + partition)
            append(cluster, records, TopicPartition(EXAMPLES, partition))
        trainer = bench.trainer()
        assert step_all(trainer) == 4 * 5 * N_ROWS
        trainer.close()
    info = bench.frames()[-1].info
    assert info.examples == 2 * 4 * 5 * N_ROWS
    bench.close()


def test_an_archive_is_learned_first_and_kafka_behind_it(bench: Bench, tmp_path: Path) -> None:
    assert isinstance(bench.log, KafkaLog)
    directory = archived(bench, tmp_path / "archive")
    append(bench.log.cluster, recorded(12, seed=9))
    trainer = bench.trainer(opened(bench, directory))
    step_all(trainer)
    trainer.drain()
    assert trainer.reader.n_history_rows == 20 * N_ROWS
    records = recorded(20) + recorded(12, seed=9)
    assert fingerprint(trainer.learner) == undisturbed(tmp_path / "local", records)


def test_topics_made_anew_are_refused_unless_gaps_are_allowed(bench: Bench) -> None:
    assert isinstance(bench.log, KafkaLog)
    bench.trainer().close()
    cluster = bench.log.cluster
    bench.log.close()
    with cluster.admin() as admin:
        admin.delete_topics([cluster.name(EXAMPLES)])
        eventually(lambda: EXAMPLES not in kafka_topics.described(admin, cluster))
        kafka_topics.create(admin, cluster, kafka_topics.TopicPlan(1))
    append(cluster, recorded(4, seed=9))
    bench.log = KafkaLog(cluster)
    with pytest.raises(TransportError, match="made anew") as refused:
        bench.trainer(check_lease=lambda: None)
    assert refused.value.code == "log-replaced"
    again = bench.trainer(check_lease=lambda: None, allow_gaps=True)
    assert again.drain() == 4 * N_ROWS
    assert again.accounting()["rows_learned"] == 24 * N_ROWS
