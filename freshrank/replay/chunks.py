"""A stretch of a labelled table: what every model of a replay predicts and then learns."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freshrank.feature_types import TableValues

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """n rows of whole requests, in event time; T tasks in configuration order.

    Whoever predicts a chunk may not use a request's labels for any row of that request, nor for
    an earlier one.

    Attributes:
        values: Raw values: users and shared values per request, the rest per row.
        labels: `float32[n, T]`; 0 or 1 of a log-loss task. NaN where the weight is 0.
        weights: `float32[n, T]`; 0 where the row says nothing of the task.
        request_numbers: `int64[n]`, counting the requests of the whole replay from 0.
        ts_ms: `int64[n]`, event time of the row's request.
    """

    values: TableValues
    labels: F32
    weights: F32
    request_numbers: I64
    ts_ms: I64

    @property
    def n_rows(self) -> int:
        """Rows in it."""
        return len(self.ts_ms)
