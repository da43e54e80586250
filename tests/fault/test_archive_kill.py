"""kill -9 of the archive's writer, and of a trainer within its history.

Expected: every example stands in the archive once, and reaches the parameters once.
"""

import json
import random
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from freshrank.clock import SystemClock
from freshrank.settings import ArchiveSettings, Settings
from freshrank.transport.base import EXAMPLES
from freshrank.transport.local import LocalLog
from tests.fault.processes import finished, shaken_by_kills
from tests.unit.trainer.archives import HOUR_MS, archived, at, opened
from tests.unit.trainer.example_records import (
    FEATURES,
    NOW_MS,
    Bench,
    make_settings,
    random_batch,
)
from trainer import archive as archive_module
from trainer.archive import Archiver
from trainer.archive_files import part_names
from trainer.fingerprint import fingerprint
from trainer.history import enter
from trainer.state import TrainerState

N_RECORDS, RECORD_ROWS = 120, 40


def _settings() -> Settings:
    rare = {**FEATURES[0], "admission": {"min_count": 4}}
    return make_settings(
        features=[rare, *FEATURES[1:]], checkpoint={"every": "20ms"}, sync={"sparse_every": "20ms"}
    )


def _recorded(directory: Path, seed: int) -> Path:
    """A log of examples, ten records to an hour."""
    bench = Bench(directory, _settings(), clock=SystemClock())
    rng = np.random.default_rng(seed)
    for n in range(N_RECORDS):
        time_ms = NOW_MS + n * HOUR_MS // 10
        bench.append(at(random_batch(bench.encoder, rng, RECORD_ROWS, ts_ms=time_ms), time_ms))
    bench.close()
    return directory


def _archive(directory: Path, is_ready: Connection) -> None:
    """In a process of its own: archive the log, a file after every few records."""
    archive_module.FLUSH_S = 0.0  # type: ignore[misc]
    archive_module._RECORDS_MAX = 2
    log = LocalLog(directory / "log", clock=SystemClock(), writable=False)
    settings = ArchiveSettings.model_validate({"dir": directory / "archive"})
    is_ready.send(True)
    archiver = Archiver(settings, log, SystemClock())
    while archiver.step(0.0):
        pass
    archiver.close()


def _learn(directory: Path, is_ready: Connection) -> None:
    """In a process of its own: learn the archive beside the directory, then the log."""
    bench = Bench(directory, _settings(), clock=SystemClock())
    is_ready.send(True)
    trainer = bench.trainer(opened(bench, directory.parent / "old" / "archive"))
    while trainer.step(0.0):
        pass
    trainer.drain()
    trainer.close()
    totals = trainer.accounting()
    found = [totals["rows_learned"], totals["history_examples"], fingerprint(trainer.learner)]
    (directory / "result.json").write_text(json.dumps(found))
    bench.close()


def test_an_archiver_killed_at_random_points_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    lasts_s = finished(_archive, _recorded(tmp_path / "calm", 8))
    shaken_by_kills(_archive, _recorded(tmp_path / "shaken", 8), lasts_s, seed)

    assert len(part_names(tmp_path / "shaken" / "archive")) > 20
    bench = Bench(tmp_path / "shaken", _settings(), clock=SystemClock())
    archive = opened(bench, tmp_path / "shaken" / "archive")
    state = TrainerState(bench.encoder.schema_hash, 1, {}, bench.log.identity)
    for parts in archive.lineages().values():
        enter(archive, state, parts)
    found = [(read.record.offset, read.judged) for read in archive.records(state, set())]
    assert [offset for offset, _ in found] == list(range(N_RECORDS)), f"seed {seed}"
    rng = np.random.default_rng(8)
    for _, judged in found:
        expected = random_batch(bench.encoder, rng, RECORD_ROWS, ts_ms=NOW_MS)
        assert isinstance(judged, tuple)
        assert np.array_equal(judged[0].labels, expected.labels)
        assert np.array_equal(judged[0].values.dense, expected.values.dense)
    assert bench.log.end_offset(EXAMPLES, 0) == N_RECORDS
    assert not list((tmp_path / "shaken" / "archive").glob(".*.tmp"))
    bench.close()


def test_a_trainer_killed_within_its_history_ends_where_an_undisturbed_one_does(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1 << 32)
    old = Bench(_recorded(tmp_path / "old", 8), _settings(), clock=SystemClock())
    archived(old, tmp_path / "old" / "archive")
    old.close()
    calm, shaken = _recorded(tmp_path / "calm", 9), _recorded(tmp_path / "shaken", 9)
    # Halved: the kills fall within the history, which is the first half of the work.
    shaken_by_kills(_learn, shaken, finished(_learn, calm) / 2, seed)
    results = [json.loads((one / "result.json").read_text()) for one in (calm, shaken)]
    assert results[0] == results[1], f"seed {seed}"
    assert results[0][:2] == [2 * N_RECORDS * RECORD_ROWS, N_RECORDS * RECORD_ROWS]
