"""The passes by hand against autograd through the net and the loss."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from freshrank.features import FeatureEncoder
from tests.unit.trainer.example_records import CLICK, make_batch, make_settings
from trainer.adam import DenseAdam
from trainer.losses import HUBER_DELTA, REVERSAL_Z_MAX, Loss, loss_and_gradient
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
        adam.gradients.zero_()
        expected = net(leaf, dense)
        expected.backward(gradient)
        of_parameters = adam.gradients.clone()
        adam.gradients.fill_(9.0)
        torch.testing.assert_close(passes.forward(rows, dense), expected.detach())
        torch.testing.assert_close(passes.backward(gradient), leaf.grad)
        torch.testing.assert_close(adam.gradients, of_parameters)


def _loss_in_torch(
    z: Tensor,
    *,
    losses: Sequence[Loss],
    task_weights: Tensor,
    labels: Tensor,
    weights: Tensor,
    keep_rates: Tensor,
    is_reversal: Tensor,
) -> Tensor:
    """The formula as torch has it."""
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


def test_loss_and_gradient_equal_autograd() -> None:
    losses: list[Loss] = ["logloss", "huber"]
    dwell = {"name": "dwell", "event": "dwell", "loss": "huber"}
    encoder = FeatureEncoder(make_settings(tasks=[CLICK, dwell]))
    rng = np.random.default_rng(4)
    n = 200
    weights = rng.choice([0, 0.5, 1, 3], (n, 2)) * np.where(rng.random((n, 1)) < 0.2, -1, 1)
    batch = make_batch(
        encoder,
        {},
        np.stack([rng.integers(0, 2, n), rng.normal(0, 3, n)], axis=1),
        weights=weights,
        keep_rates=rng.choice([0.1, 1], (n, 2)),
        is_reversal=rng.random(n) < 0.5,
    )
    z = rng.choice([-100, -15, 15, 40, 0.5, -2], (n, 2)).astype(np.float32)
    task_weights = np.array([1, 0.3], np.float32)
    leaf = torch.from_numpy(z.copy()).requires_grad_()
    expected = _loss_in_torch(
        leaf,
        losses=losses,
        task_weights=torch.from_numpy(task_weights),
        labels=torch.from_numpy(batch.labels),
        weights=torch.from_numpy(batch.weights),
        keep_rates=torch.from_numpy(batch.keep_rates),
        is_reversal=torch.from_numpy(batch.is_reversal),
    )
    (by_autograd,) = torch.autograd.grad(expected, leaf)
    batch.labels[weights == 0] = batch.keep_rates[weights == 0] = np.nan
    loss, gradient = loss_and_gradient(z, losses, task_weights, batch)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, by_autograd, rtol=1e-5, atol=1e-6)
