"""A replica behind a real trainer: it judges by the trainer's rows, and as the trainer would."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from freshrank import canaries
from freshrank.metrics import Metrics
from service.replica import Replica
from service.signal import Signal
from tests.unit.trainer.example_records import Bench, make_settings, random_batch
from tests.unit.trainer.test_trainer_rollback import roll_back
from trainer.checkpoint_store import CheckpointStore
from trainer.guard import Guard

PARTS: dict[str, Any] = {
    "trainer": {"batching": "adaptive", "batch_max": 512},
    "join": {"window": "5s", "max_out_of_order": "0s"},
    "sync": {"dense_every": "1s"},
}


class Pair:
    """A trainer, and a replica that follows it."""

    def __init__(self, directory: Path, *, seed: int = 0, **parts: Any) -> None:
        settings = make_settings(**(PARTS | parts))
        self.bench = bench = Bench(directory, settings)
        self.rng = np.random.default_rng(seed)
        self.trainer = bench.trainer()
        self.trainer.start()
        metrics = Metrics(CollectorRegistry())
        self.replica = Replica(
            settings, bench.encoder, bench.channel, bench.clock, metrics, Signal()
        )

    def run(self, seconds: int, *, flipped: bool = False) -> None:
        """Each second 200 rows, 4 to 15 % of them positive; the replica takes what it can."""
        for _ in range(seconds):
            self.bench.manual.advance(ms=1_000)
            now_ms = self.bench.manual.now_ms()
            batch = random_batch(self.bench.encoder, self.rng, 200, ts_ms=now_ms)
            rate = 0.04 + 0.11 * batch.labels
            labels = (self.rng.random(rate.shape) < rate).astype(np.float32)
            self.bench.append(replace(batch, labels=1 - labels if flipped else labels))
            while self.trainer.step(0.0):
                pass
            while self.replica.step(0.0):
                pass

    @property
    def seq(self) -> int:
        assert self.replica.model is not None
        return self.replica.model.current.info.seq

    def is_caught_up(self) -> bool:
        head = self.bench.channel.head()
        return head is not None and head.seq == self.seq


@pytest.mark.parametrize(
    ("seed", "lr", "dtype"), [(0, 0.05, "float32"), (1, 0.5, "float32"), (2, 0.5, "int8")]
)
def test_healthy_versions_are_never_refused(
    tmp_path: Path, seed: int, lr: float, dtype: str
) -> None:
    optimizer = {"sparse": {"kind": "adagrad", "lr": lr}}
    pair = Pair(tmp_path, seed=seed, optimizer=optimizer, serving={"dtype": dtype})
    pair.run(60)
    assert pair.replica.refusals == {}
    assert pair.is_caught_up()
    frame = pair.bench.frames()[-1]
    assert frame.dense is not None
    assert frame.canary is not None
    slots = [slot.name for slot in pair.bench.encoder.slots]
    rows = canaries.decode(frame.canary, slots, n_dense=1, n_tasks=1)
    assert 500 < len(rows.labels) <= 1_000
    pair.bench.close()


def test_poison_that_a_trainer_does_not_see_stays_out_and_is_followed_by_what_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tmp_path)
    pair.run(40)
    rows = pair.trainer._guard.canary()
    monkeypatch.setattr(Guard, "allows_scores", lambda _: True)
    monkeypatch.setattr(Guard, "canary", lambda _: rows)
    pair.run(10, flipped=True)
    assert pair.replica.is_held
    assert set(pair.replica.refusals) <= {"logloss", "calibration"}
    held = pair.seq
    assert 40 <= held < 45
    frame = pair.bench.frames()[0]  # the base that it asked for
    assert (frame.info.kind, frame.info.seq > held) == ("base", True)

    monkeypatch.undo()
    pair.run(180)
    assert not pair.replica.is_held
    assert pair.is_caught_up()
    pair.bench.close()


def test_frames_between_two_dense_versions_carry_no_rows(tmp_path: Path) -> None:
    pair = Pair(tmp_path, sync={"dense_every": "10s"})
    pair.run(25)
    carriers = [frame for frame in pair.bench.frames() if frame.canary is not None]
    assert 1 <= len(carriers) <= 4
    assert all(frame.dense is not None for frame in carriers)
    assert pair.is_caught_up()
    pair.bench.close()


def test_a_trainer_that_goes_back_is_followed_at_once_though_it_scores_worse(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path)
    pair.run(1)
    pair.trainer.close()
    early = CheckpointStore(tmp_path / "trainer", keep=3).newest()
    assert early is not None
    pair.trainer = pair.bench.trainer()
    pair.trainer.start()
    pair.run(40)
    roll_back(pair.bench, early.name)
    pair.run(2)
    assert pair.replica.model is not None
    assert pair.replica.model.current.info.epoch == 3
    assert pair.replica.refusals == {}
    assert pair.bench.frames()[0].canary is None
    assert pair.trainer.accounting()["rollbacks"] == 1
    pair.bench.close()
