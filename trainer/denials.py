"""Ids that were forgotten: rows of records from before do not bring them back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedding_store import Table, mix_ids
from freshrank.examples import ExampleBatch
from freshrank.features import Slot, SlotIds
from freshrank.settings import CrossFeature, Settings

Bools = npt.NDArray[np.bool_]

# Features whose id a whole row is about.
OWNERS: Final = ("user_id", "item_id")
# A budget must have room for so many tombstones, few of which are made.
_ERASED_MAX: Final = 4_096


@dataclass(slots=True)
class Denial:
    """A forgotten id, as checkpoints keep it.

    Attributes:
        slot: The feature that declares its table.
        id: The 64-bit id; of a string key its keyed hash.
        at_ms: When the command entered the log: records up to here are denied.
        marks: `topic:partition` -> offset of the command among the actions.
        until: Examples partition -> what stands from there on was joined behind the command; empty
            until all partitions have come to it.
    """

    slot: str
    id: int
    at_ms: int
    marks: dict[str, int]
    until: dict[int, int]

    @property
    def name(self) -> tuple[str, int, int]:
        """What tells it from others."""
        return self.slot, self.id, self.at_ms

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Denial":
        """Read what a checkpoint kept."""
        until = {int(partition): offset for partition, offset in content["until"].items()}
        return Denial(**{**content, "until": until})


class Denier:
    """Takes forgotten ids out of tables and rows; knows which features share a table.

    Args:
        settings: Crosses and salt are read.
        slots: In model order.
    """

    def __init__(self, settings: Settings, slots: Sequence[Slot]) -> None:
        self._salt = settings.salt
        self._tables = {slot.name: slot.table for slot in slots}
        self._crosses = [f for f in settings.features if isinstance(f, CrossFeature)]

    def knows(self, slot: str) -> bool:
        """Whether ids of this feature can be forgotten."""
        return slot in self._tables or slot in OWNERS

    def touched(self, slot: str) -> tuple[set[str], set[str]]:
        """Tables that `erase` takes rows out of, and those that it only reads."""
        crosses = [cross for cross in self._crosses if slot in cross.of]
        changed = {
            self._tables[name] for name in (slot, *(c.name for c in crosses)) if self.has(name)
        }
        read = {self._tables[part] for cross in crosses for part in cross.of}
        return changed, read - changed

    def has(self, slot: str) -> bool:
        """Whether ids of this feature have rows: live features may know a user that has none."""
        return slot in self._tables

    def erase(self, tables: Mapping[str, Table], slot: str, key: int) -> int:
        """Remove an id from its table, and its pairs with every id that has a row.

        Returns:
            Rows removed.

        Raises:
            StoreError: a budget has no room for the tombstones; pairs may be removed in part.
        """
        if not self.has(slot):
            return 0
        ids = np.array([key], np.uint64)
        n_rows = tables[self._tables[slot]].erase(ids)
        for cross in self._crosses:
            left, right = cross.of
            for own, other in ((left, right), (right, left)):
                if own == slot:
                    others = tables[self._tables[other]].keys()
                    own_ids = np.repeat(ids, len(others))
                    lefts, rights = (own_ids, others) if own == left else (others, own_ids)
                    pairs = mix_ids(lefts, rights, self._salt)
                    table = tables[self._tables[cross.name]]
                    for start in range(0, len(pairs), _ERASED_MAX):
                        n_rows += table.erase(pairs[start : start + _ERASED_MAX])
        return n_rows

    def names(self, batch: ExampleBatch, slot: str, key: int) -> Bools:
        """Rows in which some feature of the id's table has the id: `bool[n]`."""
        found = np.zeros(batch.n_rows, np.bool_)
        for name in self._sharing(slot):
            found |= _rows_with(batch.values.slots[name], key)
        return found

    def deny(
        self, batch: ExampleBatch, denials: Iterable[Denial]
    ) -> tuple[ExampleBatch, npt.NDArray[np.int64]]:
        """Take what was forgotten out of rows from before.

        Rows about a forgotten user or item are not to be learned. Any other denied id only leaves
        its row's bags, and with it the row's pairs of that feature.

        Returns:
            The batch, and which of its rows must not be learned: `int64[k]`, ascending.
        """
        is_kept = np.ones(batch.n_rows, np.bool_)
        for one in denials:
            is_old = batch.appended_at_ms <= one.at_ms
            if not is_old.any() or one.slot not in self._tables:
                continue
            if one.slot in OWNERS:
                is_kept &= ~(is_old & _rows_with(batch.values.slots[one.slot], one.id))
            batch = self._without(batch, is_old & is_kept, one)
        return batch, np.flatnonzero(~is_kept)

    def _without(self, batch: ExampleBatch, rows: Bools, one: Denial) -> ExampleBatch:
        slots = dict(batch.values.slots)
        has_id = rows & _rows_with(slots[one.slot], one.id)
        for name in self._sharing(one.slot):
            column = slots[name]
            is_denied = (column.ids == np.uint64(one.id)) & _of_rows(column, rows)
            slots[name] = _dropped(column, is_denied)
        for cross in self._crosses:
            if one.slot in cross.of:
                slots[cross.name] = _dropped(slots[cross.name], _of_rows(slots[cross.name], has_id))
        return replace(batch, values=replace(batch.values, slots=slots))

    def _sharing(self, slot: str) -> list[str]:
        table = self._tables.get(slot)
        return [name for name, own in self._tables.items() if own == table]


def _rows_with(column: SlotIds, key: int) -> Bools:
    """Rows whose bags have the id: `bool[n]`."""
    n_before = np.concatenate([[0], np.cumsum(column.ids == np.uint64(key))])
    found: Bools = np.diff(n_before[column.offsets]) > 0
    return found


def _of_rows(column: SlotIds, rows: Bools) -> Bools:
    """Which ids belong to these rows: `bool[m]`."""
    return np.repeat(rows, np.diff(column.offsets))


def _dropped(column: SlotIds, is_denied: Bools) -> SlotIds:
    """The column without some of its ids."""
    if not is_denied.any():
        return column
    n_before = np.concatenate([[0], np.cumsum(is_denied)])
    return SlotIds(column.ids[~is_denied], column.offsets - n_before[column.offsets])
