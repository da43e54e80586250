"""Losses, their gradients, and what is served."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from freshrank.features import FeatureEncoder
from tests.unit.trainer.example_records import make_batch, make_settings
from trainer.adam import DenseAdam
from trainer.losses import Loss, loss_and_gradient, served

F64 = npt.NDArray[np.float64]


def _gradient(
    z: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    losses: list[Loss] | None = None,
    weights: float | list[list[float]] = 1.0,
    keep_rates: float = 1.0,
    is_reversal: bool = False,
) -> tuple[float, F64]:
    """Loss and its gradient with respect to z."""
    scores = np.array(z, np.float32)
    n_tasks = scores.shape[1]
    tasks = [{"name": f"t{t}", "event": "click"} for t in range(n_tasks)]
    batch = make_batch(
        FeatureEncoder(make_settings(tasks=tasks)),
        {},
        labels,
        weights=weights,
        keep_rates=keep_rates,
        is_reversal=is_reversal,
    )
    kinds = losses or ["logloss"] * n_tasks
    loss, gradient = loss_and_gradient(scores, kinds, np.ones(n_tasks, np.float32), batch)
    return loss, gradient.astype(np.float64)


def _sigma(z: F64) -> F64:
    return 1 / (1 + np.exp(-z))


def test_log_loss_is_the_sum_of_entropies_and_its_gradient_is_the_error() -> None:
    z = np.array([[-2.0], [0.5], [3.0]])
    y = np.array([[0.0], [1.0], [0.0]])
    loss, gradient = _gradient(z, y)
    p = _sigma(z)
    assert loss == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(), rel=1e-6)
    np.testing.assert_allclose(gradient, p - y, atol=1e-6)


def test_gradient_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    _, alone = _gradient([[0.3]], [[1.0]])
    _, among = _gradient([[0.3]] + [[1.0]] * 99, [[1.0]] + [[0.0]] * 99)
    assert among[0] == alone[0]


def test_sampled_stratum_is_learned_at_z_minus_log_rate() -> None:
    z = np.array([[-1.0], [0.5]])
    _, gradient = _gradient(z, [[0.0], [1.0]], keep_rates=0.1)
    odds = np.exp(z) / 0.1  # keeping a tenth of the negatives multiplies the odds by ten
    np.testing.assert_allclose(gradient, odds / (1 + odds) - [[0.0], [1.0]], atol=1e-6)


@pytest.mark.parametrize("z", [-14.0, 0.0, 14.0])
def test_reversal_pair_pulls_with_force_one_whatever_the_score(z: float) -> None:
    _, gradient = _gradient(
        [[z], [z]], [[1.0], [0.0]], weights=[[1.0], [-1.0]], is_reversal=True, keep_rates=0.3
    )
    assert gradient.sum() == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("z", [-15.5, 15.5, 80.0])
def test_reversal_pair_has_no_gradient_beyond_the_clip(z: float) -> None:
    _, gradient = _gradient([[z], [z]], [[1.0], [0.0]], weights=[[1.0], [-1.0]], is_reversal=True)
    np.testing.assert_array_equal(gradient, 0)


def test_score_beyond_the_clip_still_learns_when_it_is_no_reversal() -> None:
    _, gradient = _gradient([[20.0]], [[0.0]])
    assert gradient[0, 0] == pytest.approx(1.0)


def test_huber_is_quadratic_within_one_and_linear_beyond() -> None:
    loss, gradient = _gradient([[0.0], [0.0]], [[0.5], [4.0]], losses=["huber"])
    assert loss == pytest.approx(0.5 * 0.25 + (4.0 - 0.5))
    np.testing.assert_allclose(gradient, [[-0.5], [-1.0]])


def test_each_task_has_its_own_loss_and_weight() -> None:
    _, gradient = _gradient(
        [[0.0, 3.0]], [[1.0, 2.5]], losses=["logloss", "huber"], weights=[[2.0, 0.5]]
    )
    np.testing.assert_allclose(gradient, [[-1.0, 0.25]])


def test_served_is_a_probability_for_log_loss_and_the_value_for_huber() -> None:
    z = np.array([[0.0, 7.5], [100.0, -1.0], [-100.0, 0.0]], np.float32)
    scores = served(z, ["logloss", "huber"])
    np.testing.assert_allclose(scores[:, 0], [0.5, 1.0, 0.0], atol=1e-7)
    np.testing.assert_array_equal(scores[:, 1], z[:, 1])


def _two_nets() -> tuple[torch.nn.Linear, torch.nn.Linear]:
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_dense_adam_moves_as_torch_adam_does() -> None:
    ours, theirs = _two_nets()
    adam = DenseAdam(ours, lr=0.01, clip_norm=1e9)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for seed in range(50):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        adam.gradients.zero_()
        ours(x).square().sum().backward()
        adam.step(8.0)
        reference.zero_grad()
        theirs(x).square().sum().backward()
        reference.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_dense_gradient_is_clipped_to_its_norm_per_example() -> None:
    ours, _ = _two_nets()
    adam = DenseAdam(ours, lr=0.01, clip_norm=0.5)
    adam.gradients.fill_(100.0)
    adam.step(4.0)
    # The first moment is (1 - beta1) of the clipped gradient: 0.1 * 0.5 * 4.
    assert float(adam.moment1.norm()) == pytest.approx(0.2, rel=1e-5)


def test_rare_events_learned_one_by_one_do_not_outvote_their_absence() -> None:
    """A bias alone, clicks in batches of one and their absence in batches of ten: one in eleven."""
    net = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)
    adam = DenseAdam(net, lr=0.01, clip_norm=10.0)
    for _ in range(3_000):
        for label, n in ((1.0, 1), (0.0, 10)):
            adam.gradients.zero_()
            z = net(torch.zeros(n, 1))
            labels = torch.full_like(z, label)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(z, labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step(float(n))
    assert torch.sigmoid(net.bias).item() == pytest.approx(1 / 11, rel=0.05)
