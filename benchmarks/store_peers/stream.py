"""What every table of a comparison is fed: the same picks, batch after batch, from files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

BATCH: Final = 8_192
N_ROUNDS: Final = 7
ZIPF_EXPONENT: Final = 1.05


@dataclass(frozen=True)
class Stream:
    """Picks among `n_rows` rows; no two rounds share a batch, so no round warms another's caches.

    Args:
        numbers: Row numbers, `int64[N_ROUNDS * n_batches, BATCH]`, for tables that are told them.
        ids: The 64-bit ids of those rows, same shape.
        gradients: Of every batch, `float32[BATCH, dim]`.
    """

    n_rows: int
    dim: int
    n_batches: int
    numbers: I64
    ids: U64
    gradients: F32

    def write(self, folder: Path) -> None:
        """Leave it where a peer's process reads it: plain little-endian arrays."""
        self.numbers.tofile(folder / "numbers")
        self.ids.tofile(folder / "ids")
        self.gradients.tofile(folder / "gradients")


def make_stream(n_rows: int, dim: int, n_batches: int, *, is_zipf: bool = False) -> Stream:
    """Draw picks, uniform or by Zipf's law; popular rows lie anywhere in the table.

    Args:
        n_rows: Rows to pick from.
        dim: Floats of a gradient.
        n_batches: In each of the rounds.
        is_zipf: The row of rank r is picked in proportion to r ** -1.05, which leaves about half
            of a batch distinct.
    """
    rng = np.random.default_rng(n_rows + dim)
    shape = (N_ROUNDS * n_batches, BATCH)
    if is_zipf:
        bounds = np.cumsum(np.arange(1, n_rows + 1) ** -ZIPF_EXPONENT)
        ranks = np.searchsorted(bounds, rng.random(shape) * bounds[-1])
        numbers = rng.permutation(n_rows)[ranks]
    else:
        numbers = rng.integers(0, n_rows, shape)
    gradients = rng.normal(size=(BATCH, dim)).astype(np.float32)
    return Stream(n_rows, dim, n_batches, numbers, ids_of(numbers), gradients)


def ids_of(numbers: I64) -> U64:
    """The id of every row number: splitmix64's output function, so no two are equal."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
