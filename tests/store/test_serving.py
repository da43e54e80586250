"""Serving tables of every dtype: what they keep of a row, what they refuse, what they weigh."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_store import ServingTable, StoreError
from tests.store.helpers import ids_of

F32 = npt.NDArray[np.float32]

DTYPES = ("float32", "float16", "int8")
WIDTHS = st.integers(1, 70)


def kept_by(dtype: str, rows: F32) -> F32:
    """What the table answers after these rows were put in, each under its own number."""
    table = ServingTable(width=rows.shape[1], initial_rows=0, dtype=dtype)
    keys = np.arange(len(rows), dtype=np.uint64)
    table.upsert(keys, rows)
    values, found = table.lookup(keys)
    assert found.all()
    return values


@given(st.integers(0, 2**32), WIDTHS, st.floats(-40, 40))
def test_float16_rows_are_numpys_float16(seed: int, width: int, exponent: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(20, width)) * 2.0**exponent
    rows = np.clip(rows, -65504, 65504).astype(np.float32)
    np.testing.assert_array_equal(
        kept_by("float16", rows), rows.astype(np.float16).astype(np.float32)
    )


@given(st.integers(0, 2**32), WIDTHS, st.floats(-95, 120))
def test_int8_rows_are_within_half_a_step(seed: int, width: int, exponent: float) -> None:
    rows = (np.random.default_rng(seed).normal(size=(20, width)) * 2.0**exponent).astype(np.float32)
    rows[:, 0] = 0
    kept = kept_by("int8", rows)
    bound = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True) / 254 * (1 + 2**-14)
    assert (np.abs(kept.astype(np.float64) - rows) <= np.maximum(bound, 2.0**-100)).all()
    assert not kept[:, 0].any()


@given(st.integers(0, 2**32), WIDTHS)
def test_float32_rows_are_kept_to_the_bit(seed: int, width: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 2**32, (20, width), np.uint32).view(np.float32)
    np.testing.assert_array_equal(kept_by("float32", rows).view(np.uint32), rows.view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_change_leave_and_come_back(dtype: str) -> None:
    table = ServingTable(width=5, initial_rows=3, dtype=dtype)
    keys = np.arange(9_000, dtype=np.uint64) * np.uint64(2**60 + 1)
    rows = np.repeat(np.arange(9_000, dtype=np.float32) % 128, 5).reshape(-1, 5)
    table.upsert(keys, rows)
    assert table.remove(keys[::3]) == 3_000
    table.upsert(keys[::6], rows[::6] + 0.5)
    values, found = table.lookup(keys)
    is_back, is_gone = np.arange(9_000) % 6 == 0, np.arange(9_000) % 6 == 3
    np.testing.assert_allclose(values[is_back], rows[is_back] + 0.5, atol=0.26)
    assert not values[is_gone].any()
    np.testing.assert_allclose(values[~is_back & ~is_gone], rows[~is_back & ~is_gone], rtol=1e-6)
    np.testing.assert_array_equal(found, ~is_gone)
    assert table.dtype == dtype
    assert len(table) == 7_500


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", 65_520, "row of id 9: column 1 is 65520.* float16 .*at most 65504"),
        ("float16", -np.inf, "id 9: column 1 is -inf"),
        ("float16", np.nan, "id 9: column 1 is -?nan"),
        ("int8", np.inf, "id 9: column 1 is inf.* int8 .*below 3e38"),
        ("int8", np.nan, "id 9: column 1 is -?nan"),
        ("int8", 3.4e38, "id 9: column 1"),
    ],
)
def test_value_that_does_not_fit_is_refused_and_nothing_changes(
    dtype: str, value: float, message: str
) -> None:
    table = ServingTable(width=2, initial_rows=0, dtype=dtype)
    table.upsert(ids_of(9), np.array([[3, 3]], np.float32))
    with pytest.raises(StoreError, match=message):
        table.upsert(ids_of(8, 9), np.array([[1, 1], [1, value]], np.float32))
    assert table.keys().tolist() == [9]
    np.testing.assert_allclose(table.lookup(ids_of(9))[0], [[3, 3]])


def test_largest_values_that_fit_are_kept() -> None:
    np.testing.assert_array_equal(
        kept_by("float16", np.array([[65_519, -65_504]], np.float32)), [[65_504, -65_504]]
    )
    np.testing.assert_allclose(
        kept_by("int8", np.array([[2.9e38, 0]], np.float32)), [[2.9e38, 0]], rtol=1e-6
    )


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(
        StoreError, match="dtype is 'bfloat16'; it must be float32, float16 or int8"
    ):
        ServingTable(width=4, initial_rows=0, dtype="bfloat16")


@pytest.mark.parametrize(("width", "n_bytes"), [(16, (64, 32, 20)), (17, (68, 34, 21))])
def test_statistics_say_what_rows_weigh(width: int, n_bytes: tuple[int, int, int]) -> None:
    n = 400_000
    keys = np.arange(n, dtype=np.uint64)
    for dtype, row_bytes in zip(DTYPES, n_bytes, strict=True):
        table = ServingTable(width=width, initial_rows=n, dtype=dtype)
        table.upsert(keys, np.zeros((n, width), np.float32))
        statistics = table.statistics()
        assert statistics["rows"] == len(table) == n
        assert statistics["row_bytes"] == row_bytes
        assert statistics["bytes"] == table.nbytes
        # Rows with at most a quarter of gaps and a slab to spare, and a fifth of a line for a key.
        assert row_bytes * n <= table.nbytes - statistics["index_bytes"]
        assert table.nbytes < n * (row_bytes * 4 / 3 + 20) + 2**22
        assert n <= statistics["capacity"] <= n + 131_072
