"""Turns what was learned into frames: bases, and deltas of the rows that changed.

A delta holds all changes since the last frame that the channel *took*: marks move only afterwards,
so a failed publication loses nothing, the next one covers both. A start opens a new epoch and
publishes a base before anything else; within an epoch, a base is published behind the delta that
leads to it, with the same content: for replicas to come, and for those that a damaged frame holds.
"""

import logging
from typing import Final, Literal

from freshrank import frames
from freshrank.clock import Clock
from freshrank.errors import SyncError, TransportError
from freshrank.frames import Frame, FrameInfo
from freshrank.metrics import Freshness
from freshrank.settings import SyncSettings
from freshrank.transport.base import BEAT_EVERY_S, ParameterChannel
from trainer import frame_parts
from trainer.evaluation import Evaluation
from trainer.export import OnnxExport
from trainer.frame_parts import Told
from trainer.guard import Guard
from trainer.learner import Learner
from trainer.state import TrainerState

logger = logging.getLogger(__name__)

# A channel that hangs is left alone for so many times what waiting for it took: the trainer learns
# on five sixths of its time.
_REST: Final = 5
# From the end of one base that was asked for to the next. A base of 10 million rows of 17 floats
# takes 3 to 6 s (measured with a million: 76 MB in 0.3 to 0.6 s), so where every frame arrives
# damaged the trainer still learns about half of the time.
_HEAL_EVERY_S: Final = 5.0


class Publisher:
    """Publishes one learner's parameters.

    Args:
        settings: How often.
        learner: The parameters.
        export: The dense net as ONNX.
        evaluation: Metrics for the frames.
        guard: Holds back what must not be served.
        freshness: Told how old events were when they were published.
        state: What was learned; epoch, sequence and dense version are kept there.
        channel: Where frames go.
        clock: When.
    """

    def __init__(
        self,
        settings: SyncSettings,
        *,
        learner: Learner,
        export: OnnxExport,
        evaluation: Evaluation,
        guard: Guard,
        freshness: Freshness,
        state: TrainerState,
        channel: ParameterChannel,
        clock: Clock,
    ) -> None:
        self._sparse_every_s = settings.sparse_every.total_seconds()
        self._dense_every_s = settings.dense_every.total_seconds()
        self._full_every_s = settings.full_every.total_seconds()
        self._dtype: Final = settings.dtype
        self._learner = learner
        self._export = export
        self._evaluation = evaluation
        self._guard = guard
        self._freshness = freshness
        self._state = state
        self._channel = channel
        self._clock = clock
        self._marks = dict.fromkeys(learner.sparse.tables, 0)
        self._told = Told()
        self._next_seq: int | None = None  # of the base that must come before any delta
        self._is_first = False
        self._sparse_at_s = self._dense_at_s = self._full_at_s = self._heal_at_s = 0.0

    def claim(self) -> None:
        """Open the next epoch: from here on nothing of an earlier trainer is published or saved.

        Versions count on from the newest frame in the channel, which may be ahead of the
        checkpoint: no version names two states.

        Raises:
            TransportError: the epoch cannot be opened.
        """
        state = self._state
        newest = frame_parts.newest(self._channel, state.dense_version)
        # The channel may be a new one, and checkpoints are ordered by epoch.
        state.epoch = self._channel.open_epoch(above=state.epoch)
        self._is_first = newest is None
        if newest is not None:
            state.seq = max(state.seq, newest.seq)
            state.dense_version = max(state.dense_version, newest.dense_version)
        logger.info("epoch=%d state=opened", state.epoch)

    def forget(self) -> None:
        """The parameters are others: nothing that replicas have been told says what they lack."""
        self._marks = dict.fromkeys(self._learner.sparse.tables, 0)
        self._told = Told()
        self._sparse_at_s = 0.0

    def start(self) -> None:
        """Publish the base of the claimed epoch; the very first is the seeded initialisation.

        Raises:
            SyncError: another trainer has claimed the next one.
        """
        state = self._state
        is_untouched = self._is_first and not state.has_learned
        self._next_seq = 0 if is_untouched else state.seq + 1
        if not is_untouched:
            state.dense_version += 1
        self.tick()

    def due_in_s(self) -> float:
        """Seconds until `tick` has something to do: to publish, or while nothing is new to look."""
        is_owed = self._next_seq is not None or self._has_news()
        due_s = self._sparse_at_s if is_owed else self._heal_at_s
        return max(due_s - self._clock.monotonic_s(), 0.0)

    def tick(self) -> None:
        """Publish what is due.

        Raises:
            SyncError: another trainer opened an epoch: this one must stop (code `fenced`).
        """
        now_s = self._clock.monotonic_s()
        if now_s >= self._sparse_at_s:
            self._sparse_at_s = now_s + self._sparse_every_s
            self.publish()
        self.heal()

    def heal(self) -> None:
        """Publish a base if a replica asked for one, after a delta for what no frame has told yet.

        Raises:
            SyncError: as `tick`.
        """
        now_s = self._clock.monotonic_s()
        if now_s < self._heal_at_s:
            return
        # A replica that waits for a base has it within a second, though frames come by the minute.
        self._heal_at_s = now_s + BEAT_EVERY_S
        try:
            try:
                self._channel.beat(self._state.epoch)
            except SyncError as error:
                self._mend(error)
                self.publish()
            if self._channel.wanted_base():
                self.publish(is_base_wanted=True)
                self._heal_at_s = self._clock.monotonic_s() + _HEAL_EVERY_S
        except TransportError as error:
            self._rest(now_s)
            self._heal_at_s = max(self._heal_at_s, now_s + _HEAL_EVERY_S)
            logger.warning("channel=unreadable epoch=%d error=%s", self._state.epoch, error)

    def publish(self, *, is_base_wanted: bool = False) -> None:
        """Publish now: the base that is owed, or a delta if there is news, and a base behind it.

        Raises:
            SyncError: as `tick`.
        """
        began_s = self._clock.monotonic_s()
        try:
            try:
                self._publish_due(is_base_wanted=is_base_wanted)
            except SyncError as error:
                self._mend(error)
        except TransportError as error:
            self._rest(began_s)
            self._state.counts["publish_failures"] += 1
            logger.warning("publication=failed epoch=%d error=%s", self._state.epoch, error)

    def _publish_due(self, *, is_base_wanted: bool) -> None:
        if self._next_seq is not None:
            self._publish_base(self._next_seq)
            return
        # A base that stands at this seq is itself the damaged one. Then the next seq names the
        # one to come, though nothing changed; sound replicas follow its empty delta.
        if self._has_news() or (
            is_base_wanted and frame_parts.base_seq(self._channel) >= self._state.seq
        ):
            self._publish_delta()
        is_due = is_base_wanted or self._clock.monotonic_s() >= self._full_at_s
        if is_due and not self._has_news():
            self._publish_base(self._state.seq)

    def _mend(self, error: SyncError) -> None:
        """Owe a base where the channel holds something else than what was published.

        An earlier publication arrived although the channel said no; or the channel was emptied, and
        forgot this epoch too.

        Raises:
            SyncError: another trainer opened an epoch.
            TransportError: the channel cannot be asked what it holds.
        """
        if error.code not in ("gap", "lost"):
            raise error
        self._state.counts["publish_failures"] += 1
        if error.code == "lost":
            self.claim()
        head = self._channel.head()
        self._next_seq = max(self._state.seq, head.seq if head else 0) + 1
        logger.warning("publication=%s next_base=%d error=%s", error.code, self._next_seq, error)

    def _rest(self, began_s: float) -> None:
        """Leave the channel alone for a while, by how long it took to fail."""
        now_s = self._clock.monotonic_s()
        until_s = now_s + _REST * (now_s - began_s)
        self._sparse_at_s = max(self._sparse_at_s, until_s)
        self._heal_at_s = max(self._heal_at_s, until_s)

    def _has_news(self) -> bool:
        state = self._state
        return (
            state.counts["rows_learned"] != self._told.rows
            or state.counts["keys_forgotten"] != self._told.keys_forgotten
            or state.offsets != self._told.offsets
            or bool(state.outcomes)
            or self._is_dense_due()
        )

    def _is_dense_due(self) -> bool:
        is_changed = self._learner.adam.n_steps != self._told.dense_steps
        return is_changed and self._clock.monotonic_s() >= self._dense_at_s

    def _publish_base(self, seq: int) -> None:
        """The whole model; at the current sequence it repeats what the deltas led to."""
        state = self._state
        told = self._told.dense
        is_repeat = seq == state.seq and bool(told)
        if not is_repeat and not self._guard.allows_scores():
            return
        dense = told if is_repeat else (self._export.render(*self._learner.probe()) or told)
        marks, tables = frame_parts.whole(self._learner.sparse)
        if not dense or not self._guard.allows_rows(tables, is_whole=True):
            return
        dense_version = state.dense_version + bool(told and dense != told)
        frame = Frame(self._info("base", seq, dense_version), tables, dense, self._guard.canary())
        self._channel.publish_base(state.epoch, seq, frames.encode(frame, dtype=self._dtype))
        self._full_at_s = self._clock.monotonic_s() + self._full_every_s
        self._next_seq = None
        if not is_repeat:
            state.dense_version = dense_version
            self._took(seq, marks, dense)
        for name, table in self._learner.sparse.tables.items():
            table.trim_tombstones(self._marks[name])

    def _publish_delta(self) -> None:
        if not self._guard.allows_scores():
            return
        state = self._state
        dense = None
        if self._is_dense_due():
            dense = self._export.render(*self._learner.probe())
            if dense is None:
                self._dense_at_s = self._clock.monotonic_s() + self._dense_every_s
        marks, tables = frame_parts.changes(self._learner.sparse, self._marks)
        if not self._guard.allows_rows(tables, is_whole=False):
            return
        dense_version = state.dense_version + (dense is not None)
        info = self._info("delta", state.seq + 1, dense_version)
        canary = self._guard.canary() if dense else None
        frame = frames.encode(Frame(info, tables, dense, canary), dtype=self._dtype)
        self._channel.publish_delta(state.epoch, state.seq + 1, frame)
        state.dense_version = dense_version
        self._took(state.seq + 1, marks, dense)

    def _took(self, seq: int, marks: dict[str, int], dense: bytes | None) -> None:
        """The channel has it: move the marks."""
        state = self._state
        state.seq = seq
        self._marks = marks
        self._guard.published()
        self._told.rows = state.counts["rows_learned"]
        self._told.keys_forgotten = state.counts["keys_forgotten"]
        self._told.offsets = dict(state.offsets)
        if dense is not None:
            self._told.dense = dense
            self._told.dense_steps = self._learner.adam.n_steps
            self._dense_at_s = self._clock.monotonic_s() + self._dense_every_s
        state.counts["frames_published"] += 1
        for kind, sample in (("action", state.actions), ("negative", state.impressions)):
            self._freshness.add(kind, sample.values(), self._clock.now_ms())
        state.published()

    def _info(self, kind: Literal["base", "delta"], seq: int, dense_version: int) -> FrameInfo:
        now_ms, metrics = self._clock.now_ms(), self._evaluation.report()
        return frame_parts.describe(self._state, kind, seq, dense_version, now_ms, metrics)
