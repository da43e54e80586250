"""DeepFM and logistic regression over rows that the embedding store owns.

torch holds the dense parameters only. The rows come in pooled, one per slot, as the leaf whose
gradient goes back to the store; their last column is the first-order weight of the slot's ids.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


class Net(nn.Module, ABC):
    """What every net shares: its shape, a bias per task and the weights of the dense values.

    B rows, S slots, W = dim + 1 floats per slot, K dense values, T tasks.

    Args:
        n_slots: S.
        width: W; 1 where rows are first-order weights only.
        n_dense: K; with 0 the net takes no second input.
        n_tasks: T.
    """

    def __init__(self, *, n_slots: int, width: int, n_dense: int, n_tasks: int) -> None:
        super().__init__()
        self.n_slots = n_slots
        self.width = width
        self.n_dense = n_dense
        self.n_tasks = n_tasks
        self.bias = nn.Parameter(torch.zeros(n_tasks))
        self.dense_weight = nn.Parameter(torch.zeros(n_tasks, n_dense)) if n_dense else None

    def first_order(self, rows: Tensor, dense: Tensor | None) -> Tensor:
        """Bias, first-order weights and the linear term of the dense values: `float32[B, T]`."""
        linear = rows[:, :, self.width - 1].sum(dim=1, keepdim=True)  # [B, 1]
        z = self.bias + linear  # [B, T]
        if dense is not None and self.dense_weight is not None:
            z = z + dense @ self.dense_weight.T  # [B, T]
        return z

    @abstractmethod
    def forward(self, rows: Tensor, dense: Tensor | None = None) -> Tensor:
        """Score.

        Args:
            rows: `float32[B, S, W]`, pooled rows in slot order.
            dense: `float32[B, K]`; None where K = 0.

        Returns:
            `float32[B, T]`: per task the logit (log loss) or the value (Huber).
        """


class Logistic(Net):
    """Logistic regression: one weight per id.

    Example:
        >>> net = Logistic(n_slots=2, width=1, n_dense=0, n_tasks=1)
        >>> net(torch.tensor([[[0.5], [0.25]]])).tolist()
        [[0.75]]
    """

    def forward(self, rows: Tensor, dense: Tensor | None = None) -> Tensor:
        """Score `float32[B, S, 1]`; see `Net.forward`."""
        return self.first_order(rows, dense)


class DeepFM(Net):
    """First order + factorisation machine + multi-layer perceptron over the same vectors.

    The first two terms are shared by the tasks, the perceptron has an output per task.

    Args:
        n_slots: S.
        width: W = dim + 1.
        n_dense: K.
        n_tasks: T.
        hidden: Widths of the hidden layers; none makes the perceptron linear.

    Source: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR
    Prediction", equations 1-4.
    """

    def __init__(
        self, *, n_slots: int, width: int, n_dense: int, n_tasks: int, hidden: list[int]
    ) -> None:
        super().__init__(n_slots=n_slots, width=width, n_dense=n_dense, n_tasks=n_tasks)
        widths = [n_slots * (width - 1) + n_dense, *hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        layers.append(nn.Linear(widths[-1], n_tasks))
        self.mlp = nn.Sequential(*layers)

    def forward(self, rows: Tensor, dense: Tensor | None = None) -> Tensor:
        """Score `float32[B, S, W]`; see `Net.forward`."""
        vectors = rows[:, :, : self.width - 1]  # [B, S, D]
        total = vectors.sum(dim=1)  # [B, D]
        squares = (vectors * vectors).sum(dim=1)  # [B, D]
        # sum over pairs i < j of <v_i, v_j>, in O(S D): Rendle 2010, lemma 3.1.
        pairs = 0.5 * (total * total - squares).sum(dim=1, keepdim=True)  # [B, 1]
        flat = vectors.flatten(1)  # [B, S * D]
        deep: Tensor = self.mlp(flat if dense is None else torch.cat([flat, dense], dim=1))
        return self.first_order(rows, dense) + pairs + deep  # [B, T]


def build_net(
    kind: Literal["deepfm", "logistic"],
    *,
    n_slots: int,
    width: int,
    n_dense: int,
    n_tasks: int,
    hidden: list[int],
    seed: int,
) -> Net:
    """A net in its seeded initial state: the same bits for the same arguments.

    Matrices of the perceptron start uniform in (-1, 1) * sqrt(6 / n_in), which keeps the variance
    of ReLU layers; the last one a tenth of that, so that an untrained net scores near 0. Biases and
    first-order weights start at 0.

    Source: He et al. 2015, "Delving deep into rectifiers", equation 10.
    """
    net: Net
    if kind == "logistic":
        net = Logistic(n_slots=n_slots, width=width, n_dense=n_dense, n_tasks=n_tasks)
    else:
        net = DeepFM(n_slots=n_slots, width=width, n_dense=n_dense, n_tasks=n_tasks, hidden=hidden)
    generator = torch.Generator().manual_seed(seed)
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for n, linear in enumerate(linears):
            bound = math.sqrt(6.0 / linear.in_features) * (0.1 if n == len(linears) - 1 else 1.0)
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.zero_()
    return net
