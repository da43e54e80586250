"""Bags of rows: one pooled vector per bag, and its gradient back to every row of the bag."""

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
    lengths = _checked_lengths("values", values, offsets, mode)
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


def unpool(gradients: F32, offsets: I64, mode: Mode) -> F32:
    """Give every row of a bag the gradient that `pool` passes back to it.

    Args:
        gradients: `float32[n, w]`, one per bag.
        offsets: `int64[n + 1]`, as given to `pool`.
        mode: "sum" or "mean", as given to `pool`.

    Returns:
        `float32[m, w]`, m being `offsets[-1]`.

    Raises:
        TypeError: A dtype is another one.
        ValueError: A shape, an offset or the mode does not fit.

    Example:
        >>> unpool(np.array([[4.0]], np.float32), np.array([0, 2]), "mean").tolist()
        [[2.0], [2.0]]
    """
    lengths = _checked_lengths("gradients", gradients, offsets, mode)
    if gradients.shape[0] != len(lengths):
        raise ValueError(f"{gradients.shape[0]} gradients for {len(lengths)} bags")
    if mode == "mean":
        gradients = gradients / np.maximum(lengths, 1).astype(np.float32)[:, None]
    return np.repeat(gradients, lengths, axis=0)


def _checked_lengths(name: str, rows: F32, offsets: I64, mode: str) -> I64:
    """Refuse what does not fit; return every bag's length, `int64[n]`."""
    if mode not in ("sum", "mean"):
        raise ValueError(f"mode is {mode!r}; it must be 'sum' or 'mean'")
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise TypeError(f"{name} must be float32[., w], not {rows.dtype} of shape {rows.shape}")
    if offsets.dtype != np.int64 or offsets.ndim != 1 or offsets.size == 0:
        raise TypeError(
            f"offsets must be int64[n + 1], not {offsets.dtype} of shape {offsets.shape}"
        )
    lengths = np.diff(offsets)
    if offsets[0] != 0 or (lengths < 0).any():
        raise ValueError("offsets must start at 0 and never fall")
    return lengths
