"""When a checkpoint is written and read; what is in it, `checkpoint_parts` knows."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from freshrank.clock import Clock
from freshrank.errors import TransportError
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, EventLog, TopicPartition
from freshrank.transport.files import disk_failed, has_failed
from trainer.checkpoint import Files, read, verified
from trainer.checkpoint_parts import check_schema, checkpoint, restore
from trainer.checkpoint_store import CheckpointStore
from trainer.denials import Denial, Denier
from trainer.evaluation import Evaluation
from trainer.guard_memory import GuardMemory
from trainer.learner import Learner
from trainer.queue import Position
from trainer.scrub import scrub
from trainer.state import TrainerState

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
        guard: What the guard goes by is.
        directory: Holds the checkpoints.
        clock: When.
        follows_new_log: Go on from a checkpoint of another log with the start of this one.

    Attributes:
        state: As restored, or new. To be kept up to date by the loop.
        is_fresh: There was no checkpoint.
        is_refused: The disk did not take the last checkpoint.

    Raises:
        TransportError: the checkpoint was learned from another log (code `log-replaced`).
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
        guard: GuardMemory,
        *,
        directory: Path,
        clock: Clock,
        follows_new_log: bool,
    ) -> None:
        self._store = CheckpointStore(directory, keep=settings.checkpoint.keep)
        self._every_s = settings.checkpoint.every.total_seconds()
        self._settings = settings
        self._encoder = encoder
        self._log = log
        self._learner = learner
        self._evaluation = evaluation
        self._guard = guard
        self._clock = clock
        self._found = self._store.newest()
        budgets = learner.sparse.vacate() if self._found else {}
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
            self.state = restore(checkpoint, settings, encoder, learner, evaluation, guard)
            self.state.counts["checkpoints_refused"] += self._store.n_refused
            if self.state.log != log.identity:
                if not follows_new_log:
                    raise _replaced(self._found, self.state.log, log.identity)
                self.state.follow(log.identity, starts)
            logger.info(
                "checkpoint=restored rows=%d refused=%d",
                self.state.counts["rows_learned"],
                self._store.n_refused,
            )
        self._saved: Place | None = self._place()
        self._denier = Denier(settings, encoder.slots)
        self._scrubbed: set[tuple[str, int, int]] = set()
        self._writing: Writing | None = None
        self.is_refused = False
        self._next_s = clock.monotonic_s() + self._every_s

    @property
    def is_behind(self) -> bool:
        """Another trainer has saved a newer checkpoint than the one restored here."""
        return self._store.newest() != self._found

    @property
    def is_due(self) -> bool:
        """`tick` will save, if something happened."""
        return self._writing is None and self._clock.monotonic_s() >= self._next_s

    def tick(self) -> None:
        """Begin to save if it is time and something happened since the last time."""
        if self._writing is not None and self._writing.path.done():
            self.settle()
        if self._clock.monotonic_s() >= self._next_s:
            if self._writing is None and self._place() != self._saved:
                self._begin()
            self._next_s = self._clock.monotonic_s() + self._every_s

    def save(self) -> bool:
        """Write a checkpoint; False when the disk refused, which is counted: training goes on.

        Raises:
            TransportError: the disk is broken or read-only (code `disk-failed`).
        """
        self.settle()
        self._begin()
        return self.settle()

    def save_soon(self) -> None:
        """Let the next `tick` save, whatever has happened since the last time."""
        self._next_s, self._saved = self._clock.monotonic_s(), None

    def look_up(self, name: str) -> tuple[Path, TrainerState]:
        """A whole checkpoint of this configuration, and what its trainer had done.

        Raises:
            DataError: there is none of that name (code `unknown-checkpoint`).
            Error: it is damaged, or of a newer format or another configuration.
        """
        path = self._store.find(name)
        state = TrainerState.from_json(verified(path))
        check_schema(state, self._encoder)
        return path, state

    def go_back(self, path: Path) -> None:
        """Put the parameters and metric windows of a checkpoint in place of those learned.

        Args:
            path: As `look_up` has found it.

        Raises:
            Error: it cannot be read, or does not fit the settings: there are no parameters left.
        """
        budgets = self._learner.sparse.vacate()
        found = read(path, budgets, is_verified=True)
        restore(found, self._settings, self._encoder, self._learner, self._evaluation)

    def settle(self) -> bool:
        """Wait for the checkpoint that is being written, if one is; False when the disk refused."""
        if self._writing is None:
            return True
        writing, self._writing = self._writing, None
        try:
            path = writing.path.result()
            self.is_refused = False
        except OSError as error:
            self.is_refused = True
            self.state.counts["checkpoints"] -= 1
            self.state.counts["checkpoint_failures"] += 1
            logger.error("checkpoint=failed error=%s", error)
            if has_failed(error):
                raise disk_failed("save a checkpoint", error) from error
            return False
        self._saved = writing.place
        logger.info("checkpoint=saved path=%s rows=%d", path, writing.n_rows)
        self._commit(writing.place[0])
        return True

    def _begin(self) -> None:
        """All that was learned so far is written by another thread, while this one learns on."""
        self.state.counts["checkpoints"] += 1
        files = checkpoint(self.state, self._learner, self._evaluation, self._guard).begin()
        path: Future[Path] = Future()
        save = partial(self._save, files, self.state.epoch, list(self.state.denied))
        write = partial(_write, path, save)
        try:
            threading.Thread(target=write, name="checkpoint").start()
        except RuntimeError:  # no memory for one: learning waits meanwhile
            write()
        self._writing = Writing(path, self._place(), self.state.counts["rows_learned"])

    def _save(self, files: Files, epoch: int, denied: Sequence[Denial]) -> Path:
        """In a thread of its own: write a checkpoint, then scrub those that know too much."""
        path = self._store.save(files, epoch)
        new = [one for one in denied if one.name not in self._scrubbed]
        if new and scrub(self._store, path, new, self._denier):
            self._scrubbed |= {one.name for one in new}
        return path

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


def _write(path: Future[Path], save: Callable[[], Path]) -> None:
    try:
        path.set_result(save())
    except BaseException as error:  # whoever settles it hears of it
        path.set_exception(error)


def _replaced(path: Path | None, before: str, now: str) -> TransportError:
    return TransportError(
        f"{path} was learned from log {before or 'unknown'}, this one is {now}: were its topics "
        "made anew? Name the log it was learned from; or keep what was learned and learn this log "
        "from its start: --allow-gaps; or learn anew in another data directory",
        code="log-replaced",
    )
