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
import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["logloss", "huber"]

# sigma(-15) = 3e-7: below any rate the service can tell from 0, and far from where float32 loses
# 1 - sigma (about 16.6). Without it, repeated reversals would push a logit without end.
REVERSAL_Z_MAX: Final = 15.0
HUBER_DELTA: Final = 1.0


def weighted_loss(
    z: Tensor,
    *,
    losses: Sequence[Loss],
    task_weights: Tensor,
    labels: Tensor,
    weights: Tensor,
    keep_rates: Tensor,
    is_reversal: Tensor,
) -> Tensor:
    """Sum over rows i and tasks t of task_weights[t] * weights[i, t] * loss_t(z, label).

    Args:
        z: `float32[B, T]`, the net's output.
        losses: Kind of each task.
        task_weights: `float32[T]`.
        labels: `float32[B, T]`; finite, also where the weight is 0.
        weights: `float32[B, T]`.
        keep_rates: `float32[B, T]` in (0, 1]; 1 where the weight is 0.
        is_reversal: `bool[B]`.

    Returns:
        A scalar.
    """
    z = torch.where(is_reversal[:, None], z.clamp(-REVERSAL_Z_MAX, REVERSAL_Z_MAX), z)  # [B, T]
    columns = []
    for t, kind in enumerate(losses):
        if kind == "logloss":
            logit = z[:, t] - keep_rates[:, t].log()  # [B]
            columns.append(
                functional.binary_cross_entropy_with_logits(logit, labels[:, t], reduction="none")
            )
        else:
            columns.append(
                functional.huber_loss(z[:, t], labels[:, t], reduction="none", delta=HUBER_DELTA)
            )
    per_row = torch.stack(columns, dim=1)  # [B, T]
    return (per_row * weights * task_weights).sum()


def served(z: npt.NDArray[np.float32], losses: Sequence[Loss]) -> npt.NDArray[np.float32]:
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
