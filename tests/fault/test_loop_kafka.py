"""Joiners and trainers on Kafka killed side by side: nothing is lost, and nothing learned twice.

`make prove ARGS="--only loop-kills"` kills 200 times over 100,000 events, with one partition and
with four.
"""

import math
import os
import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from freshrank.transport.base import ACTIONS, IMPRESSIONS
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from tests.fault.joined_on_kafka import (
    Joined,
    OnKafka,
    Watch,
    oracle,
    places,
    record_log,
)
from tests.fault.loop_on_kafka import (
    DEADLINE_S,
    F32,
    Learned,
    Victim,
    document,
    joins,
    n_published,
    rows_of,
    saved,
    shake,
    trains,
    trains_to_the_end,
    undisturbed,
)
from tests.fault.processes import finished
from tests.proofs import record, scale
from tests.servers import NewCluster

N_KILLS = scale("loop-kills", 4)
N_EVENTS = 500 * N_KILLS
EVENTS_PER_REQUEST = 2.35  # of the story
# Of so many events; of fewer, chance alone makes more.
AUC_MAX = 0.002 if N_EVENTS >= 100_000 else 2 / math.sqrt(N_EVENTS)
# Which partition is read when makes a difference by itself: up to .0044, whoever lives or dies.
READ_AT_ONCE = (1, 10, 40, 256)


def seeded() -> random.Random:
    """The same kills for the same seed, as far as processes allow it."""
    return random.Random(int(os.environ.get("FRESHRANK_SEED", "7")))


def recorded(directory: Path, n_partitions: int) -> Joined:
    """A log in `directory / "log"`, and what one thread makes of it in `directory / "oracle"`."""
    for name in ("log", "oracle"):
        record_log(directory / name, n_partitions, int(N_EVENTS / EVENTS_PER_REQUEST))
    return oracle(directory / "oracle", n_partitions, **document(n_partitions))


def run(kafka: OnKafka, log: KafkaLog, n_rows: int, n_kills: int) -> tuple[Joined, Learned]:
    """What processes make of the log that are killed before it has given so many rows."""
    rng, watch = seeded(), Watch(log)
    joiners, trainers = (kafka.config(name).with_suffix("") for name in ("joiners", "trainers"))
    victims = [
        Victim(joins, joiners, lambda: watch.look(0.0)),
        Victim(trains, trainers, lambda: n_published(trainers)),
    ]
    for limit in sorted(rng.sample(range(1, n_rows * 8 // 10), n_kills)):
        rng.choice(victims).limits.append(limit)
    try:
        shake(victims, rng)
        watch.until(n_rows, within_s=DEADLINE_S + N_KILLS)
        for one in victims:
            one.stop()
    finally:
        for one in victims:
            one.kill()
    finished(trains_to_the_end, trainers, DEADLINE_S)
    return kafka.result(log), saved(trainers, kafka.settings)


def in_processes(
    directory: Path, expected: Joined, cluster: Cluster, n_kills: int
) -> tuple[Learned, int]:
    """What they learn, and of how many events; they join what one thread joined."""
    n_partitions = len(expected.rows)
    own = directory / f"kills-{n_kills}"
    own.mkdir()
    kafka = OnKafka(cluster, directory / "log", own, n_partitions, **document(n_partitions))
    with closing(KafkaLog(cluster, n_partitions=n_partitions)) as log:
        inputs = places(n_partitions, IMPRESSIONS, ACTIONS)
        n_events = sum(log.end_offset(*place) for place in inputs)
        joined, learned = run(kafka, log, expected.n_rows, n_kills)
    assert joined == expected
    return learned, n_events


@pytest.mark.timeout(3 * DEADLINE_S + 10 * N_KILLS)
def test_with_one_partition_parameters_after_kills_are_those_of_one_thread_bit_for_bit(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = recorded(tmp_path, 1)
    calm = undisturbed(tmp_path / "oracle", 1)
    learned, n_events = in_processes(tmp_path, expected, new_cluster(1), N_KILLS)
    np.testing.assert_array_equal(learned.rows, rows_of(expected))
    assert learned.fingerprint == calm.fingerprint
    record(
        "joiners and trainers on Kafka killed side by side, one partition: parameters bit-equal",
        kills=N_KILLS,
        events=n_events,
        examples=expected.n_rows,
        lost_or_doubled=0,
    )


@pytest.mark.timeout(3 * DEADLINE_S + 10 * N_KILLS)
def test_with_four_partitions_each_example_is_learned_once_and_as_well(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = recorded(tmp_path, 4)
    calm, _ = in_processes(tmp_path, expected, new_cluster(4), 0)
    learned, n_events = in_processes(tmp_path, expected, new_cluster(4), N_KILLS)
    for one in (calm, learned):
        np.testing.assert_array_equal(in_order(one.rows), in_order(rows_of(expected)))
    aucs = [undisturbed(tmp_path / "oracle", 4, n_read).auc() for n_read in READ_AT_ONCE]
    low, high = min(*aucs, calm.auc()), max(*aucs, calm.auc())
    record(
        "joiners and trainers on Kafka killed side by side, four partitions: each example once",
        kills=N_KILLS,
        events=n_events,
        examples=expected.n_rows,
        lost_or_doubled=0,
        progressive_auc=round(learned.auc(), 4),
        of_undisturbed_trainers=f"{low:.4f} to {high:.4f}",
    )
    assert low - AUC_MAX < learned.auc() < high + AUC_MAX


def in_order(rows: F32) -> F32:
    """By all columns."""
    return rows[np.lexsort(rows.T)]
