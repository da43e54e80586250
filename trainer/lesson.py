"""A cut becomes parameters: the one way to learn, of the stream, of history and of a replay."""

import logging

from freshrank.examples import ExampleBatch
from freshrank.transport.base import Record
from trainer.dead_letters import Refused
from trainer.evaluation import Evaluation
from trainer.learner import Learner, Step
from trainer.queue import Cut
from trainer.state import TrainerState

logger = logging.getLogger(__name__)


class Lesson:
    """Learner, metrics and state, moved on together.

    Args:
        learner: The parameters.
        evaluation: Progressive metrics.
        state: Positions and totals.
    """

    def __init__(self, learner: Learner, evaluation: Evaluation, state: TrainerState) -> None:
        self.learner = learner
        self.evaluation = evaluation
        self.state = state

    def take(self, cut: Cut) -> Step | None:
        """Learn the rows of a cut and move the positions behind it.

        Where the step is not finite its rows join `cut.refused`.

        Returns:
            What learning did; None if there were no rows.
        """
        step = None
        if cut.rows is not None and cut.last is not None:
            step = self._learn(cut, cut.rows, cut.last)
        for refused in cut.refused:
            if refused.rows is not None:
                self.state.from_elsewhere(refused.rows)
        self.state.positions.update(cut.positions)
        for info in cut.finished:
            self.state.finished(info)
        return step

    def _learn(self, cut: Cut, batch: ExampleBatch, last: Record) -> Step:
        step = self.learner.learn(batch)
        state = self.state
        state.clock_s = self.learner.clock_s
        if step.is_applied:
            self.evaluation.add(batch, step.predictions, step.item_age_s)
            state.learned(batch)
        else:
            state.counts["nonfinite_steps"] += 1
            logger.error("step=refused reason=non-finite rows=%d", batch.n_rows)
            reason = "the loss or a gradient of the batch with these rows was not finite"
            cut.refused.append(Refused(last, "non-finite", reason, batch))
        return step
