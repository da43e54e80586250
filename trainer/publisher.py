"""Turns what was learned into frames: bases, and deltas of the rows that changed.

A delta holds all changes since the last frame that the channel *took*: marks move only afterwards,
so a failed publication loses nothing, the next one covers both. A start opens a new epoch and
publishes a base before anything else; within an epoch, a base is published behind the delta that
leads to it, with the same content: for replicas to come, and for those that a damaged frame holds.
"""

import logging
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from freshrank import frames
from freshrank.clock import Clock
from freshrank.errors import SyncError, TransportError
from freshrank.frames import Frame, FrameInfo, TableRows
from freshrank.settings import SyncSettings
from freshrank.transport.base import ParameterChannel
from trainer.evaluation import Evaluation
from trainer.export import OnnxExport
from trainer.learner import Learner
from trainer.state import TrainerState

logger = logging.getLogger(__name__)

# How often the channel is asked whether a replica waits for a base: two small reads, and healing
# takes a second where `sync.sparse_every` is minutes.
_LOOK_EVERY_S: Final = 0.5
# From the end of one base that was asked for to the next. A base of 10 million rows of 17 floats
# takes 3 to 6 s (measured with a million: 76 MB in 0.3 to 0.6 s), so where every frame arrives
# damaged the trainer still learns about half of the time.
_HEAL_EVERY_S: Final = 5.0


@dataclass(slots=True)
class _Told:
    """What the replicas can know: the trainer's totals as of the last frame the channel took."""

    rows: int = -1
    offsets: dict[str, int] | None = None
    dense_steps: int = -1
    dense: bytes = b""


class Publisher:
    """Publishes one learner's parameters.

    Args:
        settings: How often.
        learner: The parameters.
        export: The dense net as ONNX.
        evaluation: Metrics for the frames.
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
        state: TrainerState,
        channel: ParameterChannel,
        clock: Clock,
    ) -> None:
        self._sparse_every_s = settings.sparse_every.total_seconds()
        self._dense_every_s = settings.dense_every.total_seconds()
        self._full_every_s = settings.full_every.total_seconds()
        self._learner = learner
        self._export = export
        self._evaluation = evaluation
        self._state = state
        self._channel = channel
        self._clock = clock
        self._marks = dict.fromkeys(learner.sparse.tables, 0)
        self._told = _Told()
        self._next_seq: int | None = None  # of the base that must come before any delta
        self._sparse_at_s = self._dense_at_s = self._full_at_s = self._heal_at_s = 0.0

    def start(self) -> None:
        """Open the next epoch and publish its base.

        The very first base is the seeded initialisation, d0-s0. Later ones count on from the newest
        frame in the channel, which may be ahead of the checkpoint: no version names two states.

        Raises:
            TransportError: the epoch cannot be opened.
            SyncError: another trainer opened one in between.
        """
        state = self._state
        newest = self._newest()
        state.epoch = self._channel.open_epoch()
        if newest is not None:
            state.seq = max(state.seq, newest.seq)
            state.dense_version = max(state.dense_version, newest.dense_version)
        is_first = newest is None and not state.has_learned
        self._next_seq = 0 if is_first else state.seq + 1
        if not is_first:
            state.dense_version += 1
        logger.info("epoch=%d state=opened seq=%d", state.epoch, self._next_seq)
        self.tick()

    def due_in_s(self) -> float:
        """Seconds until `tick` has something to do, if there is something new."""
        return max(self._sparse_at_s - self._clock.monotonic_s(), 0.0)

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
        self._heal_at_s = now_s + _LOOK_EVERY_S
        try:
            if self._channel.wanted_base():
                self.publish(is_base_wanted=True)
                self._heal_at_s = self._clock.monotonic_s() + _HEAL_EVERY_S
        except TransportError as error:
            self._heal_at_s = now_s + _HEAL_EVERY_S
            logger.warning("channel=unreadable epoch=%d error=%s", self._state.epoch, error)

    def publish(self, *, is_base_wanted: bool = False) -> None:
        """Publish now: the base that is owed, or a delta if there is news, and a base behind it."""
        try:
            if self._next_seq is not None:
                self._publish_base(self._next_seq)
                return
            # A base that stands at this seq is itself the damaged one. Then the next seq names the
            # one to come, though nothing changed; sound replicas follow its empty delta.
            if self._has_news() or (is_base_wanted and self._base_seq() >= self._state.seq):
                self._publish_delta()
            is_due = is_base_wanted or self._clock.monotonic_s() >= self._full_at_s
            if is_due and not self._has_news():
                self._publish_base(self._state.seq)
        except TransportError as error:
            self._state.counts["publish_failures"] += 1
            logger.warning("publication=failed epoch=%d error=%s", self._state.epoch, error)
        except SyncError as error:
            if error.code != "gap":
                raise
            # An earlier publication arrived although the channel said no. A base closes the gap.
            self._state.counts["publish_failures"] += 1
            head = self._channel.head()
            self._next_seq = max(self._state.seq, head.seq if head else 0) + 1
            logger.warning("publication=gap next_base=%d error=%s", self._next_seq, error)

    def _base_seq(self) -> int:
        head = self._channel.head()
        return -1 if head is None else head.base_seq

    def _newest(self) -> FrameInfo | None:
        """What the newest frame in the channel says of itself."""
        head = self._channel.head()
        if head is None:
            return None
        try:
            base = self._channel.base()
            data = self._channel.delta(head.epoch, head.seq) or (base[2] if base else b"")
            return frames.decode_info(data)
        except (SyncError, TransportError) as error:
            if isinstance(error, TransportError) and error.code != "channel-damaged":
                raise
            # Damaged, missing or of a newer program: the numbers in HEAD still hold.
            logger.warning(
                "channel=unreadable epoch=%d seq=%d error=%s", head.epoch, head.seq, error
            )
            return FrameInfo("base", head.epoch, head.seq, self._state.dense_version, "", 0)

    def _has_news(self) -> bool:
        state = self._state
        return (
            state.counts["rows_learned"] != self._told.rows
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
        dense = told if is_repeat else (self._export.render(*self._learner.probe()) or told)
        marks, tables = self._changes(since=dict.fromkeys(self._marks, 0), is_base=True)
        if not dense or not _is_finite(tables):
            self._refuse()
            return
        dense_version = state.dense_version + bool(told and dense != told)
        frame = Frame(self._info("base", seq, dense_version), tables, dense)
        self._channel.publish_base(state.epoch, seq, frames.encode(frame))
        self._full_at_s = self._clock.monotonic_s() + self._full_every_s
        self._next_seq = None
        if not is_repeat:
            state.dense_version = dense_version
            self._took(seq, marks, dense)
        for name, table in self._learner.sparse.tables.items():
            table.trim_tombstones(self._marks[name])

    def _publish_delta(self) -> None:
        state = self._state
        dense = None
        if self._is_dense_due():
            dense = self._export.render(*self._learner.probe())
            if dense is None:
                self._dense_at_s = self._clock.monotonic_s() + self._dense_every_s
        marks, tables = self._changes(since=self._marks, is_base=False)
        if not _is_finite(tables):
            self._refuse()
            return
        dense_version = state.dense_version + (dense is not None)
        info = self._info("delta", state.seq + 1, dense_version)
        frame = frames.encode(Frame(info, tables, dense))
        self._channel.publish_delta(state.epoch, state.seq + 1, frame)
        state.dense_version = dense_version
        self._took(state.seq + 1, marks, dense)

    def _changes(
        self, *, since: dict[str, int], is_base: bool
    ) -> tuple[dict[str, int], dict[str, TableRows]]:
        """What changed in every table since the given versions, and the version it leads to.

        A delta closes the current version. A base does not: rows of the current version are in the
        base and once more in the first delta. So a restart, which begins with a base, leaves the
        tables' bytes as a run without it would.
        """
        marks, changes = {}, {}
        for name, table in self._learner.sparse.tables.items():
            marks[name] = table.version - 1 if is_base else table.advance()
            keys, rows, tombstones = table.delta(since[name])
            # A base is swapped in whole: there is nothing that its tombstones could remove.
            changes[name] = TableRows(keys, rows, tombstones[:0] if is_base else tombstones)
        return marks, changes

    def _took(self, seq: int, marks: dict[str, int], dense: bytes | None) -> None:
        """The channel has it: move the marks."""
        state = self._state
        state.seq = seq
        self._marks = marks
        self._told.rows = state.counts["rows_learned"]
        self._told.offsets = dict(state.offsets)
        if dense is not None:
            self._told.dense = dense
            self._told.dense_steps = self._learner.adam.n_steps
            self._dense_at_s = self._clock.monotonic_s() + self._dense_every_s
        state.counts["frames_published"] += 1
        state.published()

    def _refuse(self) -> None:
        """A sick model is not published; the marks stay, and the next attempt covers all of it."""
        self._state.counts["publications_refused"] += 1
        logger.error("publication=refused epoch=%d seq=%d", self._state.epoch, self._state.seq)

    def _info(self, kind: Literal["base", "delta"], seq: int, dense_version: int) -> FrameInfo:
        state = self._state
        return FrameInfo(
            kind=kind,
            epoch=state.epoch,
            seq=seq,
            dense_version=dense_version,
            schema_hash=state.schema_hash,
            published_at_ms=self._clock.now_ms(),
            watermark_ms=state.watermark_ms,
            examples=state.counts["examples_learned"],
            offsets=dict(state.offsets),
            outcomes=list(state.outcomes),
            action_appended_at_ms=state.actions.values(),
            impression_appended_at_ms=state.impressions.values(),
            metrics=self._evaluation.report(),
            untrained=not state.has_learned,
        )


def _is_finite(tables: dict[str, TableRows]) -> bool:
    return all(bool(np.isfinite(table.rows).all()) for table in tables.values())
