"""From the log to parameters, a batch at a time: read, judged, cut, learned and told."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from freshrank.errors import ConfigError, Error
from freshrank.features import FeatureEncoder
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, EventLog
from trainer.dead_letters import DeadLetterBox
from trainer.denials import Denier
from trainer.lesson import Lesson
from trainer.poison import Isolation
from trainer.queue import BatchQueue, Cut, ReadRecord
from trainer.reader import CONTROL_LOG, ControlReader, ExampleReader
from trainer.rows import select


class Study:
    """Moves a learner and its state on, along the log.

    Args:
        settings: The whole configuration.
        encoder: For the same configuration.
        log: Where examples and commands stand, and dead letters go.
        lesson: Learns; its state says where to begin, and is moved on.
        history: Records that come before the log.
        allow_gaps: Learn on where retention has removed records.
        attempts: File that says in which batch a trainer died.
        progress: Told which offsets are learned.
        check_lease: Asked before each batch, raises once another trainer may learn.

    Attributes:
        reader: How far the examples are read.
        control: The commands.
        dead_letters: What was refused and may not be sent yet.
        denier: Knows where an id stands.
        is_torn: A step failed halfway: parameters and positions do not belong together any more.
        has_isolated: Rows that trainers died of were found since somebody set this to False.

    Raises:
        ConfigError: `batching: fixed` with several partitions.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        log: EventLog,
        lesson: Lesson,
        *,
        history: Iterable[ReadRecord],
        allow_gaps: bool,
        attempts: Path,
        progress: Progress,
        check_lease: Callable[[], None],
    ) -> None:
        self.lesson = lesson
        self._state = state = lesson.state
        self._log = log
        self._progress = progress
        self._check_lease = check_lease
        self.dead_letters = DeadLetterBox(log, [t.name for t in settings.tasks], state.counts)
        self.control = ControlReader(log, state, self.dead_letters)
        self._new_reader = partial(
            ExampleReader,
            *(settings, encoder, log, state.positions),
            counts=state.counts,
            allow_gaps=allow_gaps,
        )
        self._new_queue = partial(
            BatchQueue,
            batch_max=settings.trainer.batch_max,
            is_fixed=_is_fixed(settings, log),
            positions=state.positions,
        )
        self.reader = self._new_reader(history=history)
        self.queue = self._new_queue()
        self.denier = Denier(settings, encoder.slots)
        self.isolation = Isolation(attempts, log.identity, settings)
        self.is_torn = False
        self.has_isolated = False
        progress.reach("trained", state.offsets)

    def advance(self, *, flush: bool) -> int | None:
        """Deal with the next batch and with what stands before it without rows to learn.

        Args:
            flush: Learn a remainder smaller than a fixed batch too.

        Returns:
            Rows learned, 0 if the batch was refused; None if there is no batch, while paused and
            while a command waits to be obeyed.

        Raises:
            Error: an earlier step failed halfway (code `step-failed`): parameters and positions no
                longer belong together, only a restart from the checkpoint helps.
        """
        if self.is_torn:
            raise Error(
                "an earlier step failed halfway: restart, the trainer resumes from its checkpoint",
                code="step-failed",
            )
        self.control.poll()
        while True:
            self._check_lease()
            # Letters that the log did not take stop the reading, else they would pile up.
            self.dead_letters.flush()
            if self._state.is_paused or self.control.waiting is not None:
                return None
            self.reader.fill(self.queue)
            cut = self.queue.cut(flush=flush)
            self._deny(cut)
            self.is_torn = True
            self.has_isolated |= self.isolation.begin(cut, self._state.positions)
            step = self.lesson.take(cut)
            self.isolation.end()
            self._tell(cut)
            self.is_torn = False
            if step is not None:
                return 0 if cut.rows is None else cut.rows.n_rows
            if not cut.positions:
                return None

    def rewind(self) -> None:
        """Read again from where the state is by now; what was read and not learned is dropped."""
        self.reader, self.queue = self._new_reader(), self._new_queue()

    def wait(self, timeout_s: float) -> None:
        """Until something arrives."""
        positions = {CONTROL_LOG: self.control.offset}
        if not self._state.is_paused:
            positions |= self.reader.ends()
        self._log.wait(positions, timeout_s=timeout_s)

    def _deny(self, cut: Cut) -> None:
        """Take out what was forgotten."""
        if cut.rows is not None and self._state.denied:
            cut.rows, gone = self.denier.deny(cut.rows, self._state.denied)
            if len(gone):
                self._state.forgot(select(cut.rows, gone))
                cut.drop(gone)

    def _tell(self, cut: Cut) -> None:
        """Send what was refused to the dead letter, and say how far the rest is learned."""
        for refused in cut.refused:
            self.dead_letters.put(refused)
        self.dead_letters.try_flush()
        for info in cut.finished:
            self._progress.reach("trained", info.offsets)


def _is_fixed(settings: Settings, log: EventLog) -> bool:
    """Whether batches are cut by example number alone, which needs one order of the examples."""
    is_fixed = settings.trainer.batching == "fixed"
    n_partitions = log.n_partitions(EXAMPLES)
    if is_fixed and n_partitions > 1:
        raise ConfigError(
            f"trainer.batching: fixed needs log.partitions: 1, got {n_partitions}: the order in "
            "which several partitions are read depends on timing; use adaptive"
        )
    return is_fixed
