"""Whole steps: against a plain model, and against answers known by construction."""

from typing import Any

import numpy as np
import pytest
import torch

from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from tests.unit.trainer.example_records import CLICK, FEATURES, make_batch, make_settings
from trainer.learner import Learner
from trainer.losses import served
from trainer.models import build_net

DWELL: dict[str, Any] = {"name": "dwell", "event": "dwell", "loss": "huber", "weight": 0.3}
N_IDS = {"user_id": 12, "item_id": 15, "tags": 7}


class PlainModel:
    """DeepFM with dense float64 parameters, pairs written out, autograd and textbook optimizers.

    It starts where `learner` does, with every id born.
    """

    def __init__(self, learner: Learner, encoder: FeatureEncoder) -> None:
        self.names = [slot.name for slot in encoder.slots]
        self.rows = {}
        for name, n in N_IDS.items():
            ids, counts = np.arange(n, dtype=np.uint64), np.ones(n, np.uint32)
            born = learner.sparse.tables[name].lookup_or_admit(ids, counts, 1)
            self.rows[name] = torch.tensor(born, dtype=torch.float64, requires_grad=True)
        self.squares = {name: torch.full_like(r, 0.1) for name, r in self.rows.items()}
        self.net = {
            name: value.double().clone().requires_grad_()
            for name, value in learner.net.state_dict().items()
        }
        self.adam = torch.optim.Adam(list(self.net.values()), lr=1e-3)

    def score(self, batch: ExampleBatch) -> torch.Tensor:
        vectors = [self._bag(batch, name) for name in self.names]  # S x [B, W]
        dense = torch.tensor(batch.values.dense, dtype=torch.float64)
        pairs = torch.zeros(batch.n_rows, dtype=torch.float64)
        for i in range(len(vectors)):
            for j in range(i):
                pairs = pairs + (vectors[i][:, :-1] * vectors[j][:, :-1]).sum(1)
        linear = torch.stack([v[:, -1] for v in vectors]).sum(0)
        hidden = torch.cat([v[:, :-1] for v in vectors] + [dense], dim=1)
        hidden = torch.relu(hidden @ self.net["mlp.0.weight"].T + self.net["mlp.0.bias"])
        deep = hidden @ self.net["mlp.2.weight"].T + self.net["mlp.2.bias"]
        first = dense @ self.net["dense_weight"].T
        z: torch.Tensor = deep + first + self.net["bias"] + (linear + pairs)[:, None]
        return z

    def _bag(self, batch: ExampleBatch, name: str) -> torch.Tensor:
        column, rows = batch.values.slots[name], self.rows[name]
        pooled = []
        for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True):
            bag = rows[torch.tensor(column.ids[a:b].astype(np.int64))]
            pooled.append(bag.mean(0) if b > a else torch.zeros(rows.shape[1], dtype=rows.dtype))
        return torch.stack(pooled)

    def learn(self, batch: ExampleBatch) -> None:
        z = self.score(batch)
        y, w = torch.tensor(batch.labels).double(), torch.tensor(batch.weights).double()
        p = torch.sigmoid(z[:, 0] - torch.log(torch.tensor(batch.keep_rates[:, 0]).double()))
        click = -(y[:, 0] * torch.log(p) + (1 - y[:, 0]) * torch.log(1 - p))
        error = (z[:, 1] - y[:, 1]).abs()
        dwell = torch.where(error <= 1, 0.5 * error**2, error - 0.5)
        loss = (w[:, 0] * click + DWELL["weight"] * w[:, 1] * dwell).sum()
        for tensor in [*self.rows.values(), *self.net.values()]:
            tensor.grad = None
        loss.backward()
        with torch.no_grad():
            for name, rows in self.rows.items():
                assert rows.grad is not None
                self.squares[name] += rows.grad**2
                rows -= 0.05 * rows.grad / (self.squares[name].sqrt() + 1e-8)
        torch.nn.utils.clip_grad_norm_(list(self.net.values()), 10.0 * float(w.abs().sum()))
        self.adam.step()


def _two_task_batch(encoder: FeatureEncoder, rng: np.random.Generator) -> ExampleBatch:
    n = 24
    slots = {
        "user_id": rng.integers(0, N_IDS["user_id"], (n, 1)).tolist(),
        "item_id": rng.integers(0, N_IDS["item_id"], (n, 1)).tolist(),
        "tags": [rng.integers(0, N_IDS["tags"], rng.integers(0, 4)).tolist() for _ in range(n)],
    }
    labels = np.stack([rng.integers(0, 2, n), rng.normal(1, 2, n)], axis=1)
    weights = rng.choice([0.0, 0.5, 1.0], (n, 2))
    is_reversal = np.arange(n) >= n - 4  # two pairs
    labels[is_reversal, 0], weights[is_reversal] = [1, 0, 1, 0], [[1, 0], [-1, 0]] * 2
    for slot in slots.values():
        slot[n - 3], slot[n - 1] = slot[n - 4], slot[n - 2]
    dense = rng.normal(0, 1, (n, 1))
    dense[n - 3], dense[n - 1] = dense[n - 4], dense[n - 2]
    return make_batch(
        encoder,
        slots,
        labels,
        weights=weights,
        keep_rates=np.stack([np.full(n, 0.5), np.ones(n)], axis=1),
        is_reversal=is_reversal,
        dense=dense,
    )


def test_hundred_steps_equal_those_of_a_plain_model() -> None:
    settings = make_settings(tasks=[CLICK, DWELL])
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    plain = PlainModel(learner, encoder)
    start = learner.adam.parameters.clone()
    rng = np.random.default_rng(0)
    for _ in range(100):
        batch = _two_task_batch(encoder, rng)
        predictions = learner.learn(batch).predictions
        z = plain.score(batch).detach().numpy().astype(np.float32)
        np.testing.assert_allclose(predictions, served(z, learner.losses), atol=2e-4)
        plain.learn(batch)
    for name, value in learner.net.state_dict().items():
        np.testing.assert_allclose(value, plain.net[name].detach(), atol=2e-4, err_msg=name)
    for name, rows in plain.rows.items():
        ids = np.arange(N_IDS[name], dtype=np.uint64)
        found = learner.sparse.tables[name].lookup(ids)
        np.testing.assert_allclose(found, rows.detach(), atol=1e-3, err_msg=name)
    assert float((learner.adam.parameters - start).abs().max()) > 0.01  # it did move


def test_same_seed_gives_the_same_net_and_another_seed_another() -> None:
    def first_weight(seed: int) -> torch.Tensor:
        net = build_net("deepfm", n_slots=2, width=3, n_dense=1, n_tasks=1, hidden=[4], seed=seed)
        weight: torch.Tensor = net.state_dict()["mlp.0.weight"]
        return weight

    torch.testing.assert_close(first_weight(1), first_weight(1), rtol=0, atol=0)
    assert not torch.equal(first_weight(1), first_weight(2))


def test_reversal_raises_the_score_that_the_negative_lowered() -> None:
    settings = make_settings(
        model={"kind": "logistic"}, optimizer={"sparse": {"kind": "sgd", "lr": 0.1}}
    )
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    learner.learn(make_batch(encoder, {"item_id": [[1]]}, [0]))
    row = np.array([1], np.uint64)
    lowered = learner.sparse.tables["item_id"].lookup(row)[0, 0]
    pair = make_batch(
        encoder,
        {"item_id": [[1], [1]]},
        [1, 0],
        weights=[[1], [-1]],
        is_reversal=True,
        request_ids=["r", "r"],
        items=["i", "i"],
    )
    learner.learn(pair)
    reversed_ = learner.sparse.tables["item_id"].lookup(row)[0, 0]
    # At z = 0 a negative pushes by sigma(0) = 1/2 and a positive by as much the other way. The pair
    # pushes by 1: what the negative took, and what the positive would have given.
    assert lowered == pytest.approx(-0.05)
    assert reversed_ == pytest.approx(0.05)


def test_served_probability_of_a_sampled_stream_is_the_true_rate() -> None:
    rate, n_each = np.array([0.02, 0.05, 0.1, 0.15, 0.2]), 20_000
    settings = make_settings(
        features=[FEATURES[1]],
        model={"kind": "logistic"},
        optimizer={"sparse": {"kind": "adagrad", "lr": 0.5}},
    )
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    rng = np.random.default_rng(11)
    n_positive = (rate * n_each).astype(int)
    n_kept = ((n_each - n_positive) * 0.1).astype(int)  # a tenth of the negatives
    items = np.concatenate([np.repeat(np.arange(5), n_positive), np.repeat(np.arange(5), n_kept)])
    labels = np.concatenate([np.ones(n_positive.sum()), np.zeros(n_kept.sum())])
    order = rng.permutation(len(items))
    scored, shown = np.zeros(5), np.zeros(5)
    for n, part in enumerate(np.array_split(order, len(order) // 64)):
        slots = {"item_id": items[part, None].tolist()}
        batch = make_batch(encoder, slots, labels[part], keep_rates=0.1)
        predictions = learner.learn(batch).predictions[:, 0]
        if n >= 100:  # it has settled
            stands_for = np.where(labels[part] == 1, 1.0, 10.0)
            scored += np.bincount(items[part], predictions * stands_for, 5)
            shown += np.bincount(items[part], stands_for, 5)
    assert scored.sum() / shown.sum() == pytest.approx(rate.mean(), rel=0.02)
    np.testing.assert_allclose(scored / shown, rate, rtol=0.1)


def test_huber_task_learns_the_median_of_its_label() -> None:
    settings = make_settings(
        features=[FEATURES[1]],
        model={"kind": "logistic"},
        tasks=[{"name": "dwell", "event": "dwell", "loss": "huber"}],
        optimizer={"sparse": {"kind": "adagrad", "lr": 0.5}},
    )
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    rng = np.random.default_rng(2)
    for _ in range(300):
        items = rng.integers(0, 2, 32)
        labels = np.where(items == 0, 3.0, -2.0) + rng.normal(0, 0.2, 32)
        learner.learn(make_batch(encoder, {"item_id": items[:, None].tolist()}, labels))
    probe = make_batch(encoder, {"item_id": [[0], [1]]}, [0, 0], weights=0)
    np.testing.assert_allclose(learner.learn(probe).predictions[:, 0], [3.0, -2.0], atol=0.1)


def _parameters(learner: Learner) -> list[bytes]:
    rows = [
        table.lookup(np.arange(1, 600, dtype=np.uint64)).tobytes()
        for name, table in learner.sparse.tables.items()
    ]
    adam = learner.adam
    return rows + [v.numpy().tobytes() for v in (adam.parameters, adam.moment1, adam.moment2)]


def test_nothing_is_applied_when_a_gradient_is_not_finite() -> None:
    settings = make_settings()
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    slots = {"user_id": [[1], [2]], "item_id": [[3], [666]], "tags": [[4], [5]]}
    batch = make_batch(encoder, slots, [1, 0])
    assert learner.learn(batch).is_applied
    poison = np.full((1, learner.sparse.width), np.nan, np.float32)
    learner.sparse.tables["item_id"].apply(np.array([666], np.uint64), poison)
    before = _parameters(learner)
    assert not learner.learn(batch).is_applied
    assert _parameters(learner) == before
    assert learner.adam.n_steps == 1


def test_largest_legal_values_stay_finite() -> None:
    settings = make_settings(tasks=[CLICK, DWELL])
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    slots = {"user_id": [[1], [2]], "item_id": [[3], [4]]}
    for _ in range(5):
        batch = make_batch(
            encoder, slots, [[1, 1e6], [0, -1e6]], weights=1e6, dense=[[1e12], [-1e12]]
        )
        assert learner.learn(batch).is_applied
    assert all(np.isfinite(np.frombuffer(part, np.float32)).all() for part in _parameters(learner))


def test_label_without_weight_may_be_anything() -> None:
    settings = make_settings(tasks=[CLICK, DWELL])
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    batch = make_batch(
        encoder, {"item_id": [[1]]}, [[1, np.nan]], weights=[[1, 0]], keep_rates=[[1, np.nan]]
    )
    assert learner.learn(batch).is_applied


def test_probe_is_the_last_64_rows() -> None:
    settings = make_settings()
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    assert learner.probe()[0].shape == (64, 3, 5)
    for n in (50, 50):
        numbers = np.arange(n)[:, None]
        learner.learn(make_batch(encoder, {}, [0] * n, dense=numbers))
    rows, dense = learner.probe()
    assert rows.shape == (64, 3, 5)
    assert dense[:, 0].tolist() == [*range(36, 50), *range(50)]
