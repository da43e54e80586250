"""Every optimizer against its formula in numpy, 1,000 steps with duplicates in each batch."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import Optimizer, Table
from embedding_store.optimizer import Kind
from tests.store.helpers import F32, admit, ids_of, make
from tests.store.reference_optimizers import ReferenceSlice

N_IDS, DIM, LR, START_S = 50, 6, 0.05, 1_000
WEEK_S = 7 * 86_400

f32 = np.float32

SGD = Optimizer("sgd", lr=LR, l2=0.01)
ADAGRAD = Optimizer("adagrad", lr=LR, l2=0.01, eps=1e-6)
ROWWISE = Optimizer("rowwise_adagrad", lr=LR, l2=0.01)
ADAM = Optimizer("adam", lr=LR, l2=0.01, beta2=0.99, eps=1e-6)
FTRL = Optimizer("ftrl", lr=LR, l1=0.1, l2=0.01)
FADING = Optimizer("adagrad", lr=LR, accumulator_half_life_s=3_600, weight_decay=0.1)
FADING_ROWWISE = Optimizer("rowwise_adagrad", lr=LR, accumulator_half_life_s=WEEK_S)
LIMITED = Optimizer("adam", lr=LR, clip_value=1.5, clip_norm=2.0, weight_decay=0.01)

# Of the row, or of the vector and of the first-order column; alone: there is no such column.
CASES: dict[str, tuple[Optimizer, Optimizer | None]] = {
    "sgd": (SGD, None),
    "adagrad": (ADAGRAD, None),
    "rowwise_adagrad": (ROWWISE, None),
    "adam": (ADAM, None),
    "ftrl": (FTRL, None),
    "fading adagrad": (FADING, None),
    "fading rowwise_adagrad": (FADING_ROWWISE, None),
    "adam within limits": (LIMITED, None),
    "adagrad beside ftrl": (ADAGRAD, FTRL),
    "rowwise_adagrad beside adam within limits": (FADING_ROWWISE, LIMITED),
    "ftrl beside fading adagrad": (FTRL, FADING),
    "adam beside sgd": (ADAM, SGD),
    "rowwise_adagrad alone": (ROWWISE, None),
    "ftrl alone": (FTRL, None),
}


def build(name: str, dim: int = DIM) -> Table:
    optimizer, first_order = CASES[name]
    return build_with(optimizer, first_order, dim, has_column=not name.endswith("alone"))


def build_with(
    optimizer: Optimizer, first_order: Optimizer | None, dim: int = DIM, *, has_column: bool = True
) -> Table:
    return Table(
        dim=dim, first_order=has_column, optimizer=optimizer, first_order_optimizer=first_order,
        init_scale=0.05, seed=7, slot=3, min_count=1, probability=1.0, ttl_s=0, initial_rows=0,
    )  # fmt: skip


def references_of(table: Table, weights: F32) -> list[tuple[slice, ReferenceSlice]]:
    """Which columns of a row are moved by what."""
    first_order, optimizer = table.first_order_optimizer, table.optimizer
    is_split = first_order is not None or optimizer.kind == "rowwise_adagrad"
    if not is_split or table.dim == table.width:
        return [(slice(None), ReferenceSlice(optimizer, weights))]
    vector, column = slice(table.dim), slice(table.dim, None)
    last = first_order or optimizer
    kind = last.kind.removeprefix("rowwise_")  # in one column the two are one
    return [
        (vector, ReferenceSlice(optimizer, weights[:, vector])),
        (column, ReferenceSlice(last, weights[:, column], kind)),
    ]


def train(table: Table, seed: int, n_steps: int) -> tuple[F32, F32]:
    """Random batches through the table and the reference; the weights of both."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2**64, N_IDS, np.uint64)
    weights = admit(table, ids, START_S).copy()
    references = references_of(table, weights)
    now_s = START_S
    for _ in range(n_steps):
        now_s += int(rng.integers(0, 1_000))
        table.expire(now_s, 0)  # which tells the time
        picked = rng.integers(0, N_IDS, 20)
        gradients = rng.normal(size=(20, table.width)).astype(f32)
        rows = np.unique(picked)
        assert table.apply(ids[picked], gradients) == len(rows)
        sums = np.zeros_like(weights)
        np.add.at(sums, picked, gradients)  # in batch order
        for columns, reference in references:
            reference.step(rows, sums[rows, columns], now_s)
    return table.lookup(ids), weights


@pytest.mark.parametrize("name", CASES)
def test_thousand_steps_equal_the_formula_bit_for_bit(name: str) -> None:
    found, expected = train(build(name), 11, 1_000)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(found, expected)


@st.composite
def optimizers(draw: st.DrawFn) -> Optimizer:
    """Any optimizer that makes sense, limits and decay included."""
    kind: Kind = draw(st.sampled_from(get_args(Kind)))
    is_ftrl, fades = kind == "ftrl", kind.endswith("adagrad")
    small, limit = st.floats(0, 0.5), st.just(0.0) | st.floats(0.1, 5)
    return Optimizer(
        kind,
        lr=draw(st.floats(0.001, 0.5)),
        l1=draw(small) if is_ftrl else 0.0,
        l2=draw(small),
        weight_decay=0.0 if is_ftrl else draw(small),
        eps=draw(st.floats(1e-8, 0.1)),
        beta=draw(st.floats(0.1, 2)),
        beta1=draw(st.floats(0, 0.99)),
        beta2=draw(st.floats(0, 0.999)),
        initial_accumulator=draw(small),
        accumulator_half_life_s=draw(st.integers(0, 10 * WEEK_S)) if fades else 0,
        clip_norm=draw(limit),
        clip_value=draw(limit),
    )


@settings(max_examples=60)
@given(
    optimizers(),
    st.booleans(),
    st.none() | optimizers(),
    st.sampled_from([1, 4, 7, 16, 19]),
    st.integers(0, 2**32),
)
def test_any_parameters_equal_the_formula_bit_for_bit(
    optimizer: Optimizer, has_column: bool, first_order: Optimizer | None, dim: int, seed: int
) -> None:
    first_order = first_order if has_column else None
    table = build_with(optimizer, first_order, dim, has_column=has_column)
    found, expected = train(table, seed, 25)
    np.testing.assert_array_equal(found, expected)


def test_ftrl_is_the_papers() -> None:
    """McMahan et al. 2013, Algorithm 1, per coordinate in float64."""
    alpha, beta, l1, l2 = 0.1, 1.0, 0.3, 0.05
    table = make("ftrl", dim=4, lr=alpha, beta=beta, l1=l1, l2=l2, init_scale=0.0)
    admit(table, ids_of(1))
    z, n, w = np.zeros(4), np.zeros(4), np.zeros(4)
    rng = np.random.default_rng(3)
    n_zeros = 0
    for _ in range(1_000):
        gradient = rng.normal([[0.0, 0.1, -0.2, 0.02]], 0.2).astype(f32)
        table.apply(ids_of(1), gradient)
        g = gradient[0].astype(np.float64)
        sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / alpha
        z += g - sigma * w
        n += g * g
        w = -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)
        w[np.abs(z) <= l1] = 0
        np.testing.assert_allclose(table.lookup(ids_of(1))[0], w, rtol=1e-4, atol=1e-5)
        n_zeros += int((w == 0).sum())
    assert n_zeros > 100
    assert np.abs(w).max() > 0.1


@pytest.mark.parametrize("l1", [0.0, 0.5])
def test_ftrl_starts_from_the_rows_own_start(l1: float) -> None:
    table = make("ftrl", l1=l1, l2=0.1)
    born = admit(table, ids_of(1))
    assert born.all()
    table.apply(ids_of(1), np.zeros((1, 4), f32))
    np.testing.assert_allclose(table.lookup(ids_of(1)), born, rtol=1e-6)


def accumulator_of(table: Table) -> float:
    """Of a table of one row with one column."""
    return float(table.rows_from(0, 1)[2][0, 1])


def test_endless_stream_freezes_nothing_that_fades() -> None:
    frozen, fading = (
        make("adagrad", dim=1, init_scale=0.0, accumulator_half_life_s=half_life_s)
        for half_life_s in (0, 60)
    )
    moves = []
    for table in (frozen, fading):
        admit(table, ids_of(1))
        for now_s in range(5_000):
            table.expire(now_s, 0)
            before = table.lookup(ids_of(1)).item()
            table.apply(ids_of(1), np.ones((1, 1), f32))
        moves.append(before - table.lookup(ids_of(1)).item())
    # The sum of 2^(-t / 60) over all steps past, and under it the learning rate.
    settled = 0.1 * np.sqrt(1 - 2 ** (-1 / 60))
    np.testing.assert_allclose(moves, [0.1 / np.sqrt(5_000), settled], rtol=1e-2)


def test_a_busy_row_fades_as_an_idle_one_whatever_the_half_life() -> None:
    """In float32 the share that fades in 3 of 40 million seconds rounds to nothing."""
    half_life_s, end_s = 40_000_000, 400_000
    busy, idle = (
        make("adagrad", dim=1, accumulator_half_life_s=half_life_s, initial_accumulator=1.0)
        for _ in range(2)
    )
    for table in (busy, idle):
        admit(table, ids_of(1), now_s=1)
        table.apply(ids_of(1), np.full((1, 1), 1_000, f32))
    zero = np.zeros((1, 1), f32)
    for now_s in range(4, end_s, 3):
        busy.expire(now_s, 0)
        busy.apply(ids_of(1), zero)
    idle.expire(end_s, 0)
    idle.apply(ids_of(1), zero)
    expected = 1 + 1e6 * 2 ** (-end_s / half_life_s)
    np.testing.assert_allclose(accumulator_of(idle), expected, rtol=1e-6)
    np.testing.assert_allclose(accumulator_of(busy), expected, rtol=1e-3)


def test_a_row_idle_for_ages_steps_like_a_newborn_one() -> None:
    table = make("adagrad", accumulator_half_life_s=60, initial_accumulator=0.5)
    admit(table, ids_of(1), now_s=100)
    table.apply(ids_of(1), np.full((1, 4), 30, f32))
    before = table.lookup(ids_of(1))
    admit(table, ids_of(1), now_s=100_000)
    table.apply(ids_of(1), np.ones((1, 4), f32))
    moved = before - table.lookup(ids_of(1))
    np.testing.assert_allclose(moved, np.full((1, 4), 0.1 / np.sqrt(1.5)), rtol=1e-5)


def test_limits_hold_for_the_sum_of_an_id_and_apart_for_a_slice_of_its_own() -> None:
    whole = make(dim=2, first_order=True, lr=1.0, init_scale=0.0, clip_norm=1.0)
    apart = make(
        dim=2, first_order=True, lr=1.0, init_scale=0.0, clip_norm=1.0,
        first_order_optimizer=Optimizer("sgd", lr=1.0, clip_value=2.0),
    )  # fmt: skip
    gradients = np.array([[1, 2, 6], [2, 2, 6]], f32)  # in sum 3, 4, 12: of length 13
    for table in (whole, apart):
        admit(table, ids_of(1))
        table.apply(ids_of(1, 1), gradients)
    np.testing.assert_allclose(whole.lookup(ids_of(1)), [[-3 / 13, -4 / 13, -12 / 13]], rtol=1e-6)
    np.testing.assert_allclose(apart.lookup(ids_of(1)), [[-0.6, -0.8, -2]], rtol=1e-6)


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


@pytest.mark.parametrize("name", CASES)
def test_order_of_distinct_ids_does_not_matter(name: str) -> None:
    ids = np.arange(300, dtype=np.uint64)
    forward, backward = build(name), build(name)
    gradients = np.random.default_rng(5).normal(size=(300, forward.width)).astype(f32)
    admit(forward, ids)
    admit(backward, ids[::-1].copy())
    for _ in range(3):
        forward.apply(ids, gradients)
        backward.apply(ids[::-1].copy(), gradients[::-1].copy())
    assert forward.lookup(ids).tobytes() == backward.lookup(ids).tobytes()


@pytest.mark.parametrize("name", CASES)
def test_freed_row_carries_nothing_over(name: str) -> None:
    table, fresh = build(name), build(name)
    admit(table, ids_of(1))
    for _ in range(50):
        table.apply(ids_of(1), np.full((1, table.width), 3, f32))
    table.erase(ids_of(1))
    for each in (table, fresh):
        admit(each, ids_of(2), now_s=9)
        each.apply(ids_of(2), np.ones((1, each.width), f32))
    assert table.statistics()["rows"] == 1
    assert table.lookup(ids_of(2)).tobytes() == fresh.lookup(ids_of(2)).tobytes()
