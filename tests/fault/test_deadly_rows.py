"""Rows that kill whoever learns them: found by the fourth trainer, and the others are learned."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freshrank import examples
from freshrank.clock import SystemClock
from freshrank.features import FeatureEncoder
from freshrank.messages import DeadLetter
from freshrank.transport.base import DEAD_LETTER_SUFFIX, EXAMPLES, NewRecord
from tests.fault import deadly_rows, trained_on_kafka
from tests.fault.deadly_rows import PARTS
from tests.fault.trained_on_kafka import OnKafka, append, restored
from tests.servers import NewCluster
from tests.unit.trainer.example_records import Bench, make_batch, make_settings
from trainer.fingerprint import fingerprint
from trainer.poison import SEARCHED_AFTER

ROOT = Path(__file__).parents[2]
DEADLY = 666
DEADLINE_S = 240.0
ITEMS = [*range(1, 10), DEADLY, *range(10, 16)]  # the tenth, in the third batch of four


def bench_of(directory: Path) -> Bench:
    return Bench(directory, make_settings(**PARTS), clock=SystemClock())


def fill(directory: Path, items: list[int]) -> None:
    bench = bench_of(directory)
    labels = np.arange(len(items)) % 2
    bench.append(make_batch(bench.encoder, {"item_id": [[item] for item in items]}, labels))
    bench.close()


def learn(directory: Path) -> int:
    command = [sys.executable, deadly_rows.__file__, str(directory)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "DEADLY_ITEM": str(DEADLY)}
    return subprocess.run(command, env=environ, check=False, timeout=120).returncode


def test_rows_that_kill_trainers_are_dead_lettered_and_the_others_learned(tmp_path: Path) -> None:
    fill(tmp_path, ITEMS)
    codes = [learn(tmp_path) for _ in range(SEARCHED_AFTER + 1)]
    assert codes == [-signal.SIGKILL] * SEARCHED_AFTER + [0]
    bench = bench_of(tmp_path)
    trainer = bench.trainer()
    found = set(trainer.learner.sparse.tables["item_id"].keys().tolist())
    assert found == set(ITEMS) - {DEADLY}
    [letter] = bench.letters()
    assert (letter.code, letter.offset) == ("deadly", 0)
    refused = examples.decode(letter.value, ["click"], [s.name for s in bench.encoder.slots])
    assert refused.values.slots["item_id"].ids.tolist() == [DEADLY]
    bench.close()


@pytest.mark.timeout(900)  # four trainers and a search, each with torch to load
def test_on_kafka_rows_that_kill_trainers_are_dead_lettered_and_the_others_learned(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    trained = OnKafka(new_cluster(1), tmp_path, {**PARTS, "sync": trained_on_kafka.PARTS["sync"]})
    encoder = FeatureEncoder(trained.settings)
    labels = np.arange(len(ITEMS)) % 2
    batch = make_batch(encoder, {"item_id": [[item] for item in ITEMS]}, labels)
    append(trained.cluster, [NewRecord(b"key", examples.encode(batch, ["click"]))])
    program = (sys.executable, deadly_rows.__file__)
    environ = {"PYTHONPATH": str(ROOT), "DEADLY_ITEM": str(DEADLY)}
    for n in range(SEARCHED_AFTER):
        with trained.trainer(f"trainer-{n}", program=program, **environ) as process:
            assert process.wait(DEADLINE_S) == -signal.SIGKILL, trained.told(f"trainer-{n}")
    with trained.trainer("searching", program=program, **environ) as process:
        trained.until(lambda: trained.n_examples() == len(ITEMS) - 1, DEADLINE_S)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0, trained.told("searching")
    learner, state = restored(trained.data_dir, trained.settings)
    found = set(learner.sparse.tables["item_id"].keys().tolist())
    assert found == set(ITEMS) - {DEADLY}
    assert state.counts["rows_learned"] == len(ITEMS) - 1
    with closing(trained.log()) as log:
        [record] = log.read(EXAMPLES + DEAD_LETTER_SUFFIX, 0, 0)
    letter = msgspec.msgpack.decode(record.value, type=DeadLetter)
    assert (letter.code, letter.topic, letter.offset) == ("deadly", EXAMPLES, 0)
    refused = examples.decode(letter.value, ["click"], [slot.name for slot in encoder.slots])
    assert refused.values.slots["item_id"].ids.tolist() == [DEADLY]


def test_a_batch_in_which_trainers_were_killed_from_outside_is_learned_as_any_other(
    tmp_path: Path,
) -> None:
    items = list(range(1, 17))
    prints = []
    for name in ("calm", "suspect"):
        fill(tmp_path / name, items)
        bench = bench_of(tmp_path / name)
        if name == "suspect":
            for _ in range(SEARCHED_AFTER):
                trainer = bench.trainer()  # as if killed in its first batch
                study = trainer._study
                study.reader.fill(study.queue)
                study.isolation.begin(study.queue.cut(flush=False), trainer._state.positions)
        trainer = bench.trainer()
        trainer.drain()
        assert trainer.accounting()["rows_learned"] == 16
        assert trainer.accounting().get("examples_dead_letter", 0) == 0
        prints.append(fingerprint(trainer.learner))
        bench.close()
    assert prints[0] == prints[1]
