"""The dense net: one onnxruntime session, checked before it serves."""

from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank.errors import SyncError
from freshrank.onnx_session import open_session

F32 = npt.NDArray[np.float32]

ROWS: Final = "rows"
DENSE: Final = "dense"
OUTPUT: Final = "z"


class DenseNet:
    """Pooled rows and dense values -> one logit (or value) per task.

    Args:
        onnx: The graph: `rows: float32[B, S, W]` and, when K > 0, `dense: float32[B, K]` ->
            `z: float32[B, T]`.
        shape: (S, W, K, T).

    Raises:
        SyncError: the graph cannot be opened, has other inputs or outputs, or is not finite on
            zeros (code `dense`).
    """

    def __init__(self, onnx: bytes, *, shape: tuple[int, int, int, int]) -> None:
        n_slots, width, n_dense, n_tasks = shape
        self._has_dense = n_dense > 0
        try:
            self._session = open_session(onnx)
            zeros = np.zeros((1, n_slots, width), np.float32)
            probe = self.predict(zeros, np.zeros((1, n_dense), np.float32))
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise SyncError(f"the dense net cannot be used: {error}", code="dense") from error
        if probe.shape != (1, n_tasks) or not np.isfinite(probe).all():
            raise SyncError(
                f"the dense net answers {probe.shape} on one row, expected {(1, n_tasks)}, finite",
                code="dense",
            )

    def predict(self, rows: F32, dense: F32) -> F32:
        """`float32[B, T]` for `rows: float32[B, S, W]` and `dense: float32[B, K]`."""
        inputs = {ROWS: rows, DENSE: dense} if self._has_dense else {ROWS: rows}
        z: F32 = self._session.run([OUTPUT], inputs)[0]
        return z
