"""A cut becomes parameters: the one way to learn, of the stream, of history and of a replay."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank.errors import Error
from freshrank.examples import ExampleBatch
from trainer.evaluation import Evaluation
from trainer.learner import Learner, Step
from trainer.poison import culprits
from trainer.queue import Cut
from trainer.state import TrainerState

logger = logging.getLogger(__name__)

# So much in a row that cannot be learned is no fault of the rows. Fewer rows may be one event sent
# in several batches, and one batch one request.
_REFUSED_BATCHES_MAX: Final = 3
_REFUSED_ROWS_MAX: Final = 64
_TOLD_MAX: Final = 5


class Lesson:
    """Learner, metrics and state, moved on together.

    Args:
        learner: The parameters.
        evaluation: Progressive metrics.
        state: Positions and totals.
        see: Told which rows are learned, and `float32[B, T]`: how they were scored before.
    """

    def __init__(
        self,
        learner: Learner,
        evaluation: Evaluation,
        state: TrainerState,
        see: Callable[[ExampleBatch, npt.NDArray[np.float32]], None] = lambda *_: None,
    ) -> None:
        self.learner = learner
        self.evaluation = evaluation
        self.state = state
        self._see = see
        self._n_refused_batches = self._n_refused_rows = 0

    def take(self, cut: Cut) -> Step | None:
        """Learn the rows of a cut and move the positions behind it.

        Rows that keep the step from being finite join `cut.refused`; the others are learned, in one
        step.

        Returns:
            What learning did; None if there were no rows.

        Raises:
            Error: it is the parameters that are not finite (code `sick-model`): the trainer must
                stop.
        """
        step = None if cut.rows is None else self._learn(cut, cut.rows)
        for refused in cut.refused:
            if refused.rows is not None:
                self.state.from_elsewhere(refused.rows)
        self.state.positions.update(cut.positions)
        for info in cut.finished:
            self.state.finished(info)
        return step

    def _learn(self, cut: Cut, batch: ExampleBatch) -> Step:
        step = self.learner.learn(batch)
        if not step.is_applied:
            step = self._learn_rest(cut, batch, step)
        state = self.state
        state.clock_s = self.learner.clock_s
        if cut.rows is not None:
            self._n_refused_batches = self._n_refused_rows = 0
            self.evaluation.add(cut.rows, step.predictions, step.item_age_s)
            self._see(cut.rows, step.predictions)
            state.learned(cut.rows)
            if logger.isEnabledFor(logging.DEBUG):
                for request_id, n in Counter(cut.rows.request_ids).items():
                    logger.debug("request=learned request_id=%s rows=%d", request_id, n)
        return step

    def _learn_rest(self, cut: Cut, batch: ExampleBatch, step: Step) -> Step:
        """Take the culprits out of a batch whose step was not finite, and learn the others."""
        self.state.counts["nonfinite_steps"] += 1
        if not self.learner.is_finite():
            raise self._sick()
        reason = "the loss or a gradient of these rows was not finite"
        cut.refuse(culprits(batch, self.learner.is_sound), "non-finite", reason)
        if cut.rows is not None:
            step = self.learner.learn(cut.rows, counts=False)
        if cut.rows is not None and not step.is_applied:
            cut.refuse(np.arange(cut.rows.n_rows), "non-finite", f"{reason}, all together")
        n_refused = batch.n_rows - (0 if cut.rows is None else cut.rows.n_rows)
        requests = {name for one in cut.refused if one.rows for name in one.rows.request_ids}
        logger.error(
            "step=refused reason=non-finite rows=%d of=%d requests=%s",
            *(n_refused, batch.n_rows, ",".join(sorted(requests)[:_TOLD_MAX])),
        )
        if cut.rows is None:
            self._n_refused_batches += 1
            self._n_refused_rows += batch.n_rows
            if (
                self._n_refused_batches >= _REFUSED_BATCHES_MAX
                and self._n_refused_rows >= _REFUSED_ROWS_MAX
            ):
                raise self._sick()
        return step

    def _sick(self) -> Error:
        return Error(
            f"parameters are not finite: no row of the last {1 + self._n_refused_batches} batches "
            "could be learned. Start again, the trainer goes on from its checkpoint; if it comes "
            "to this again, move the newest checkpoint away and lower optimizer.sparse.lr and "
            "optimizer.dense.lr",
            code="sick-model",
        )
