"""When a checkpoint is written, and what goes into it and comes out."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from freshrank.clock import Clock
from freshrank.errors import SchemaError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, EventLog, TopicPartition
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.evaluation import Evaluation
from trainer.learner import Learner
from trainer.queue import Position
from trainer.state import TrainerState
from trainer.table_settings import adopt

logger = logging.getLogger(__name__)

GROUP: Final = "trainer"


# Positions of the examples, and the control log's offset.
Place = tuple[dict[int, Position], int | None]


@dataclass(frozen=True, slots=True)
class Writing:
    """A checkpoint on its way to the disk.

    Attributes:
        path: Where it is, once it is whole.
        place: How far it has learned.
        n_rows: Rows learned by it.
    """

    path: Future[Path]
    place: Place
    n_rows: int


class Saver:
    """Restores the newest checkpoint at construction, and writes new ones while learning goes on.

    Args:
        settings: How often, how many, and the seed.
        encoder: Whose schema the checkpoint must have.
        log: Where reading starts when there is no checkpoint, and where the group's offsets are
            shown.
        learner: Its parameters are saved and restored.
        evaluation: Its windows are.
        directory: Holds the checkpoints.
        clock: When.

    Attributes:
        state: As restored, or new. To be kept up to date by the loop.
        is_fresh: There was no checkpoint.

    Raises:
        SchemaError: the checkpoint was written for another configuration.
        ConfigError: its tables do not fit their budget.
        Error: there are checkpoints, and none can be read (code `checkpoint-damaged`).
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        log: EventLog,
        learner: Learner,
        evaluation: Evaluation,
        *,
        directory: Path,
        clock: Clock,
    ) -> None:
        self._store = CheckpointStore(directory, keep=settings.checkpoint.keep)
        self._every_s = settings.checkpoint.every.total_seconds()
        self._settings = settings
        self._encoder = encoder
        self._log = log
        self._learner = learner
        self._evaluation = evaluation
        self._clock = clock
        budgets = learner.sparse.vacate() if self._store.paths() else {}
        checkpoint = self._store.load(budgets)
        self.is_fresh = checkpoint is None
        starts = {
            p: Position(log.start_offset(EXAMPLES, p), 0) for p in range(log.n_partitions(EXAMPLES))
        }
        if checkpoint is None:
            self.state = TrainerState(
                encoder.schema_hash, settings.trainer.seed, starts, log.identity
            )
        else:
            self.state = restore(checkpoint, settings, encoder, learner, evaluation)
            self.state.counts["checkpoints_refused"] += self._store.n_refused
            if self.state.log != log.identity:
                self.state.follow(log.identity, starts)
            logger.info(
                "checkpoint=restored rows=%d refused=%d",
                self.state.counts["rows_learned"],
                self._store.n_refused,
            )
        self._saved = self._place()
        self._writing: Writing | None = None
        self._next_s = clock.monotonic_s() + self._every_s

    def tick(self) -> None:
        """Begin to save if it is time and something happened since the last time."""
        if self._writing is not None and self._writing.path.done():
            self.settle()
        if self._clock.monotonic_s() >= self._next_s:
            if self._writing is None and self._place() != self._saved:
                self._begin()
            self._next_s = self._clock.monotonic_s() + self._every_s

    def save(self) -> bool:
        """Write a checkpoint; False when the disk refused, which is counted: training goes on."""
        self.settle()
        self._begin()
        return self.settle()

    def settle(self) -> bool:
        """Wait for the checkpoint that is being written, if one is; False when the disk refused."""
        if self._writing is None:
            return True
        writing, self._writing = self._writing, None
        try:
            path = writing.path.result()
        except OSError as error:
            self.state.counts["checkpoints"] -= 1
            self.state.counts["checkpoint_failures"] += 1
            logger.error("checkpoint=failed error=%s", error)
            return False
        self._saved = writing.place
        logger.info("checkpoint=saved path=%s rows=%d", path, writing.n_rows)
        self._commit(writing.place[0])
        return True

    def _begin(self) -> None:
        """All that was learned so far is written by a thread of its own, which learns nothing."""
        self.state.counts["checkpoints"] += 1
        files = checkpoint(self.state, self._learner, self._evaluation).begin()
        thread = ThreadPoolExecutor(1, "checkpoint")
        path = thread.submit(self._store.save, files)
        thread.shutdown(wait=False)
        self._writing = Writing(path, self._place(), self.state.counts["rows_learned"])

    def _place(self) -> Place:
        return dict(self.state.positions), self.state.control_offset

    def _commit(self, saved: Mapping[int, Position]) -> None:
        """Show the saved positions as the group's offsets; nothing depends on it."""
        positions = {
            TopicPartition(EXAMPLES, p): at.offset
            for p, at in saved.items()
            if p >= 0  # those below are of other logs
        }
        try:
            self._log.commit(GROUP, positions)
        except TransportError as error:
            logger.warning("group=%s state=not-committed error=%s", GROUP, error)


def checkpoint(state: TrainerState, learner: Learner, evaluation: Evaluation) -> Checkpoint:
    """All that was learned."""
    adam = learner.adam
    return Checkpoint(
        state=state.to_json(),
        dense={
            **{f"net.{name}": value.numpy() for name, value in learner.net.state_dict().items()},
            "adam.moment1": adam.moment1.numpy(),
            "adam.moment2": adam.moment2.numpy(),
            "adam.n_steps": np.array([adam.n_steps], np.int64),
        },
        windows=dict(evaluation.state()),
        tables=learner.sparse.tables,
    )


def restore(
    checkpoint: Checkpoint,
    settings: Settings,
    encoder: FeatureEncoder,
    learner: Learner,
    evaluation: Evaluation,
) -> TrainerState:
    """Put a checkpoint's parameters into a new learner, and its windows into the metrics.

    Raises:
        SchemaError: it was written for another configuration.
    """
    state = TrainerState.from_json(checkpoint.state)
    if state.schema_hash != encoder.schema_hash:
        raise SchemaError(
            f"the checkpoint was learned with schema {state.schema_hash}, this configuration is "
            f"{encoder.schema_hash}: start with the features, tasks, model and salt it had, or "
            "learn anew in another data directory"
        )
    dense = checkpoint.dense
    names = learner.net.state_dict()
    learner.adam.restore(
        parameters=torch.cat([torch.from_numpy(dense[f"net.{n}"]).reshape(-1) for n in names]),
        moment1=torch.from_numpy(dense["adam.moment1"]),
        moment2=torch.from_numpy(dense["adam.moment2"]),
        n_steps=int(dense["adam.n_steps"][0]),
    )
    adopt(checkpoint.tables, settings, encoder)
    learner.sparse.tables.update(checkpoint.tables)
    learner.clock_s = state.clock_s
    evaluation.restore(checkpoint.windows)
    return state
