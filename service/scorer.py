"""Encoded rows -> predictions: one lookup per table, pooling, the dense net."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from embedding_store.pooling import pool
from freshrank.features import Encoded, FeatureEncoder
from freshrank.settings import Settings
from service.model import Current, Model, Reading

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

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


class Scorer:
    """Scores the rows of one request. Immutable, safe for threads."""

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        self._slots = encoder.slots
        self._is_probability = np.array([task.loss == "logloss" for task in settings.tasks])
        self._slots_of_table: dict[str, list[str]] = {}
        for slot in encoder.slots:
            self._slots_of_table.setdefault(slot.table, []).append(slot.name)

    def score(
        self,
        model: Model,
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
        ids: dict[str, U64] = {}
        place: dict[str, slice] = {}  # of a slot's ids among those of its table
        for table, names in self._slots_of_table.items():
            ids[table] = np.concatenate([encoded.slots[name].ids for name in names])
            ends = np.cumsum([len(encoded.slots[name].ids) for name in names]).tolist()
            place |= zip(names, map(slice, [0, *ends], ends), strict=False)
        reading = model.read(ids)
        rows = self._pooled(encoded, reading, place)
        looked_up_s = time.perf_counter()
        z, n_scored = self._forward(reading.current, rows, encoded.dense, is_late)
        # Extreme features may overflow float32; JSON has no word for infinity.
        z[~np.isfinite(z)] = np.nan
        return Scores(
            predictions=np.where(self._is_probability, sigmoid(z), z),
            n_scored=n_scored,
            is_known=self._present(encoded, reading, place, ITEM_SLOT),
            is_user_known=bool(self._present(encoded, reading, place, USER_SLOT).all()),
            current=reading.current,
            lookup_s=looked_up_s - start_s,
            forward_s=time.perf_counter() - looked_up_s,
        )

    def _pooled(self, encoded: Encoded, reading: Reading, place: dict[str, slice]) -> F32:
        width = next(iter(reading.rows.values())).shape[1]
        rows = np.empty((encoded.n_rows, len(self._slots), width), np.float32)
        for index, slot in enumerate(self._slots):
            mode: Literal["sum", "mean"] = "mean" if slot.pooling == "mean" else "sum"
            own = reading.rows[slot.table][place[slot.name]]
            rows[:, index] = pool(own, encoded.slots[slot.name].offsets, mode)
        return rows  # [B, S, W]

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

    def _present(
        self, encoded: Encoded, reading: Reading, place: dict[str, slice], name: str
    ) -> npt.NDArray[np.bool_]:
        """Whether each row's id of the slot has a row; True without such a slot."""
        if name not in place:
            return np.ones(encoded.n_rows, np.bool_)
        table = next(slot.table for slot in self._slots if slot.name == name)
        present: npt.NDArray[np.bool_] = reading.present[table][place[name]] != 0
        return present


def sigmoid(z: F64) -> F64:
    """Log odds -> probability, without overflow.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0])).tolist()
        [0.5, 0.0]
    """
    e = np.exp(-np.abs(z))
    probability: F64 = np.where(z >= 0, 1 / (1 + e), e / (1 + e))
    return probability
