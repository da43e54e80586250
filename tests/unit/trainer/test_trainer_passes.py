"""The passes by hand against autograd through the net."""

import pytest
import torch

from trainer.adam import DenseAdam
from trainer.models import Net, build_net
from trainer.passes import Passes


def _net(kind: str, n_dense: int, n_tasks: int, hidden: list[int]) -> Net:
    width = 1 if kind == "logistic" else 6
    net = build_net(
        "logistic" if kind == "logistic" else "deepfm",
        n_slots=4,
        width=width,
        n_dense=n_dense,
        n_tasks=n_tasks,
        hidden=hidden,
        seed=3,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():  # biases and first-order weights start at 0
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return net


@pytest.mark.parametrize("kind", ["deepfm", "logistic"])
@pytest.mark.parametrize("n_dense", [0, 3])
@pytest.mark.parametrize(("n_tasks", "hidden"), [(1, [8, 5]), (2, [8]), (3, [])])
def test_passes_equal_autograd(kind: str, n_dense: int, n_tasks: int, hidden: list[int]) -> None:
    net = _net(kind, n_dense, n_tasks, hidden)
    adam = DenseAdam(net, lr=1e-3, clip_norm=10.0)
    passes = Passes(net)
    generator = torch.Generator().manual_seed(2)
    for n_rows in (7, 1, 12):  # gradients of an earlier batch leave no trace
        rows = torch.randn(n_rows, 4, net.width, generator=generator)
        dense = torch.randn(n_rows, n_dense, generator=generator) if n_dense else None
        gradient = torch.randn(n_rows, n_tasks, generator=generator)
        leaf = rows.clone().requires_grad_()
        adam.zero()
        expected = net(leaf, dense)
        expected.backward(gradient)
        of_parameters = adam.gradients.clone()
        adam.gradients.fill_(9.0)
        torch.testing.assert_close(passes.forward(rows, dense), expected.detach())
        torch.testing.assert_close(passes.backward(gradient), leaf.grad)
        torch.testing.assert_close(adam.gradients, of_parameters)
