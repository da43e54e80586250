"""The few rows that some examples read, copied: a version can be tried on them before it serves."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from embedding_store import ServingTable
from freshrank.frames import TableRows
from service.dense import DenseNet
from service.model import Bags, Model, Reading, pooled

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class Excerpt:
    """Reads as the model does that it is taken from; what is applied to it is seen by no request.

    Args:
        model: To copy from, by the thread that applies its frames.
        ids: Ids by table, ascending, no two alike.
    """

    def __init__(self, model: Model, ids: Mapping[str, U64]) -> None:
        self._ids = ids
        self._current = model.current
        self._tables = {}
        for name, own in ids.items():
            table = model.tables[name]
            rows, found = table.lookup(own)
            copy = ServingTable(width=table.width, initial_rows=len(own), dtype=table.dtype)
            copy.upsert(own[found], rows[found])
            self._tables[name] = copy

    def apply(self, changed: Mapping[str, TableRows], net: DenseNet) -> None:
        """Take over a frame's net, and those of its rows that are here."""
        self._current = replace(self._current, net=net)
        for name, own in self._ids.items():
            if name in changed:
                frame, table = changed[name], self._tables[name]
                at = _places(frame.keys, own)
                table.upsert(frame.keys[at], frame.rows[at])
                table.remove(frame.tombstones[_places(frame.tombstones, own)])

    def read(self, bags: Bags) -> Reading:
        """As `Model.read`."""
        return Reading(self._current, *pooled(self._tables, bags))


def _places(keys: U64, wanted: U64) -> I64:
    """Where those of the wanted stand that are among the keys, both ascending: `int64[k]`."""
    places = np.searchsorted(keys, wanted)
    inside = places < len(keys)
    places, wanted = places[inside], wanted[inside]
    found: I64 = places[keys[places] == wanted]
    return found
