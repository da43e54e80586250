"""Pooling one bag at a time, in float32 and in the order of the ids, as the core adds."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def _divisor(mode: str, n: int) -> np.float32:
    return np.float32({"sum": 1.0, "mean": n, "sqrtn": np.sqrt(np.float32(n))}[mode])


def pool(values: F32, offsets: I64, mode: str) -> F32:
    """`float32[n, w]` of the bags' rows, `float32[m, w]`."""
    pooled = np.zeros((len(offsets) - 1, values.shape[1]), np.float32)
    for bag, (start, end) in enumerate(pairwise(offsets)):
        for row in values[start:end]:
            pooled[bag] += row
        if end > start:
            pooled[bag] /= _divisor(mode, end - start)
    return pooled


def unpool(gradients: F32, offsets: I64, mode: str) -> F32:
    """The gradient of every bag's row, `float32[m, w]`, from those of the bags."""
    back = np.empty((offsets[-1], gradients.shape[1]), np.float32)
    for bag, (start, end) in enumerate(pairwise(offsets)):
        if end > start:
            back[start:end] = gradients[bag] / _divisor(mode, end - start)
    return back


def first_of(
    ids: npt.NDArray[np.uint64], offsets: I64, first_n: int
) -> tuple[npt.NDArray[np.uint64], I64]:
    """The bags without their ids from number `first_n` on; 0 keeps all."""
    bags = [ids[start:end][: first_n or None].tolist() for start, end in pairwise(offsets)]
    kept = np.array([one for bag in bags for one in bag], np.uint64)
    return kept, np.cumsum([0, *map(len, bags)])
