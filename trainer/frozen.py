"""Scores with the parameters of the last synchronisation, as a service that synchronises seldom."""

from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch

from embedding_store import ServingTable
from freshrank.features import Encoded, FeatureEncoder
from trainer.learner import Learner, scores
from trainer.passes import Passes
from trainer.tables import pooled_rows

F32 = npt.NDArray[np.float32]


class FrozenModel:
    """A copy of a learner's parameters that follows it only when told.

    Tables are followed by their versions, as frames are: a refresh scans one number per row and
    copies what changed since the last. The learner's tombstones must not be trimmed in between.

    Args:
        learner: Copied as it is now, and at every `refresh`.
        encoder: Slots in model order.
        dtype: Of rows as a service keeps them.
    """

    def __init__(self, learner: Learner, encoder: FeatureEncoder, dtype: str) -> None:
        self._learner = learner
        self._slots = encoder.slots
        self._passes = Passes(deepcopy(learner.net).requires_grad_(False))
        self._tables = {
            name: ServingTable(width=table.width, initial_rows=len(table), dtype=dtype)
            for name, table in learner.sparse.tables.items()
        }
        self._marks = dict.fromkeys(self._tables, 0)
        self.refresh()

    def refresh(self) -> None:
        """Take over what changed since the last refresh: rows, rows gone, and the dense net."""
        for name, table in self._learner.sparse.tables.items():
            mark = table.advance()
            keys, rows, gone = table.delta(self._marks[name])
            self._tables[name].upsert(keys, rows)
            self._tables[name].remove(gone)
            self._marks[name] = mark
        with torch.no_grad():
            for own, other in zip(
                self._passes.net.parameters(), self._learner.net.parameters(), strict=True
            ):
                own.copy_(other)

    def predict(self, values: Encoded) -> F32:
        """What would be served with the parameters of the last refresh: `float32[B, T]`."""
        rows = pooled_rows(
            self._slots,
            values,
            lambda name, *bags: self._tables[name].lookup_pooled(*bags)[0],
        )
        return scores(self._passes, self._learner.losses, rows, values.dense)
