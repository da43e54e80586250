"""Bags of rows: one pooled vector per bag."""

from typing import Literal

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Mode = Literal["sum", "mean"]


def pool(values: F32, offsets: I64, mode: Mode) -> F32:
    """Add up, or average, the rows of every bag; an empty bag reads zeros.

    Args:
        values: `float32[m, w]`, the bags' rows one bag after the other.
        offsets: `int64[n + 1]`, bag i is `values[offsets[i]:offsets[i + 1]]`; starts at 0, never
            falls, ends at m.
        mode: "sum" or "mean".

    Returns:
        `float32[n, w]`.

    Raises:
        TypeError: A dtype is another one.
        ValueError: A shape, an offset or the mode does not fit.

    Example:
        >>> rows = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
        >>> pool(rows, np.array([0, 2, 2, 3]), "mean").tolist()
        [[2.0, 3.0], [0.0, 0.0], [5.0, 6.0]]
    """
    lengths = _checked_lengths(values, offsets, mode)
    if values.shape[0] != offsets[-1]:
        raise ValueError(f"offsets end at {offsets[-1]}, but there are {values.shape[0]} values")
    pooled = np.zeros((len(lengths), values.shape[1]), np.float32)
    filled = lengths > 0
    if filled.any():
        # reduceat adds what lies between two starts, which for filled bags is the bag.
        pooled[filled] = np.add.reduceat(values, offsets[:-1][filled], axis=0)
    if mode == "mean":
        pooled /= np.maximum(lengths, 1).astype(np.float32)[:, None]
    return pooled


def _checked_lengths(values: F32, offsets: I64, mode: str) -> I64:
    """Refuse what does not fit; return every bag's length, `int64[n]`."""
    if mode not in ("sum", "mean"):
        raise ValueError(f"mode is {mode!r}; it must be 'sum' or 'mean'")
    if values.dtype != np.float32 or values.ndim != 2:
        raise TypeError(f"values must be float32[., w], not {values.dtype} of shape {values.shape}")
    if offsets.dtype != np.int64 or offsets.ndim != 1 or offsets.size == 0:
        raise TypeError(
            f"offsets must be int64[n + 1], not {offsets.dtype} of shape {offsets.shape}"
        )
    lengths = np.diff(offsets)
    if offsets[0] != 0 or (lengths < 0).any():
        raise ValueError("offsets must start at 0 and never fall")
    return lengths
