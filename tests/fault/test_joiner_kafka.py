"""Joiners on Kafka that die, move, sleep and lose their disks: the examples are the oracle's."""

import random
import shutil
import signal
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from freshrank.clock import SystemClock
from freshrank.dev.kafka import kafka
from freshrank.dev.servers import Server, free_ports
from freshrank.errors import TransportError
from freshrank.feature_state import LocalFeatureState, StateQuery
from freshrank.settings import ArchiveSettings, Settings
from freshrank.states import open_state
from freshrank.transport import kafka_topics
from freshrank.transport.base import (
    IMPRESSIONS,
    JOINER_STATE,
)
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from tests.fault.joined_on_kafka import (
    RAW,
    Joined,
    OnKafka,
    Watch,
    joiner_of,
    local_log,
    oracle,
    outputs,
    record_log,
)
from tests.fault.story import END_MS
from tests.integration.transport.log_checks import DEADLINE_S, eventually
from tests.proofs import record, scale
from tests.servers import NewCluster
from tests.unit.joiner import world
from trainer.archive import Archiver
from trainer.joiner import Joiner
from trainer.joiner.transacted import Transacted

N_KILLS = scale("kills", 6)
N_REQUESTS = 600


@dataclass(frozen=True, slots=True)
class Recorded:
    """A local log, and what the oracle makes of it."""

    log: Path
    n_partitions: int
    expected: Joined


def recorded(directory: Path, n_partitions: int, n_requests: int = N_REQUESTS) -> Recorded:
    log, copy = directory / "log", directory / "oracle"
    for one in (log, copy):
        record_log(one, n_partitions, n_requests)
    return Recorded(log, n_partitions, oracle(copy, n_partitions))


@pytest.fixture(scope="module", params=[1, 4])
def one_or_four(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    return recorded(tmp_path_factory.mktemp("recorded"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded(tmp_path_factory.mktemp("recorded"), 1)


def on_kafka(of: Recorded, new_cluster: NewCluster, directory: Path, **raw: Any) -> OnKafka:
    return OnKafka(new_cluster(of.n_partitions), of.log, directory, of.n_partitions, **raw)


def test_a_process_joins_as_joiners_on_files_do(
    one_or_four: Recorded, new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = one_or_four.expected
    n_partitions, archive = one_or_four.n_partitions, tmp_path / "archive"
    joined = OnKafka(
        new_cluster(n_partitions),
        one_or_four.log,
        tmp_path,
        n_partitions,
        archive={"dir": str(archive)},
    )
    with closing(KafkaLog(joined.cluster, n_partitions=n_partitions)) as log:
        with joined.running("a"):
            Watch(log).until(expected.n_rows)
        assert joined.result(log) == expected
        assert log.start_offset(JOINER_STATE, 0) > 0  # it was renewed, and cut
    assert pq.read_table(archive, columns=["row"]).num_rows == expected.n_rows
    assert expected.totals["reversals"] > 0
    assert expected.totals["dead_letter"] > 0


@pytest.mark.timeout(60 + 10 * N_KILLS)
def test_killed_and_stopped_processes_lose_and_double_nothing(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    rng = random.Random(6)
    of = recorded(tmp_path, 4, n_requests=max(N_REQUESTS, 200 * N_KILLS))
    archive = tmp_path / "archive"  # two write it, too
    joined = on_kafka(of, new_cluster, tmp_path, archive={"dir": str(archive)})
    limits = sorted(rng.sample(range(1, of.expected.n_rows * 9 // 10), N_KILLS))
    began_s = time.monotonic()
    with closing(KafkaLog(joined.cluster, n_partitions=4)) as log:
        watch = Watch(log)
        running = {name: joined.start(name) for name in "ab"}
        try:
            for limit in limits:
                watch.until(limit)
                name = rng.choice("ab")
                how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                running[name].send_signal(how)
                assert running[name].wait(DEADLINE_S) in (-how, 0)
                running[name] = joined.start(name)
            watch.until(of.expected.n_rows)
            for process in running.values():
                process.terminate()
                # The last one may not have begun yet.
                assert process.wait(DEADLINE_S) in (0, -signal.SIGTERM)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        assert joined.result(log) == of.expected
        # What the last of them died before.
        Archiver(ArchiveSettings(dir=archive), log, SystemClock()).close()
        placed = pq.read_table(archive, columns=["partition", "offset", "row"]).to_pylist()
        assert len(placed) == of.expected.n_rows
        assert len({tuple(one.values()) for one in placed}) == of.expected.n_rows
    record(
        "kills",
        of="joiners on Kafka",
        kills=N_KILLS,
        rows=of.expected.n_rows,
        seconds=round(time.monotonic() - began_s, 1),
    )


def test_a_cache_that_lacks_a_round_is_rolled_forward(
    one: Recorded, new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined = on_kafka(one, new_cluster, tmp_path)
    for n_rounds in ("1", "7"):
        assert joined.start(CRASH_AFTER=n_rounds).wait(DEADLINE_S) == -signal.SIGKILL
    with closing(KafkaLog(joined.cluster)) as log:
        with joined.running("a"):
            Watch(log).until(one.expected.n_rows)
        assert joined.result(log) == one.expected


@pytest.mark.parametrize("seed", [1, 4])
def test_joiners_that_take_over_without_a_cache_or_with_an_old_one_join_the_same(
    seed: int,
    one: Recorded,
    new_cluster: NewCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Joiner, "n_read_max", 10)
    monkeypatch.setattr(Transacted, "renewal_bytes_min", 20_000)
    rng = random.Random(seed)
    joined = on_kafka(one, new_cluster, tmp_path)
    with closing(KafkaLog(joined.cluster)) as log:
        for turn in count():
            directory = tmp_path / rng.choice(["old", "older", f"new-{turn}"])
            with (
                closing(log.transactions("joiner-0")) as transactions,
                closing(joiner_of(joined.settings, log, 0, directory, transactions)) as joiner,
            ):
                if not all([joiner.step(0.0) for _ in range(rng.choice([1, 2, 25]))]):
                    break
        assert joined.result(log) == one.expected


def test_a_cache_that_is_damaged_is_filled_anew(
    one: Recorded, new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined = on_kafka(one, new_cluster, tmp_path)
    assert joined.start(CRASH_AFTER="7").wait(DEADLINE_S) == -signal.SIGKILL
    (cache,) = (tmp_path / "a" / "joiner").glob("*.sqlite")
    cache.write_bytes(b"damaged" * 1_000)
    with closing(KafkaLog(joined.cluster)) as log:
        with joined.running("a"):
            Watch(log).until(one.expected.n_rows)
        assert joined.result(log) == one.expected


def test_feature_state_of_joiners_that_died_is_that_of_an_undisturbed_one(
    one: Recorded, new_cluster: NewCluster, redis_server: Server, tmp_path: Path
) -> None:
    features = [*world.FEATURES, {"name": "clicks", "type": "count", "event": "click"}]
    redis = {"kind": "redis", "url": f"redis://{redis_server.address}", "prefix": "joined"}
    settings = Settings.model_validate(RAW | {"features": features})
    expected = LocalFeatureState(settings)
    shutil.copytree(one.log, tmp_path / "copy")
    with (
        closing(local_log(tmp_path / "copy", 1)) as copy,
        closing(joiner_of(settings, copy, 0, tmp_path / "copy", state=expected)) as joiner,
    ):
        while joiner.step(0.0):
            pass
        rows, _ = outputs(copy, settings)
    joined = OnKafka(new_cluster(1), one.log, tmp_path, 1, features=features, state=redis)
    assert joined.start(CRASH_AFTER="9").wait(DEADLINE_S) == -signal.SIGKILL
    with closing(KafkaLog(joined.cluster)) as log, joined.running("a"):
        Watch(log).until(len(rows[0]))
    keys = {name: series.entries()[0] for name, series in expected.series.items()}
    query = StateQuery(END_MS, keys, "u")
    with closing(open_state(joined.settings)) as found:
        answer, wanted = found.read(query), expected.read(query)
    assert answer.recent == wanted.recent
    assert len(wanted.recent["click"]) == 3
    for name, values in wanted.values.items():
        assert len(values) > 0
        np.testing.assert_array_equal(answer.values[name], values)


def test_one_that_slept_through_its_session_is_replaced_and_writes_nothing_more(
    one: Recorded, new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined = on_kafka(one, new_cluster, tmp_path)
    with closing(KafkaLog(joined.cluster)) as log:
        watch = Watch(log)
        zombie = joined.start("a")
        try:
            watch.until(one.expected.n_rows // 3)
            zombie.send_signal(signal.SIGSTOP)
            assert watch.n_rows < one.expected.n_rows
            with joined.running("b"):
                watch.until(one.expected.n_rows)
                zombie.send_signal(signal.SIGCONT)
                zombie.terminate()
                assert zombie.wait(DEADLINE_S) in (0, 3)  # it may meet its fence on the way out
        finally:
            zombie.kill()
            zombie.wait()
        assert joined.result(log) == one.expected


def test_a_broker_that_dies_and_comes_back_finds_the_joiner_waiting(
    one: Recorded, kafka_server: Server, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    cluster = Cluster((f"127.0.0.1:{port}",))
    with kafka(tmp_path / "kafka", port=port) as first:
        with cluster.admin() as admin:
            kafka_topics.create(admin, cluster, kafka_topics.TopicPlan(1))
        joined = OnKafka(cluster, one.log, tmp_path, 1)
        with closing(KafkaLog(cluster)) as log:
            process = joined.start()
            Watch(log).until(one.expected.n_rows // 4)
            first.process.kill()
            first.process.wait()
    try:
        with kafka(tmp_path / "kafka", port=port), closing(KafkaLog(cluster)) as log:
            # The broker has the dead session and the open transaction end first: 15 s and more.
            Watch(log).until(one.expected.n_rows, within_s=90.0)
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
            assert joined.result(log) == one.expected
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("anew", [IMPRESSIONS, JOINER_STATE])
@pytest.mark.parametrize("name", ["a", "without-a-cache"])
def test_a_topic_made_anew_is_refused(
    anew: str, name: str, one: Recorded, new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined = on_kafka(one, new_cluster, tmp_path)
    with closing(KafkaLog(joined.cluster)) as log, joined.running("a"):
        Watch(log).until(one.expected.n_rows)
    with joined.cluster.admin() as admin:
        admin.delete_topics([joined.cluster.name(anew)])
        eventually(lambda: anew not in kafka_topics.described(admin, joined.cluster))
        kafka_topics.create(admin, joined.cluster, kafka_topics.TopicPlan(1))

    with joined.start(name, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 3
    assert b"log.prefix" in said


def fits(joiner: Joiner) -> bool:
    """Whether the cache has room for the next round."""
    try:
        assert joiner.step(0.0) > 0
    except TransportError as error:
        return error.code != "disk-full"
    return True


def test_a_full_disk_of_the_cache_pauses_a_joiner(
    one: Recorded, new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined = on_kafka(one, new_cluster, tmp_path)
    with (
        closing(KafkaLog(joined.cluster)) as log,
        closing(log.transactions("joiner-0")) as transactions,
        closing(joiner_of(joined.settings, log, 0, tmp_path / "cache", transactions)) as joiner,
    ):
        joiner.n_read_max = 100
        joiner.step(0.0)
        database = joiner._state._db
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        while fits(joiner):
            pass
        assert not fits(joiner)  # the next try settles what the last one began
        reached = log.committed("joiner")
        assert not fits(joiner)
        assert log.committed("joiner") == reached
        database.execute("PRAGMA max_page_count = 1000000")
        while joiner.step(0.0):
            pass
        assert joiner.accounting() == one.expected.totals
        assert outputs(log, joined.settings)[0] == one.expected.rows
