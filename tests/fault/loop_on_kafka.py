"""Joiners and trainers of one log on Kafka, as processes that are killed, and what they learn.

The trainers keep in their checkpoints which rows made the parameters: what survives says itself
what it was learned from.
"""

import faulthandler
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

import trainer.loop
import trainer.reader
from freshrank import config
from freshrank.clock import SystemClock
from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from tests.fault.joined_on_kafka import RAW, Joined, in_small_rounds, local_log
from tests.fault.processes import Work, started
from tests.fault.trained_on_kafka import published
from tests.unit.joiner.world import Example
from tests.unit.trainer.example_records import Bench
from trainer.checkpoint_parts import restore
from trainer.checkpoint_store import CheckpointStore
from trainer.evaluation import Evaluation, Window, auc
from trainer.fingerprint import fingerprint
from trainer.learner import Learner
from trainer.losses import Loss

F32 = npt.NDArray[np.float32]

# Records of each topic in a round, of 20 ms at least: joiners and trainers that die all the
# time get on equally fast, so that each is killed at work until the end.
N_READ_MAX: Final = {1: 40, 4: 10}  # by the number of partitions, which are joined side by side
N_ROWS_MAX: Final = 1 << 18
DEADLINE_S: Final = 180.0  # between two kills, on a machine that does much else
OVERTAKEN: Final = 3  # the exit code of whoever finds that another has its place
LEARNED: Final = "learned"
CLICK_COUNTS: Final = (2, 5, 8)  # of weight 1, no reversal, whatever buy has; see `described`


def document(n_partitions: int) -> dict[str, Any]:
    """Sections of the configuration beside those of joining."""
    return {
        "trainer": {"batching": "fixed" if n_partitions == 1 else "adaptive", "batch_max": 16},
        "model": {"hidden": [8]},
        "store": {"initial_rows": 64},
        "sync": {"sparse_every": "100ms", "dense_every": "200ms", "full_every": "200ms"},
        "checkpoint": {"every": "100ms", "keep": 2},
    }


@dataclass(frozen=True, slots=True)
class Learned:
    """What is left of a run.

    Attributes:
        fingerprint: Of all parameters.
        rows: `float32[n, 3]` in the order learned: number of the request, item, what it says.
        scores: `float32[n]`: the chance of a click that the trainer saw before it learned a row.
    """

    fingerprint: str
    rows: F32
    scores: F32

    def auc(self) -> float:
        """Of clicks, progressive: but for the first third, by which the loop is warm."""
        is_warm = self.rows[:, 0] > self.rows[:, 0].max() / 3
        counts = np.isin(self.rows[:, 2] // 4, CLICK_COUNTS)
        chosen = is_warm & counts
        scores = self.scores[chosen].astype(np.float64)
        is_click = self.rows[chosen, 2] % 2 == 1
        return auc(scores, is_click, np.ones(len(scores)))


class Remembering(Evaluation):
    """Keeps which rows it has seen, and the score that each had then."""

    def __init__(self, tasks: list[str], losses: list[Loss]) -> None:
        super().__init__(tasks, losses)
        self._windows[LEARNED] = Window(N_ROWS_MAX)

    def add(self, batch: ExampleBatch, own: F32, item_age_s: npt.NDArray[np.int64]) -> None:
        """Take in a batch that is learned."""
        super().add(batch, own, item_age_s)
        rows = described(
            batch.request_ids, batch.items, batch.labels, batch.weights, batch.is_reversal
        )
        self._windows[LEARNED].add(np.column_stack([rows, own[:, 0]]))


def described(
    requests: list[str],
    items: list[str],
    labels: npt.ArrayLike,
    weights: npt.ArrayLike,
    is_reversal: npt.ArrayLike,
) -> F32:
    """Rows of the story as numbers; of two tasks labels are 0 or 1, weights -1, 0 or 1."""
    numbers = [int(one.removeprefix("r")) for one in requests]
    said = np.asarray(labels) @ [1, 2] + 4 * (np.asarray(weights) @ [1, 3] + 4)
    said += 36 * np.asarray(is_reversal)
    return np.array([numbers, list(map(int, items)), said], np.float32).T


def rows_of(joined: Joined) -> F32:
    """What a trainer of these examples has to learn, partition by partition."""
    rows: list[Example] = [row for some in joined.rows for row in some]
    return described(
        [row.request for row in rows],
        [row.item for row in rows],
        [row.labels for row in rows],
        [row.weights for row in rows],
        [row.is_reversal for row in rows],
    )


def undisturbed(directory: Path, n_partitions: int, n_read: int = 256) -> Learned:
    """What a trainer in this process learns of the examples in this local log.

    Args:
        directory: Of the log.
        n_partitions: Of the log.
        n_read: Records that it takes from one partition before it looks at the next.
    """
    own = directory / f"learned-{n_read}"
    settings = Settings.model_validate(
        RAW | document(n_partitions) | {"log": {"fsync": "never", "partitions": n_partitions}}
    )
    bench = Bench(own, settings, clock=SystemClock(), log=local_log(directory, n_partitions))
    with remembering(), patch.object(trainer.reader, "_RECORDS_MAX", n_read):
        one = bench.trainer()
        one.drain()
    one.close()
    bench.close()
    return saved(own, settings)


def remembering() -> AbstractContextManager[object]:
    """Trainers that are made meanwhile remember."""
    return patch.object(trainer.loop, "Evaluation", Remembering)


def saved(data_dir: Path, settings: Settings) -> Learned:
    """What the newest checkpoint below a data directory holds."""
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    checkpoint = CheckpointStore(data_dir / "trainer", keep=2).load(learner.sparse.vacate())
    assert checkpoint is not None
    evaluation = Remembering([task.name for task in settings.tasks], list(learner.losses))
    restore(checkpoint, settings, encoder, learner, evaluation)
    learned = evaluation.state()[LEARNED]
    return Learned(fingerprint(learner), learned[:, :3], learned[:, 3])


def joins(directory: Path, is_ready: Connection) -> None:
    """`freshrank join` with the data directory and the configuration of this name."""
    _run(directory, is_ready, "join")


def trains(directory: Path, is_ready: Connection) -> None:
    """`freshrank train`."""
    _run(directory, is_ready, "train", "--json")


def trains_to_the_end(directory: Path, is_ready: Connection) -> None:
    """`freshrank train` until all is learned, a remainder of a batch too."""
    _run(directory, is_ready, "train", "--json", "--until-lag", "0")


def _run(directory: Path, is_ready: Connection, *arguments: str) -> None:
    faulthandler.register(signal.SIGUSR1)
    is_ready.send(True)
    path = directory.with_suffix(".yaml")
    sys.argv = ["freshrank", *arguments, "-c", str(path)]
    with remembering():
        in_small_rounds(N_READ_MAX[config.load(path, environ={}).log.partitions])


@dataclass
class Victim:
    """A process that is killed when there is so much of what it makes, and started again.

    Attributes:
        work: What it does.
        directory: Its data.
        progress: How many rows there are.
        limits: Ascending: soon after each it is killed.
    """

    work: Work
    directory: Path
    progress: Callable[[], int]
    limits: list[int] = field(default_factory=list)
    process: BaseProcess = field(init=False)

    def __post_init__(self) -> None:
        self.process = started(self.work, self.directory)

    def kill_if_due(self, rng: random.Random) -> bool:
        """Kill it, and start it again, if the next limit is reached."""
        if not self.process.is_alive():  # on a slow machine it may be taken for dead, and end
            assert self.process.exitcode == OVERTAKEN
            self.process = started(self.work, self.directory)
        if not self.limits or self.progress() < self.limits[0]:
            return False
        self.limits.pop(0)
        time.sleep(rng.uniform(0, 0.1))  # what is seen has just been committed: any moment after it
        self.kill()
        assert self.process.exitcode == -signal.SIGKILL
        self.process = started(self.work, self.directory)
        return True

    def kill(self) -> None:
        """For good."""
        self.process.kill()
        self.process.join(DEADLINE_S)

    def tell(self) -> None:
        """Have it print where each of its threads is."""
        assert self.process.ident is not None
        os.kill(self.process.ident, signal.SIGUSR1)

    def stop(self) -> None:
        """Let it end in order."""
        self.process.terminate()
        self.process.join(DEADLINE_S)
        # It may not have begun yet.
        assert self.process.exitcode in (0, OVERTAKEN, -signal.SIGTERM)


def shake(victims: Sequence[Victim], rng: random.Random) -> None:
    """Kill them until every limit is behind them."""
    deadline_s = time.monotonic() + DEADLINE_S
    while any(one.limits for one in victims):
        if any([one.kill_if_due(rng) for one in victims]):
            deadline_s = time.monotonic() + DEADLINE_S
        if time.monotonic() >= deadline_s:
            for one in victims:
                one.tell()
            left = {one.work.__name__: (one.progress(), one.limits[:1]) for one in victims}
            raise AssertionError(f"stands still: {left}")


def n_published(data_dir: Path) -> int:
    """Examples in the base that a trainer published last."""
    info = published(data_dir)
    return 0 if info is None else info.examples
