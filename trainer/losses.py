"""The weighted loss of a batch, and what its scores mean.

**Sum, not mean.** The loss is the sum over rows, so the push an example gives the rows of its ids
does not depend on how many other examples happened to share its batch: batches adapt to the load,
and what an example teaches must not depend on the load. The same holds for the dense net: why a
mean would be wrong there, `DenseAdam.step` says.

**Sampling.** Negatives kept with probability r multiply the odds seen in training by 1 / r. The
loss is therefore taken on z - ln r, for every row of the stratum, and sigma(z) is served: it
estimates the odds before sampling. (King & Zeng 2001, "Logistic regression in rare events data",
section 4.1.)

**Reversal.** A late positive takes back a negative that was learned: two rows, label 1 weight +1
and label 0 weight -1. Their gradients with respect to z sum to (sigma - 1) - sigma = -1 at any z: a
constant push, not one that fades as the score rises. So |z| is clipped at 15 in these rows: beyond
it the pair has no gradient at all. Both rows stand in one batch, hence the sum is taken before an
optimizer squares.
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from freshrank.examples import ExampleBatch

F32 = npt.NDArray[np.float32]
Loss = Literal["logloss", "huber"]

# sigma(-15) = 3e-7: below any rate the service can tell from 0, and far from where float32 loses
# 1 - sigma (about 16.6). Without it, repeated reversals would push a logit without end.
REVERSAL_Z_MAX: Final = 15.0
HUBER_DELTA: Final = 1.0


def loss_and_gradient(
    z: F32, losses: Sequence[Loss], task_weights: F32, batch: ExampleBatch
) -> tuple[float, F32]:
    """The loss of a batch, and its gradient with respect to z.

    The loss is the sum over rows i and tasks t of task_weights[t] * weights[i, t] * loss_t(z, y).

    Args:
        z: `float32[B, T]`, the net's output.
        losses: Kind of each task.
        task_weights: `float32[T]`.
        batch: B rows; labels and keep rates count where the weight is not 0.

    Returns:
        The loss, and `float32[B, T]`.
    """
    weights = batch.weights * task_weights
    total = 0.0
    gradient = np.zeros_like(z)
    is_clipped = batch.is_reversal[:, None] & (np.abs(z) >= REVERSAL_Z_MAX)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by the caller
        for t, kind in enumerate(losses):
            # Where the weight is 0 the label may be anything, NaN included, and NaN * 0 is NaN.
            rows = np.flatnonzero(batch.weights[:, t])
            score, label, weight = z[rows, t], batch.labels[rows, t], weights[rows, t]
            is_reversal = batch.is_reversal[rows]
            score[is_reversal] = score[is_reversal].clip(-REVERSAL_Z_MAX, REVERSAL_Z_MAX)
            if kind == "logloss":
                score -= np.log(batch.keep_rates[rows, t])
                each = np.logaddexp(0, score) - label * score
                slope = 1 / (1 + np.exp(-score)) - label
            else:
                error = score - label
                slope = error.clip(-HUBER_DELTA, HUBER_DELTA)
                each = slope * (error - 0.5 * slope)
            total += float(each @ weight)
            gradient[rows, t] = slope * weight
    gradient[is_clipped] = 0
    return total, gradient


def served(z: F32, losses: Sequence[Loss]) -> F32:
    """What a service answers for z: sigma(z) of a log-loss task, z itself of a Huber task.

    Args:
        z: `float32[B, T]`.
        losses: Kind of each task.

    Returns:
        `float32[B, T]`.
    """
    out = z.copy()
    for t, kind in enumerate(losses):
        if kind == "logloss":
            # tanh form: no overflow for any finite z.
            out[:, t] = 0.5 * (1.0 + np.tanh(0.5 * z[:, t]))
    return out
