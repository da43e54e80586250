"""The trainer: examples in, frames and checkpoints out."""

import threading
from pathlib import Path
from typing import Final

from freshrank.clock import Clock
from freshrank.errors import ConfigError, Error
from freshrank.features import FeatureEncoder
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, EventLog, ParameterChannel
from trainer.archive_reader import Archive
from trainer.dead_letters import DeadLetterBox
from trainer.evaluation import Evaluation
from trainer.export import OnnxExport
from trainer.gauges import Gauges
from trainer.history import begin
from trainer.learner import Learner
from trainer.lesson import Lesson
from trainer.publisher import Publisher
from trainer.queue import BatchQueue, Cut
from trainer.reader import CONTROL_LOG, ControlReader, ExampleReader
from trainer.saver import Saver

# How long `run` waits for examples before it looks at `stop` and the clocks again.
_IDLE_S: Final = 0.1
# A crash loses at most one checkpoint interval of learning, a minute by default: at the rate of
# learning, half of that makes it up. Whoever is further behind publishes and catches up in public.
_CATCH_UP_S_MAX: Final = 30.0


class Trainer:
    """Learns the examples of all partitions, once each, and publishes what it learned.

    One thread at a time may call `step`, `run`, `drain` and `close`; `statistics` and `accounting`
    may be called from any.

    Args:
        settings: The whole configuration.
        encoder: For the same configuration.
        log: Where examples and commands stand.
        channel: Where frames go.
        directory: Holds the checkpoints.
        clock: Time. Its monotonic part decides when to publish and save.
        progress: Told which offsets are learned.
        history: Learned before the log, as far as the checkpoint has not.

    Raises:
        DataError: records are missing between checkpoint, history and log.
        ConfigError: `batching: fixed` with several partitions, or vectors of several lengths.
        SchemaError: the checkpoint was written for another configuration.
        Error: there are checkpoints, and none can be read (code `checkpoint-damaged`).
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        log: EventLog,
        channel: ParameterChannel,
        *,
        directory: Path,
        clock: Clock,
        progress: Progress,
        history: Archive | None = None,
    ) -> None:
        self._is_fixed = _is_fixed(settings, log)
        tasks = [task.name for task in settings.tasks]
        self._log = log
        self._channel = channel
        self._clock = clock
        self._progress = progress
        self._learner = Learner(settings, encoder)
        evaluation = Evaluation(tasks, self._learner.losses)
        self._saver = Saver(
            settings, encoder, log, self._learner, evaluation, directory=directory, clock=clock
        )
        self._state = state = self._saver.state
        self._dead_letters = DeadLetterBox(log, tasks, state.counts)
        self._control = ControlReader(log, state, self._dead_letters)
        self._lesson = Lesson(self._learner, evaluation, state)
        self._reader = ExampleReader(
            settings,
            encoder,
            log,
            state.positions,
            () if history is None else begin(history, state, log, is_fresh=self._saver.is_fresh),
            allow_gaps=history is not None and history.allow_gaps,
        )
        self._queue = BatchQueue(
            batch_max=settings.trainer.batch_max, is_fixed=self._is_fixed, positions=state.positions
        )
        self._publisher = Publisher(
            settings.sync,
            learner=self._learner,
            export=OnnxExport(self._learner.net, self._learner.losses),
            evaluation=evaluation,
            state=state,
            channel=channel,
            clock=clock,
        )
        self._gauges = Gauges(clock, state, self._learner, evaluation)
        self._is_started = False
        self._is_torn = False
        progress.reach("trained", state.offsets)

    def start(self) -> int:
        """Open the next epoch and publish its base; `step` does it if nobody did.

        Replicas go on with what an earlier trainer published, which may be ahead of the checkpoint:
        so what stands in the log is learned first, for a while, and the base does not set them
        back. Where nothing was published yet, the base comes at once. History is learned first,
        however long that takes.

        Returns:
            Rows learned.

        Raises:
            TransportError: the channel cannot be reached.
        """
        if self._is_started:
            return 0
        n_total = 0
        while self._reader.is_in_history and (n_rows := self._advance(flush=False)) is not None:
            n_total += n_rows
        if self._channel.head() is not None:
            deadline_s = self._clock.monotonic_s() + _CATCH_UP_S_MAX
            while self._clock.monotonic_s() < deadline_s:
                n_rows = self._advance(flush=False)
                if n_rows is None:
                    break
                n_total += n_rows
        self._publisher.start()
        self._is_started = True
        return n_total

    def step(self, timeout_s: float) -> int:
        """Learn at most one batch; publish and save what is due. Nothing is published in history.

        Args:
            timeout_s: Longest wait when there is nothing to learn.

        Returns:
            Rows learned.

        Raises:
            DataError: a file of the history is damaged: the trainer must stop.
            SchemaError: examples of another configuration or a newer format: the trainer must stop.
            SyncError: another trainer has taken over (code `fenced`): the trainer must stop.
            TransportError: the log cannot be read or written now; calling again goes on.
        """
        if not self._reader.is_in_history:
            self.start()
        n_rows = self._advance(flush=False)
        if n_rows is None:
            self._wait(timeout_s)
            n_rows = self._advance(flush=False)
        if not self._is_started:
            pass  # half a history would set the replicas back
        elif self._state.is_paused:
            self._publisher.heal()  # learns nothing: what was learned before reaches all replicas
        else:
            self._publisher.tick()
        # Unsent letters are only in memory: without a checkpoint a restart makes them again.
        if not self._dead_letters.n_unsent:
            self._saver.tick()
        self._gauges.tick(is_idle=not n_rows)
        return n_rows or 0

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set, then `close`."""
        while not stop.is_set():
            self.step(_IDLE_S)
        self.close()

    @property
    def learner(self) -> Learner:
        """The parameters: to be read between steps, by the thread that steps."""
        return self._learner

    def catch_up(self, *, flush: bool = False) -> int:
        """Learn all that stands in the log now, and publish nothing of it.

        Args:
            flush: Learn a remainder smaller than a fixed batch too.

        Returns:
            Rows learned; 0 while paused.
        """
        n_total = self.start()
        while (n_rows := self._advance(flush=flush)) is not None:
            n_total += n_rows
        return n_total

    def drain(self) -> int:
        """Learn all that stands in the log now, a remainder of a fixed batch too, and publish.

        Returns:
            Rows learned; 0 while paused.
        """
        n_total = self.catch_up(flush=True)
        if not self._state.is_paused:
            self._publisher.publish()
        self._gauges.refresh()
        return n_total

    def close(self) -> None:
        """Learn what is there, publish it and save a checkpoint; after a failed step, nothing.

        With fixed batches a remainder is left in the log, for the batch that it will fill: a stop
        must not change where later batches are cut. `drain` before `close` learns it.
        """
        if self._is_torn:
            return
        if not self._reader.is_in_history:  # its rest is learned after the next start
            self.catch_up()
            if not self._state.is_paused:
                self._publisher.publish()
        self._dead_letters.flush()
        self._saver.save()
        self._gauges.refresh()

    @property
    def reader(self) -> ExampleReader:
        """How far the examples are read: may be asked from any thread."""
        return self._reader

    def statistics(self) -> dict[str, float]:
        """Gauges, at most a second old while examples arrive; see `Gauges`."""
        return self._gauges.values()

    def accounting(self) -> dict[str, int]:
        """Totals along this lineage.

        `rows_learned` = `examples_learned` + `examples_reversed`. `examples_dead_letter` are
        examples (or whole records) refused, `control_dead_letter` commands; each also by reason,
        behind a colon.
        """
        return dict(self._state.counts)

    def _advance(self, *, flush: bool) -> int | None:
        """Deal with the next batch and with what stands before it without rows to learn.

        Returns:
            Rows learned, 0 if the batch was refused; None if there is no batch.

        Raises:
            Error: an earlier step failed halfway (code `step-failed`): parameters and positions no
                longer belong together, only a restart from the checkpoint helps.
        """
        if self._is_torn:
            raise Error(
                "an earlier step failed halfway: restart, the trainer resumes from its checkpoint",
                code="step-failed",
            )
        self._control.poll()
        while True:
            # Letters that the log did not take stop the reading, else they would pile up.
            self._dead_letters.flush()
            if self._state.is_paused:
                return None
            self._reader.fill(self._queue)
            cut = self._queue.cut(flush=flush)
            self._is_torn = True
            step = self._lesson.take(cut)
            self._tell(cut)
            self._is_torn = False
            if step is not None and cut.rows is not None:
                return cut.rows.n_rows if step.is_applied else 0
            if not cut.positions:
                return None

    def _tell(self, cut: Cut) -> None:
        """Send what was refused to the dead letter, and say how far the rest is learned."""
        for refused in cut.refused:
            self._dead_letters.put(refused)
        self._dead_letters.try_flush()
        for info in cut.finished:
            self._progress.reach("trained", info.offsets)

    def _wait(self, timeout_s: float) -> None:
        """Until something arrives, or a publication falls due."""
        positions = {CONTROL_LOG: self._control.offset}
        if not self._state.is_paused:
            positions |= self._reader.ends()
            timeout_s = min(timeout_s, self._publisher.due_in_s())
        self._log.wait(positions, timeout_s=timeout_s)


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
