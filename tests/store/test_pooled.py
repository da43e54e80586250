"""Pooled lookups and their gradients against one bag at a time, to the bit."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_store import ServingTable, StoreError, Table
from tests.store.helpers import admit, ids_of, make
from tests.store.reference_pooling import first_of, pool, unpool

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

MODES = st.sampled_from(["sum", "mean", "sqrtn"])
# Two thirds of the ids below have rows; some bags are empty, some longer than a group of keys.
KNOWN = np.arange(2**64 - 20, 2**64, dtype=np.uint64)
LENGTHS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 150)), max_size=30)


def bags_of(lengths: list[int], seed: int) -> tuple[U64, I64]:
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    return rng.integers(2**64 - 30, 2**64, offsets[-1], np.uint64), offsets


def known_table(**changes: Any) -> Table:
    table = make(dim=5, **changes)
    admit(table, KNOWN)
    return table


@given(LENGTHS, st.integers(0, 2**32), MODES, st.integers(0, 4))
def test_every_bag_is_pooled_on_its_own(
    lengths: list[int], seed: int, mode: str, first_n: int
) -> None:
    table = known_table()
    ids, offsets = bags_of(lengths, seed)
    used, ends = first_of(ids, offsets, first_n)
    expected = pool(table.lookup(used), ends, mode)
    np.testing.assert_array_equal(table.lookup_pooled(ids, offsets, mode, first_n), expected)
    assert table.statistics()["pending"] == 0


@given(
    LENGTHS, st.integers(0, 2**32), MODES, st.integers(0, 4),
    st.sampled_from(["float32", "float16", "int8"]),
)  # fmt: skip
def test_serving_table_pools_what_it_looks_up(
    lengths: list[int], seed: int, mode: str, first_n: int, dtype: str
) -> None:
    table = ServingTable(width=5, initial_rows=0, dtype=dtype)
    table.upsert(KNOWN, np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32))
    ids, offsets = bags_of(lengths, seed)
    used, ends = first_of(ids, offsets, first_n)
    rows, found = table.lookup(used)
    pooled, n_found = table.lookup_pooled(ids, offsets, mode, first_n)
    np.testing.assert_array_equal(pooled, pool(rows, ends, mode))
    bags = pairwise(ends)
    assert n_found.tolist() == [int(found[start:end].sum()) for start, end in bags]


@given(LENGTHS, st.integers(0, 2**32), MODES, st.integers(0, 4))
def test_gradients_go_back_to_every_id_of_the_bag(
    lengths: list[int], seed: int, mode: str, first_n: int
) -> None:
    pooled, plain = known_table(), known_table()
    ids, offsets = bags_of(lengths, seed)
    gradients = np.random.default_rng(seed).normal(size=(len(lengths), 5)).astype(np.float32)
    used, ends = first_of(ids, offsets, first_n)
    n_stepped = pooled.apply_pooled(ids, offsets, gradients, mode, first_n)
    assert n_stepped == plain.apply(used, unpool(gradients, ends, mode))
    assert pooled.snapshot() == plain.snapshot()


def test_first_n_limits_what_a_read_counts_and_learns() -> None:
    table = make(lr=1.0, init_scale=0.0)
    out = np.empty((2, 1, 4), np.float32)
    offsets = np.array([0, 3, 4])
    slot = (0, ids_of(1, 2, 3, 3), offsets, np.ones(2, np.bool_), "mean", 2)
    table.read([slot], ids_of(0, 0), 1, out)
    assert table.keys().tolist() == [1, 2, 3]  # 3 in the second bag only
    table.learn(np.full((2, 1, 4), 4, np.float32))
    assert table.lookup(ids_of(1, 2, 3))[:, 0].tolist() == [-2, -2, -4]


def test_nothing_at_all_and_only_empty_bags() -> None:
    table = known_table()
    none = ids_of()
    assert table.lookup_pooled(none, np.zeros(1, np.int64), "sum").shape == (0, 5)
    assert table.lookup_pooled(none, np.zeros(4, np.int64), "sqrtn").tolist() == [[0] * 5] * 3
    assert table.apply_pooled(none, np.zeros(4, np.int64), np.ones((3, 5), np.float32), "mean") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "max"}, "mode is 'max'; it must be sum, mean or sqrtn"),
        ({"first_n": -1}, "first_n is -1"),
        ({"offsets": np.array([0, 2, 1, 2])}, "never fall"),
        ({"offsets": np.array([1, 2])}, "start at 0"),
        ({"offsets": np.array([0, 3])}, "end at the number of ids, 2"),
        ({"offsets": np.empty(0, np.int64)}, "start at 0"),
        ({"offsets": np.array([0, 2], np.int32)}, "offsets must have dtype int64"),
        ({"ids": np.array([1, 2])}, "ids must have dtype uint64"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"ids": ids_of(1, 2), "offsets": np.array([0, 2]), "mode": "sum", **changes}
    serving = ServingTable(width=5, initial_rows=0)
    for lookup in (known_table().lookup_pooled, serving.lookup_pooled):
        with pytest.raises((StoreError, TypeError), match=message):
            lookup(**arguments)


def test_gradients_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[1, 5\], not \[2, 5\]"):
        known_table().apply_pooled(
            ids_of(1, 2), np.array([0, 2]), np.ones((2, 5), np.float32), "sum"
        )
