"""Every optimizer against its formula in numpy, 1,000 steps with duplicates in each batch."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from embedding_store import Table
from tests.store.helpers import F32, admit, ids_of, make

N_IDS, DIM, LR, L2, EPS, START = 50, 6, 0.05, 0.01, 1e-6, 0.1
BETA1, BETA2 = 0.9, 0.99

I64 = npt.NDArray[np.int64]
Step = Callable[[I64, F32], None]
f32 = np.float32


def sgd(weights: F32) -> Step:
    def step(rows: I64, g: F32) -> None:
        weights[rows] -= f32(LR) * g

    return step


def adagrad(weights: F32) -> Step:
    accumulator = np.full_like(weights, START)

    def step(rows: I64, g: F32) -> None:
        accumulator[rows] += g * g
        weights[rows] -= f32(LR) * g / (np.sqrt(accumulator[rows]) + f32(EPS))

    return step


def rowwise_adagrad(weights: F32) -> Step:
    accumulator = np.full((len(weights), 2), START, f32)  # the vector's, the first-order column's

    def step(rows: I64, g: F32) -> None:
        accumulator[rows, 0] += (g[:, :DIM] ** 2).mean(axis=1)
        accumulator[rows, 1] += g[:, DIM] ** 2
        divisor = np.sqrt(accumulator[rows]) + f32(EPS)
        weights[rows, :DIM] -= f32(LR) * g[:, :DIM] / divisor[:, :1]
        weights[rows, DIM] -= f32(LR) * g[:, DIM] / divisor[:, 1]

    return step


def adam(weights: F32) -> Step:
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    n_steps = np.zeros(len(weights), np.int64)

    def step(rows: I64, g: F32) -> None:
        n_steps[rows] += 1
        first[rows] = f32(BETA1) * first[rows] + f32(1 - BETA1) * g
        second[rows] = f32(BETA2) * second[rows] + f32(1 - BETA2) * g * g
        mean = first[rows] / (1 - BETA1 ** n_steps[rows])[:, None]
        square = second[rows] / (1 - BETA2 ** n_steps[rows])[:, None]
        weights[rows] -= (LR * mean / (np.sqrt(square) + EPS)).astype(f32)

    return step


REFERENCES = {"sgd": sgd, "adagrad": adagrad, "rowwise_adagrad": rowwise_adagrad, "adam": adam}


def build(optimizer: str) -> Table:
    return make(
        dim=DIM, first_order=True, optimizer=optimizer, lr=LR, l2=L2, eps=EPS,
        beta1=BETA1, beta2=BETA2, initial_accumulator=START,
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_thousand_steps_equal_the_formula(optimizer: str) -> None:
    rng = np.random.default_rng(11)
    ids = rng.integers(0, 2**64, N_IDS, np.uint64)
    table = build(optimizer)
    weights = admit(table, ids).copy()
    step = REFERENCES[optimizer](weights)
    for _ in range(1_000):
        picked = rng.integers(0, N_IDS, 20)
        gradients = rng.normal(size=(20, DIM + 1)).astype(f32)
        rows = np.unique(picked)
        assert table.apply(ids[picked], gradients) == len(rows)
        sums = np.zeros_like(weights)
        np.add.at(sums, picked, gradients)  # in batch order
        step(rows, sums[rows] + f32(L2) * weights[rows])
    assert np.abs(weights).max() > 0.1
    np.testing.assert_allclose(table.lookup(ids), weights, rtol=2e-4, atol=2e-5)


def test_sum_of_equal_ids_is_taken_in_batch_order_before_the_step() -> None:
    table = make(dim=1, init_scale=0.0, optimizer="sgd", lr=1.0)
    admit(table, ids_of(1))
    # In float32, (1e8 + -1e8) + 1 is 1 while 1e8 + (-1e8 + 1) is 0.
    gradients = np.array([[1e8], [-1e8], [1]], f32)
    assert table.apply(ids_of(1, 1, 1), gradients) == 1
    assert table.lookup(ids_of(1)).item() == -1.0


def test_gradient_of_an_absent_id_is_dropped() -> None:
    table = make(min_count=2)
    admit(table, ids_of(1, 2, 1))
    before = table.lookup(ids_of(1))
    assert table.apply(ids_of(1, 2, 3), np.ones((3, 4), f32)) == 1
    assert not table.contains(ids_of(2, 3)).any()
    np.testing.assert_allclose(table.lookup(ids_of(1)), before - f32(0.1), rtol=1e-6)


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_order_of_distinct_ids_does_not_matter(optimizer: str) -> None:
    ids = np.arange(300, dtype=np.uint64)
    gradients = np.random.default_rng(5).normal(size=(300, DIM + 1)).astype(f32)
    forward, backward = build(optimizer), build(optimizer)
    admit(forward, ids)
    admit(backward, ids[::-1].copy())
    for _ in range(3):
        forward.apply(ids, gradients)
        backward.apply(ids[::-1].copy(), gradients[::-1].copy())
    assert forward.lookup(ids).tobytes() == backward.lookup(ids).tobytes()


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_freed_row_carries_nothing_over(optimizer: str) -> None:
    table, fresh = build(optimizer), build(optimizer)
    admit(table, ids_of(1))
    for _ in range(50):
        table.apply(ids_of(1), np.full((1, DIM + 1), 3, f32))
    table.erase(ids_of(1))
    for each in (table, fresh):
        admit(each, ids_of(2), now_s=9)
        each.apply(ids_of(2), np.ones((1, DIM + 1), f32))
    assert table.statistics()["rows"] == 1
    assert table.lookup(ids_of(2)).tobytes() == fresh.lookup(ids_of(2)).tobytes()
