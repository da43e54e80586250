"""Adam on the dense net, over one flat vector.

All parameters of the net become views of one vector, and so do their gradients: a step is a handful
of vector operations whatever the number of layers (a step's fixed cost is what an idle stream
pays), and a checkpoint stores three vectors.
"""

from typing import Final

import torch
from torch import Tensor, nn

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8


class DenseAdam:
    """Takes over the parameters of `net` and moves them.

    Args:
        net: Its parameters are re-bound to views of one vector.
        lr: Learning rate.
        clip_norm: Longest mean gradient of a batch, as Euclidean norm over all parameters.

    Attributes:
        parameters: `float32[p]`.
        gradients: `float32[p]`, where `Passes.backward` writes them.
        moment1: `float32[p]`.
        moment2: `float32[p]`.
        n_steps: Steps taken.

    Source: Kingma & Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
    """

    def __init__(self, net: nn.Module, *, lr: float, clip_norm: float) -> None:
        self._lr = lr
        self._clip_norm = clip_norm
        tensors = list(net.parameters())
        self.parameters = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self.gradients = torch.zeros_like(self.parameters)
        self.moment1 = torch.zeros_like(self.parameters)
        self.moment2 = torch.zeros_like(self.parameters)
        self.n_steps = 0
        start = 0
        for tensor in tensors:
            stop = start + tensor.numel()
            tensor.data = self.parameters[start:stop].view_as(tensor)
            tensor.grad = self.gradients[start:stop].view_as(tensor)
            start = stop

    def step(self, total_weight: float) -> None:
        """Move the parameters by the gradients, after clipping their norm.

        The gradients are taken as they are, sums over the batch. Means would let the net settle
        where the mean gradients of batches cancel: clicks come one by one and their absence ten at
        a time, so a click would count ten times as much as the absence of one (measured on the
        demo: predictions 2.6 times too high). The scale of all sums cancels in Adam.

        Args:
            total_weight: Above 0: the sum of |weights| of the batch; the norm of the gradients
                divided by it is what is clipped.
        """
        gradient = self.gradients
        norm = float(torch.linalg.vector_norm(gradient)) / total_weight
        if norm > self._clip_norm:
            gradient = gradient * (self._clip_norm / norm)
        self.n_steps += 1
        self.moment1.lerp_(gradient, 1 - BETA1)
        self.moment2.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        scale = self._lr / (1 - BETA1**self.n_steps)
        deviation = (self.moment2 / (1 - BETA2**self.n_steps)).sqrt_().add_(EPSILON)
        self.parameters.addcdiv_(self.moment1, deviation, value=-scale)

    def restore(
        self, *, parameters: Tensor, moment1: Tensor, moment2: Tensor, n_steps: int
    ) -> None:
        """Take over saved vectors, each `float32[p]`."""
        self.parameters.copy_(parameters)
        self.moment1.copy_(moment1)
        self.moment2.copy_(moment2)
        self.n_steps = n_steps
