"""What must not reach the replicas: a sick version is held back, and the one before it serves on.

Nothing is lost by it: marks stay where they are, and the next version that passes carries all.
While a version is held back the canary set stands still: poison must not become the measure.
After a minute what is only in doubt leaves, and later versions are compared with it; after
`guard.hold` it is taken that the world has changed. What is not finite never leaves.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from freshrank import canaries
from freshrank.canaries import Canary
from freshrank.examples import ExampleBatch
from freshrank.frames import TableRows
from freshrank.settings import GuardSettings
from freshrank.verdicts import reason_against
from trainer.canary import MEAN, TIMES
from trainer.guard_memory import GuardMemory
from trainer.learner import Learner
from trainer.losses import Loss
from trainer.state import TrainerState

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]


class Guard:
    """Judges versions before they are published.

    Args:
        settings: Bounds.
        memory: What versions are compared with.
        learner: Whose parameters would be published.
        state: Counts what was held back.
    """

    def __init__(
        self,
        settings: GuardSettings,
        *,
        memory: GuardMemory,
        learner: Learner,
        state: TrainerState,
    ) -> None:
        self._settings = settings
        self._hold_s = settings.hold.total_seconds()
        self._memory = memory
        self._learner = learner
        self._state = state
        self._is_released = False  # the newest version was in doubt
        self._scores: F32 | None = None  # what it made of the rows; None once it is published

    @property
    def reason(self) -> str:
        """Why the newest version is held back; "" while none is."""
        return self._memory.hold.reason

    def see(self, batch: ExampleBatch, predictions: F32) -> None:
        """Rows that are learned, and `float32[B, T]`: how they were scored before."""
        if not self.reason:
            self._memory.canary.offer(batch, predictions)

    def forget(self) -> None:
        """The parameters are others: nothing that was said of the old ones holds."""
        self._memory.forget()
        self._memory.hold.end()
        self._scores = None

    def allows_scores(self) -> bool:
        """Whether the learner scores as well as it has done, asked before rows are collected."""
        self._scores = None
        if not self._learner.is_finite():
            return self._holds("nonfinite")
        canary, held_s = self._memory.canary, self._memory.hold.lasts_s
        rows, _ = canary.kept()
        if rows is None:
            return True
        # Those of open windows too: once they are over, it is known how the last version saw them.
        scores = self._learner.predict(rows.values)
        reason = self._reason(scores)
        self._is_released = bool(reason) and not self._reason(scores, held_s=held_s)
        if reason and not self._is_released:
            return self._holds(reason)
        if self._is_released:
            logger.error("publication=released reason=%s held_s=%d", reason, held_s)
        self._scores = scores
        return True

    def published(self) -> None:
        """What was allowed is in the channel: later versions are compared with it."""
        if self._scores is not None:
            self._memory.canary.settle(self._scores, anew=self._is_released)
            self._scores = None

    def _reason(self, scores: F32, *, held_s: float = 0.0) -> str:
        """Why scores of the canary's rows are too bad; see `reason_against`."""
        found = self._memory.canary.decided()
        if found is None:
            return ""
        rows, then = found
        new, losses = scores[: rows.n_rows], self._learner.losses
        unseen, first, last, mean = (then[:, at] for at in range(TIMES))
        beside = (last, mean), (unseen, first)
        return reason_against(
            *(self._settings, losses, rows.labels, weights(rows, losses), new, beside),
            is_held=bool(self.reason),
            held_s=held_s,
        )

    def canary(self) -> bytes | None:
        """Rows by which replicas judge what is published now; None while there are none.

        None too from a roll-back, and after a hold that took too long, until a window is over, and
        of a version that was in doubt: then the parameters are meant to be others.
        """
        found = self._memory.canary.decided()
        if found is None or self._is_released:
            return None
        rows, then = found
        weight = weights(rows, self._learner.losses)
        return canaries.encode(Canary(rows.labels, weight, rows.values, mean=then[:, MEAN]))

    def allows_rows(self, tables: Mapping[str, TableRows], *, is_whole: bool) -> bool:
        """Whether these rows, and the dense net as it is, are finite and no larger than is sane.

        Args:
            tables: What would be published.
            is_whole: Of a base: its size is no measure for the rows of a delta.
        """
        sizes = {"dense": _size(self._learner.adam.parameters.numpy())}
        sizes |= {f"rows.{n}": _size(t.rows) for n, t in tables.items() if len(t.rows)}
        if not all(map(np.isfinite, sizes.values())):
            return self._holds("nonfinite")
        for name, size in sizes.items():
            told = self._memory.sizes.get(name)
            if told is not None and size > self._settings.norm_jump * max(told, 1.0):
                return self._holds("norm")
        self._passed(sizes, is_whole=is_whole)
        return True

    def _passed(self, sizes: dict[str, float], *, is_whole: bool) -> None:
        memory = self._memory
        if memory.hold.reason:
            logger.info("publication=resumed reason=%s", memory.hold.reason)
            memory.hold.end()
        first = {name: size for name, size in sizes.items() if name not in memory.sizes}
        memory.sizes |= first if is_whole else sizes

    def _holds(self, reason: str) -> bool:
        """Hold back, unless that has gone on for too long; returns whether it is let through."""
        memory, hold, state = self._memory, self._memory.hold, self._state
        if not hold.reason:
            memory.canary.forget_undecided()
        elif reason != "nonfinite" and hold.lasts_s >= self._hold_s:
            logger.error("publication=forced reason=%s held_s=%d", reason, hold.lasts_s)
            memory.forget()
            return True
        if reason != hold.reason:
            text = "publication=refused reason=%s epoch=%d seq=%d"
            logger.error(text, reason, state.epoch, state.seq)
        hold.go_on(reason)
        state.counts["publications_refused"] += 1
        state.counts[f"publications_refused:{reason}"] += 1
        return False


def weights(rows: ExampleBatch, losses: Sequence[Loss]) -> F32:
    """What each row stands for: a sampled negative for those not kept. `float32[n, T]`."""
    weight = rows.weights.copy()
    is_sampled = (rows.labels == 0) & (np.array(losses) == "logloss")
    weight[is_sampled] /= rows.keep_rates[is_sampled]
    return weight


def _size(values: F32) -> float:
    """Root mean square; not finite where a value is not."""
    # By torch, which keeps to one thread: numpy's BLAS would wake others, which spin for 30 ms.
    norm = float(torch.linalg.vector_norm(torch.from_numpy(values)))
    return norm / math.sqrt(max(values.size, 1))
