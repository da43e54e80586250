"""The trainer: examples in, frames and checkpoints out."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from freshrank.clock import Clock
from freshrank.features import FeatureEncoder
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import EventLog, ParameterChannel
from trainer.archive_reader import Archive
from trainer.evaluation import Evaluation
from trainer.export import OnnxExport
from trainer.forget import Forgets
from trainer.gauges import Gauges
from trainer.guard import Guard
from trainer.guard_memory import GuardMemory
from trainer.history import begin
from trainer.learner import Learner
from trainer.lesson import Lesson
from trainer.publisher import Publisher
from trainer.reader import ExampleReader
from trainer.rollback import RollBacks
from trainer.saver import Saver
from trainer.study import Study

# How long `run` waits for examples before it looks at `stop` and the clocks again.
_IDLE_S: Final = 0.1
# A crash loses at most one checkpoint interval of learning, a minute by default: where that takes
# less than a twelfth of the time, this makes it up. Whoever is further behind publishes and catches
# up in public, so that a trainer that takes over has published within 15 s.
_CATCH_UP_S_MAX: Final = 5.0


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
        allow_gaps: Learn on where retention has removed records, or the log is made anew.
        check_lease: Asked before anything is learned, published or saved: raises once another
            trainer may be the one that does so. None where no other can be.

    Raises:
        DataError: records are missing between checkpoint, history and log.
        ConfigError: `batching: fixed` with several partitions, or vectors of several lengths.
        SchemaError: the checkpoint was written for another configuration.
        TransportError: the checkpoint was learned from another log (code `log-replaced`), where
            other trainers may be.
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
        allow_gaps: bool = False,
        check_lease: Callable[[], None] | None = None,
    ) -> None:
        self._channel = channel
        self._clock = clock
        self._learner = learner = Learner(settings, encoder)
        evaluation = Evaluation([task.name for task in settings.tasks], learner.losses)
        memory = GuardMemory.of(settings, encoder, clock)
        self._saver = Saver(
            settings,
            encoder,
            log,
            learner,
            evaluation,
            memory,
            directory=directory,
            clock=clock,
            follows_new_log=allow_gaps or check_lease is None,
        )
        self._state = state = self._saver.state
        self._check_lease = check_lease or (lambda: None)
        self._guard = guard = Guard(settings.guard, memory=memory, learner=learner, state=state)
        self._study = Study(
            settings,
            encoder,
            log,
            Lesson(learner, evaluation, state, guard.see),
            history=begin(history, state, log, is_fresh=self._saver.is_fresh),
            allow_gaps=allow_gaps,
            attempts=directory / "ATTEMPT",
            progress=progress,
            check_lease=self._check_lease,
        )
        self._publisher = Publisher(
            settings.sync,
            learner=learner,
            export=OnnxExport(learner.net, learner.losses),
            evaluation=evaluation,
            guard=guard,
            freshness=progress.freshness["train"],
            state=state,
            channel=channel,
            clock=clock,
        )
        self._forgets = Forgets(self._study, self._saver, memory, log, channel)
        self._roll_backs = RollBacks(self._study, self._saver, log, tries=directory / "ROLLBACK")
        self._gauges = Gauges(clock, state, learner, evaluation, guard)
        self._is_leading = False
        self._is_started = False
        self._has_gone_back = False

    def start(self) -> int:
        """Claim the next epoch and publish its base; `step` does it if nobody did.

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
        self._lead()
        n_total = 0
        while self.reader.is_in_history and (n_rows := self._advance(flush=False)) is not None:
            n_total += n_rows
        if self._channel.head() is not None:
            deadline_s = self._clock.monotonic_s() + _CATCH_UP_S_MAX
            while not self._has_gone_back and self._clock.monotonic_s() < deadline_s:
                n_rows = self._advance(flush=False)
                if n_rows is None:
                    break
                n_total += n_rows
        self._check_lease()
        self._publisher.start()
        self._is_started, self._has_gone_back = True, False
        return n_total

    def _lead(self) -> None:
        """Claim the next epoch, once; asks the lease each time."""
        self._check_lease()
        if not self._is_leading:
            self._publisher.claim()
            self._is_leading = True

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
        self._lead()
        if not self._study.reader.is_in_history:
            self.start()
        n_rows = self._advance(flush=False)
        if n_rows is None:
            if not self._state.is_paused:
                timeout_s = min(timeout_s, self._publisher.due_in_s())
            self._study.wait(timeout_s)
            n_rows = self._advance(flush=False)
        self._check_lease()
        if not self._is_started:
            pass  # half a history would set the replicas back
        elif self._state.is_paused:
            self._publisher.heal()  # learns nothing: what was learned before reaches all replicas
        else:
            self._publisher.tick()
        # Unsent letters are only in memory: without a checkpoint a restart makes them again.
        if not self._study.dead_letters.n_unsent:
            if self._saver.is_due:
                self._study.reader.pass_marks(self._state.positions)
                self._forgets.age()
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
        return n_total + self.start()  # of an epoch that a roll-back has ended

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
        if self._study.is_torn:
            return
        self._lead()
        if not self._study.reader.is_in_history:  # its rest is learned after the next start
            self.catch_up()
            self._check_lease()
            if not self._state.is_paused:
                self._publisher.publish()
        self._study.dead_letters.flush()
        self._check_lease()
        self._saver.save()
        self._gauges.refresh()

    @property
    def is_behind(self) -> bool:
        """Before anything is learned: another trainer has saved a newer checkpoint meanwhile."""
        return self._saver.is_behind

    @property
    def reader(self) -> ExampleReader:
        """How far the examples are read: may be asked from any thread."""
        return self._study.reader

    def statistics(self) -> dict[str, float]:
        """See `Gauges`; and `unsaved` is 1 while the disk takes no checkpoint."""
        return self._gauges.values() | {"unsaved": float(self._saver.is_refused)}

    def accounting(self) -> dict[str, int]:
        """Totals along this lineage.

        `rows_learned` = `examples_learned` + `examples_reversed`. `examples_dead_letter` are
        examples (or whole records) refused, `control_dead_letter` commands; each also by reason,
        behind a colon.
        """
        return dict(self._state.counts)

    def _advance(self, *, flush: bool) -> int | None:
        """Learn the next batch, see `Study.advance`; or go back, which learns none."""
        n_rows = self._study.advance(flush=flush)
        if self._forgets.obey():
            return 0
        if self._roll_backs.obey():
            self._guard.forget()
            self._publisher.forget()
            # Their base is that of an epoch of its own, even if one was about to be published.
            self._is_leading, self._is_started = not self._is_started, False
            self._has_gone_back = True
            return 0
        if self._study.has_isolated:
            # Else whoever dies before the next checkpoint would have to die of these rows again.
            self._study.has_isolated = not self._saver.save()
        return n_rows
