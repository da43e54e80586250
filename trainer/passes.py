"""Forward and backward through a net by hand: what autograd would give, in a third of its time.

A batch of 512 rows is small: autograd spends more on bookkeeping and on the strided parts of the
factorisation machine than on the matrices. Gradients of parameters are written where `DenseAdam`
wants them; those of the rows go back to the tables. The nets in `trainer.models` are what is
exported, and what these formulas are tested against.

Matrices of a batch's size are kept from step to step: freed, their memory goes back to the system,
and the page faults of the next step took longer than the products of matrices (2.2 ms of 512 rows
and 26 slots where it is 1.1).
"""

import torch
from torch import Tensor, nn

from trainer.models import DeepFM, Net


class Passes:
    """Runs batches through one net.

    B rows, S slots, W = D + 1 floats per slot, K dense values, T tasks.

    Args:
        net: For `backward` its parameters carry their gradients (`DenseAdam` sees to that).

    Attributes:
        net: As given.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self._width = net.width
        modules = net.mlp if isinstance(net, DeepFM) else ()
        self._linears = [module for module in modules if isinstance(module, nn.Linear)]
        self._dense: Tensor | None = None
        self._flat = self._total = torch.empty(0)
        self._inputs: list[Tensor] = []
        self._resize(0)
        # [S * D, D]: the sum over slots as a product of matrices, faster than a strided sum.
        self._over_slots = torch.eye(net.width - 1).repeat(net.n_slots, 1)

    def _resize(self, n_rows: int) -> None:
        """Make room for batches of so many rows."""
        n_inputs = self._linears[0].in_features if self._linears else 0
        self._x = torch.empty(n_rows, n_inputs)
        self._x_gradient = torch.empty(n_rows, n_inputs)
        self._row_gradients = torch.empty(n_rows, self.net.n_slots, self._width)

    @torch.no_grad()
    def forward(self, rows: Tensor, dense: Tensor | None) -> Tensor:
        """Score, and remember what `backward` needs.

        Args:
            rows: `float32[B, S, W]`.
            dense: `float32[B, K]`; None where K = 0.

        Returns:
            `float32[B, T]`.
        """
        if len(rows) > len(self._x):
            self._resize(len(rows))
        self._dense = dense
        z = self.net.first_order(rows, dense)
        if not self._linears:
            return z
        n_vectors = len(self._over_slots)
        x = self._x[: len(rows)]
        flat = self._flat = x[:, :n_vectors]
        torch.unflatten(flat, 1, (self.net.n_slots, self._width - 1)).copy_(rows[:, :, :-1])
        if dense is not None:
            x[:, n_vectors:] = dense
        self._total = flat @ self._over_slots  # [B, D]
        squares = torch.linalg.vecdot(flat, flat)  # [B]
        pairs = 0.5 * (torch.linalg.vecdot(self._total, self._total) - squares)
        self._inputs = [x]
        for linear in self._linears[:-1]:
            x = torch.addmm(linear.bias, x, linear.weight.T).relu_()
            self._inputs.append(x)
        last = self._linears[-1]
        return torch.addmm(last.bias, x, last.weight.T).add_(z).add_(pairs[:, None])

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> Tensor:
        """Write the gradients of the parameters and return those of the last `forward`'s rows.

        Args:
            gradient: `float32[B, T]`, of the loss with respect to what `forward` returned.

        Returns:
            `float32[B, S, W]`, until the next call.
        """
        net = self.net
        torch.sum(gradient, 0, out=net.bias.grad)
        if self._dense is not None and net.dense_weight is not None:
            torch.mm(gradient.T, self._dense, out=net.dense_weight.grad)
        shared = gradient.sum(dim=1, keepdim=True)  # [B, 1]: first order and pairs feed all tasks
        rows = self._row_gradients[: len(gradient)]
        rows[:, :, -1] = shared
        for linear, x in zip(reversed(self._linears), reversed(self._inputs), strict=True):
            torch.mm(gradient.T, x, out=linear.weight.grad)
            torch.sum(gradient, 0, out=linear.bias.grad)
            if linear is not self._linears[0]:
                gradient = torch.mm(gradient, linear.weight)
                # The input of every later layer came out of a ReLU.
                gradient = torch.ops.aten.threshold_backward(gradient, x, 0)
        if self._linears:
            x_gradient = self._x_gradient[: len(gradient)]
            torch.mm(gradient, self._linears[0].weight, out=x_gradient)
            # Of the pairs <v_i, v_j>, v_s is pushed by the sum of the others: total - v_s.
            flat = x_gradient[:, : len(self._over_slots)]
            flat.addmm_(shared * self._total, self._over_slots.T)
            flat.addcmul_(self._flat, shared, value=-1)
            rows[:, :, :-1] = torch.unflatten(flat, 1, (net.n_slots, self._width - 1))
        return rows
