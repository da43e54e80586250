"""Pooling against one bag at a time."""

import numpy as np
import pytest

from embedding_store.pooling import Mode, pool


def random_bags(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, 30) * rng.integers(0, 2, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.normal(size=(offsets[-1], 3)).astype(np.float32), offsets


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("seed", range(5))
def test_every_bag_is_pooled_on_its_own(mode: Mode, seed: int) -> None:
    values, offsets = random_bags(seed)
    pooled = pool(values, offsets, mode)
    assert pooled.dtype == np.float32
    assert pooled.shape == (30, 3)
    for bag, row in enumerate(pooled):
        rows = values[offsets[bag] : offsets[bag + 1]]
        expected = rows.sum(axis=0) / (max(len(rows), 1) if mode == "mean" else 1)
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6)


def test_nothing_at_all_and_only_empty_bags() -> None:
    none = np.empty((0, 3), np.float32)
    assert pool(none, np.array([0]), "sum").shape == (0, 3)
    assert pool(none, np.zeros(4, np.int64), "mean").tolist() == [[0, 0, 0]] * 3


def test_what_does_not_fit_is_refused() -> None:
    rows, offsets = np.ones((2, 3), np.float32), np.array([0, 2])
    with pytest.raises(ValueError, match="'max'"):
        pool(rows, offsets, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never fall"):
        pool(rows, np.array([0, 2, 1]), "sum")
    with pytest.raises(ValueError, match="start at 0"):
        pool(rows, np.array([1, 2]), "sum")
    with pytest.raises(ValueError, match="end at 3"):
        pool(rows, np.array([0, 3]), "sum")
    with pytest.raises(TypeError, match="float64"):
        pool(np.ones((2, 3)), offsets, "sum")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int32"):
        pool(rows, offsets.astype(np.int32), "sum")
