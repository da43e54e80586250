"""The optimizers of FORMAT.md in numpy, in its order of float32 operations: results are bit-equal.

Shares no code with the core: rows are a matrix, one object moves the columns of one slice.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding_store import Optimizer
from tests.store.helpers import F32

I64 = npt.NDArray[np.int64]
f32 = np.float32


class ReferenceSlice:
    """One slice of every row.

    Args:
        optimizer: Of the slice.
        kind: Whose formula, if not its own.
        weights: `float32[n, columns]`, a view that steps write to.
    """

    def __init__(self, optimizer: Optimizer, weights: F32, kind: str = "") -> None:
        self.optimizer, self.w = optimizer, weights
        self.kind = kind or optimizer.kind
        n, n_columns = weights.shape
        n_accumulators = 1 if self.kind == "rowwise_adagrad" else n_columns
        self.start = f32(optimizer.initial_accumulator)
        self.a = np.full((n, n_accumulators), self.start, f32)
        self.m, self.v = np.zeros_like(weights), np.zeros_like(weights)
        self.n_steps = np.zeros(n, np.int64)
        self.aged_s = np.zeros(n, np.int64)
        self.lr, self.l2 = f32(optimizer.lr), f32(optimizer.l2)
        self.keep = f32(1 - optimizer.lr * optimizer.weight_decay)
        self.eps = f32(optimizer.eps)
        beyond = np.abs(weights) * self._ftrl_divisor(np.sqrt(self.a))
        limit = self.lr * f32(optimizer.l1)
        self.z = -np.sign(weights) * (beyond + limit)

    def step(self, rows: I64, gradients: F32, now_s: int) -> None:
        """Move distinct rows by the sums of their gradients, `float32[len(rows), columns]`."""
        g = self._clipped(gradients)
        if self.optimizer.accumulator_half_life_s > 0:
            self._age(rows, now_s)
        if self.kind != "ftrl":
            g = g + self.l2 * self.w[rows]
        getattr(self, "_" + self.kind)(rows, g)

    def _clipped(self, g: F32) -> F32:
        value, norm = self.optimizer.clip_value, self.optimizer.clip_norm
        if value > 0:
            g = np.clip(g, -f32(value), f32(value))
        if norm > 0:
            norms = np.sqrt(np.cumsum(g.astype(np.float64) ** 2, axis=1)[:, -1])
            limit = float(f32(norm))
            scale = np.where(norms > limit, limit / np.maximum(norms, limit), 1).astype(f32)
            g = g * scale[:, None]
        return g

    def _age(self, rows: I64, now_s: int) -> None:
        half_life_s = self.optimizer.accumulator_half_life_s
        elapsed_s = now_s - self.aged_s[rows]
        due = rows[elapsed_s >= max(1, half_life_s // 1024)]
        kept = [math.exp2(-((now_s - int(self.aged_s[row])) / half_life_s)) for row in due]
        self.a[due] = self.start + (self.a[due] - self.start) * np.array(kept, f32)[:, None]
        self.aged_s[due] = now_s

    def _sgd(self, rows: I64, g: F32) -> None:
        self.w[rows] = self.keep * self.w[rows] - self.lr * g

    def _adagrad(self, rows: I64, g: F32) -> None:
        self.a[rows] += g * g
        step = self.lr * g / (np.sqrt(self.a[rows]) + self.eps)
        self.w[rows] = self.keep * self.w[rows] - step

    def _rowwise_adagrad(self, rows: I64, g: F32) -> None:
        self.a[rows, 0] += sum_of_lanes(g * g) / f32(g.shape[1])
        scale = self.lr / (np.sqrt(self.a[rows]) + self.eps)
        self.w[rows] = self.keep * self.w[rows] - scale * g

    def _adam(self, rows: I64, g: F32) -> None:
        b1, b2 = f32(self.optimizer.beta1), f32(self.optimizer.beta2)
        self.n_steps[rows] += 1
        self.m[rows] = b1 * self.m[rows] + (1 - b1) * g
        self.v[rows] = b2 * self.v[rows] + (1 - b2) * g * g
        mean = self.m[rows] * self._unbias(b1, rows)
        square = self.v[rows] * self._unbias(b2, rows)
        step = self.lr * mean / (np.sqrt(square) + self.eps)
        self.w[rows] = self.keep * self.w[rows] - step

    def _unbias(self, beta: Any, rows: I64) -> F32:
        powers = [math.pow(float(beta), int(t)) for t in self.n_steps[rows]]
        return np.array([1 / (1 - power) for power in powers], f32)[:, None]

    def _ftrl(self, rows: I64, g: F32) -> None:
        before = np.sqrt(self.a[rows])
        self.a[rows] += g * g
        root = np.sqrt(self.a[rows])
        self.z[rows] += self.lr * g - (root - before) * self.w[rows]
        limit = self.lr * f32(self.optimizer.l1)
        beyond = np.maximum(np.abs(self.z[rows]) - limit, f32(0))
        self.w[rows] = np.copysign(beyond, -self.z[rows]) / self._ftrl_divisor(root)

    def _ftrl_divisor(self, root: F32) -> F32:
        divisor: F32 = (f32(self.optimizer.beta) + root) + self.lr * self.l2
        return divisor


def sum_of_lanes(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums of rows over four lanes, each from left to right: `[n, columns]` -> `[n]`."""
    n, n_columns = values.shape
    lanes = np.zeros((n, 4), values.dtype)
    for column in range(n_columns):
        lanes[:, column % 4] += values[:, column]
    sums: npt.NDArray[Any] = (lanes[:, 0] + lanes[:, 1]) + (lanes[:, 2] + lanes[:, 3])
    return sums
