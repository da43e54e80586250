"""kill -9 of a trainer that publishes and saves all the time, and a disk that is full.

Expected: each example influences the surviving parameters once, and what the channel holds is what
the trainer has. `test_kill_the_loop.py` does the same with the joiner; here the trainer is mostly
inside a checkpoint or a publication when it dies.
"""

import hashlib
import json
import random
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from freshrank.clock import SystemClock
from freshrank.settings import Settings
from tests.fault.processes import finished, full_disk, shaken_by_kills
from tests.unit.trainer.example_records import FEATURES, Bench, make_settings, random_batch

N_RECORDS, RECORD_ROWS = 120, 40


def _settings() -> Settings:
    rare = {**FEATURES[0], "admission": {"min_count": 4}}
    expiring = {**FEATURES[2], "expire": "5s"}
    return make_settings(
        features=[rare, FEATURES[1], expiring, FEATURES[3]],
        sync={"sparse_every": "20ms", "dense_every": "60ms", "full_every": "100ms"},
        checkpoint={"every": "20ms", "keep": 2},
    )


def _digest(bench: Bench) -> dict[str, str]:
    """Everything that was learned, from a trainer that starts from the last checkpoint."""
    learner = bench.trainer()._learner
    digests = {"dense": learner.adam.parameters.numpy().tobytes()}
    digests["dense"] += learner.adam.moment1.numpy().tobytes()
    ids = np.arange(64, dtype=np.uint64)
    for name, table in learner.sparse.tables.items():
        digests[name] = table.keys().tobytes()
        for column in (table.pending(ids), table.born_s(ids), table.last_seen_s(ids)):
            digests[name] += column.tobytes()
        for _ in range(2):  # optimizer state shows in what equal steps do
            digests[name] += table.lookup(ids).tobytes()
            table.apply(ids, np.full((len(ids), table.width), 0.5, np.float32))
    return {name: hashlib.blake2b(data).hexdigest() for name, data in digests.items()}


def _learn(directory: Path, is_ready: Connection) -> None:
    """In a process of its own: learn all that is in the log, the remainder too."""
    bench = Bench(directory, _settings(), clock=SystemClock())
    trainer = bench.trainer()
    is_ready.send(True)
    while trainer.step(0.0):
        pass
    trainer.drain()
    trainer.close()
    (directory / "totals.json").write_text(json.dumps(trainer.accounting()["examples_learned"]))
    bench.close()


def _recorded(directory: Path) -> Path:
    """A log of examples that nobody has learned."""
    bench = Bench(directory, _settings(), clock=SystemClock())
    rng = np.random.default_rng(8)
    for n in range(N_RECORDS):
        batch = random_batch(bench.encoder, rng, RECORD_ROWS, offsets={"freshrank.actions:0": n})
        batch.ts_ms[:] += 100 * n
        bench.append(batch)
    bench.close()
    return directory


def test_trainer_killed_at_random_points_ends_where_an_undisturbed_one_does(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1 << 32)
    calm, shaken = _recorded(tmp_path / "calm"), _recorded(tmp_path / "shaken")
    shaken_by_kills(_learn, shaken, finished(_learn, calm), seed)

    benches = [Bench(directory, _settings(), clock=SystemClock()) for directory in (calm, shaken)]
    totals = [json.loads((d / "totals.json").read_text()) for d in (calm, shaken)]
    digests = [_digest(bench) for bench in benches]
    examples = [bench.frames()[-1].info.examples for bench in benches]
    for bench in benches:
        bench.close()
    assert totals[0] == totals[1] == N_RECORDS * RECORD_ROWS
    assert examples == totals
    assert digests[0] == digests[1], f"seed {seed}"


@pytest.mark.parametrize("n_bytes", [0, 2_000])
def test_full_disk_costs_a_checkpoint_but_no_training(tmp_path: Path, n_bytes: int) -> None:
    settings = make_settings(sync={"sparse_every": "365d"})
    bench = Bench(tmp_path, settings)
    rng = np.random.default_rng(0)
    bench.append(*(random_batch(bench.encoder, rng, 32) for _ in range(4)))
    trainer = bench.trainer()
    trainer.step(0.0)
    assert trainer._saver.save()
    with full_disk(n_bytes):
        trainer.step(0.0)
        assert not trainer._saver.save()
        trainer.step(0.0)
        assert trainer.statistics()["unsaved"] == 1
    counts = trainer.accounting()
    assert counts["rows_learned"] == 96
    assert counts["checkpoint_failures"] == 1
    assert counts["checkpoints"] == 1
    names = [path.name for path in (tmp_path / "trainer").iterdir()]
    assert sorted(names) == ["ATTEMPT", "checkpoint-000001-000000000001"]
    assert bench.trainer().accounting()["rows_learned"] == 32  # the old one is whole
    assert trainer._saver.save()
    assert trainer.statistics()["unsaved"] == 0
    assert bench.trainer().accounting()["rows_learned"] == 96
    bench.close()
