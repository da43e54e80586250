"""Encoded rows -> predictions: one lookup per table, pooling, the dense net."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from freshrank.features import Encoded, FeatureEncoder
from freshrank.settings import Settings
from service.model import Bags, Current, Reading

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Rows per run of the net when there is a deadline: about 0.1 ms between two looks at the clock.
CHUNK_ROWS: Final = 256

USER_SLOT: Final = "user_id"
ITEM_SLOT: Final = "item_id"


@dataclass(frozen=True, slots=True)
class Scores:
    """Predictions of n rows.

    Attributes:
        predictions: `float64[n, T]`: a probability for log loss, the value for Huber; NaN in rows
            that the deadline left out, and where the net's answer is not a number.
        n_scored: Rows that the deadline let through, from the first on.
        is_known: `bool[n]`: the item has a row.
        is_user_known: The user has a row.
        current: The version that answered.
        lookup_s: Seconds spent on rows.
        forward_s: Seconds spent in the dense net.
    """

    predictions: F64
    n_scored: int
    is_known: npt.NDArray[np.bool_]
    is_user_known: bool
    current: Current
    lookup_s: float
    forward_s: float


class Version(Protocol):
    """What can be read from: a model, or some rows of one."""

    def read(self, bags: Bags) -> Reading:
        """As `Model.read`."""


class Scorer:
    """Scores the rows of one request. Immutable, safe for threads."""

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        self._slots = encoder.slots
        self._is_probability = np.array([task.loss == "logloss" for task in settings.tasks])

    def score(
        self,
        model: Version,
        encoded: Encoded,
        is_late: Callable[[], bool] | None = None,
    ) -> Scores:
        """Predictions of all rows from one version.

        Args:
            model: The parameters.
            encoded: The rows.
            is_late: Asked between pieces; when it says True the rest stays NaN.
        """
        start_s = time.perf_counter()
        columns = [(slot, encoded.slots[slot.name]) for slot in self._slots]
        reading = model.read(
            {slot.name: (slot.table, own.ids, own.offsets, slot.pooling) for slot, own in columns}
        )
        rows = np.stack([reading.rows[slot.name] for slot in self._slots], axis=1)  # [B, S, W]
        looked_up_s = time.perf_counter()
        z, n_scored = self._forward(reading.current, rows, encoded.dense, is_late)
        # Extreme features may overflow float32; JSON has no word for infinity.
        z[~np.isfinite(z)] = np.nan
        return Scores(
            predictions=np.where(self._is_probability, sigmoid(z), z),
            n_scored=n_scored,
            is_known=_has_row(reading, ITEM_SLOT, encoded.n_rows),
            is_user_known=bool(_has_row(reading, USER_SLOT, encoded.n_rows).all()),
            current=reading.current,
            lookup_s=looked_up_s - start_s,
            forward_s=time.perf_counter() - looked_up_s,
        )

    def _forward(
        self, current: Current, rows: F32, dense: F32, is_late: Callable[[], bool] | None
    ) -> tuple[F64, int]:
        if is_late is None:
            return current.net.predict(rows, dense).astype(np.float64), len(rows)
        z = np.full((len(rows), len(self._is_probability)), np.nan)
        for start in range(0, len(rows), CHUNK_ROWS):
            if is_late():
                return z, start
            chunk = slice(start, start + CHUNK_ROWS)
            z[chunk] = current.net.predict(rows[chunk], dense[chunk])
        return z, len(rows)  # [B, T]


def _has_row(reading: Reading, slot: str, n_rows: int) -> npt.NDArray[np.bool_]:
    """Whether each row's id of the slot has a row; True without such a slot."""
    n_found = reading.n_found.get(slot)
    return np.ones(n_rows, np.bool_) if n_found is None else n_found > 0


def sigmoid(z: F64) -> F64:
    """Log odds -> probability, without overflow.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0])).tolist()
        [0.5, 0.0]
    """
    e = np.exp(-np.abs(z))
    probability: F64 = np.where(z >= 0, 1 / (1 + e), e / (1 + e))
    return probability
