"""Columns of a labelled table -> rows of the configuration: `FeatureEncoder.encode`, by column.

Ids and numbers are those that the feature encoder makes of the same values. Live and recent
features are read from earlier requests only: a request's labels enter after all its rows are read.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshrank.encoding import (
    F64,
    LIST_ITEMS_MAX,
    Plain,
    numbers,
    offsets_of,
    optional_numbers,
    text_ids,
)
from freshrank.errors import DataError
from freshrank.feature_plan import ColumnEncoder
from freshrank.feature_state import LocalFeatureState
from freshrank.feature_types import I64, U64, Encoded, SlotIds, TableValues
from freshrank.features import FeatureEncoder, naming
from freshrank.live import LiveFeatures
from freshrank.settings import Settings

Bools = npt.NDArray[np.bool_]
Result = TypeVar("Result")


class TableEncoder:
    """Encodes a table chunk by chunk, in order. Not for threads.

    Args:
        settings: The configuration.
        encoder: Its encoder.

    Attributes:
        state: Feature state as it is after the last chunk.

    Example:
        >>> settings = Settings.model_validate({
        ...     "features": [
        ...         {"name": "item_id", "type": "id", "scope": "item", "key": "uint64"},
        ...         {"name": "clicks", "type": "count", "event": "click"},
        ...     ],
        ...     "tasks": [{"name": "click", "event": "click"}],
        ... })
        >>> table = TableEncoder(settings, FeatureEncoder(settings))
        >>> rows = table.encode(TableValues(
        ...     n_items=np.array([2, 1]), ts_ms=np.array([0, 1]), items=np.array([7, 8, 7]),
        ...     acted={"click": np.array([True, False, False])}))
        >>> rows.slots["item_id"].ids.tolist(), rows.dense[:, 0].round(3).tolist()
        ([7, 8, 7], [0.0, 0.0, 0.6930000185966492])
    """

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        self._encoder = encoder
        self._names = {feature.name for feature in settings.features}
        self._texts = ColumnEncoder(partial(text_ids, salt=settings.salt))
        self._live = LiveFeatures(settings, encoder)
        self._n_rows = 0
        self.state = LocalFeatureState(settings)

    def encode(self, chunk: TableValues) -> Encoded:
        """All rows of the chunk, in order.

        Raises:
            DataError: a value of the wrong type, with its feature and row (of the chunk; of shared
                features the request's number), or a column of another length (code `bad-value`).
        """
        n_items = chunk.n_items.astype(np.int64, copy=False)
        offsets = offsets_of(n_items)
        known = self._recents(chunk, offsets)
        raw: dict[str, F64] = {}

        def bags_of(name: str) -> SlotIds:
            return known[name] if name in known else self._bags(name, chunk, offsets)

        def numbers_of(name: str, rows: Mapping[str, SlotIds]) -> F64:
            if not raw and self._encoder.live:
                raw.update(self._read_then_add(chunk, offsets, rows))
            return raw[name] if name in raw else _numbers(self._column(name, chunk, offsets))

        encoded = self._encoder.assemble(n_items, bags_of, numbers_of)
        self._n_rows += encoded.n_rows
        return encoded

    def _column(self, name: str, chunk: TableValues, offsets: I64) -> Any:
        """The feature's column, checked for its length; nulls where there is none."""
        is_shared = name == "user_id" or self._encoder.is_shared(name)
        n = len(offsets) - 1 if is_shared else int(offsets[-1])
        column = (chunk.shared if is_shared else chunk.columns).get(name)
        if name in ("user_id", "item_id"):
            column = chunk.users if name == "user_id" else chunk.items
        if column is None:
            return pa.nulls(n)
        if len(column) != n:
            raise DataError(f"expected {n} values, got {len(column)}", code="bad-value")
        return column

    def _bags(self, name: str, chunk: TableValues, offsets: I64) -> SlotIds:
        column = self._column(name, chunk, offsets)
        encoder = self._encoder.column(name) if name in self._names else self._texts
        try:
            bags = _single_bags(column, encoder) if encoder.max_len is None else None
            bags = bags or _list_bags(column, encoder)
        except DataError:
            bags = None  # the slow way says where
        return bags or _slowly(column, encoder)

    def _recents(self, chunk: TableValues, offsets: I64) -> dict[str, SlotIds]:
        """Ids of users, items and recent items; the chunk's are in feature state afterwards."""
        if not self._encoder.recent:
            return {}
        known = {}
        for name in ("user_id", "item_id"):
            with naming(name):
                known[name] = self._bags(name, chunk, offsets)
        users, has_user = _filled(known["user_id"])
        items, has_item = _filled(known["item_id"])
        ts_ms = np.ascontiguousarray(chunk.ts_ms, np.int64)
        last: dict[str, SlotIds] = {}
        for event, rings in self.state.rings.items():
            acted = chunk.acted.get(event, np.zeros(len(items), np.bool_)) & has_item
            last[event] = SlotIds(
                *rings.read_then_add(offsets, users, has_user, ts_ms, items, acted, self._n_rows)
            )
        for feature in self._encoder.recent:
            known[feature.name] = _cut(last[feature.event], feature.max_len)
        return known

    def _read_then_add(
        self, chunk: TableValues, offsets: I64, rows: Mapping[str, SlotIds]
    ) -> dict[str, F64]:
        """Raw values of the live features; the chunk's labels are in feature state afterwards."""
        keys = self._live.keys(rows)
        known: dict[str, F64] = {}
        nothing = np.zeros(int(offsets[-1]), np.bool_)
        for spec in self._live.series:
            own = keys[spec.key]
            own_offsets = offsets
            if own.has_key is not None:
                own_offsets = offsets_of(own.has_key.astype(np.int64))[offsets]
            acted = None
            if spec.event is not None:
                done = np.ascontiguousarray(chunk.acted.get(spec.event, nothing), np.bool_)
                acted = np.ascontiguousarray(own.of_rows(done))
            known[spec.name] = self.state.series[spec.name].read_then_add(
                own_offsets, own.ids, np.ascontiguousarray(chunk.ts_ms, np.int64), acted
            )
        return self._live.raw(keys, known)


def _filled(bags: SlotIds) -> tuple[U64, Bools]:
    """Of bags of at most one id: the id of each row, 0 where it has none, and whether it has."""
    has_id = np.diff(bags.offsets) > 0
    ids = np.zeros(len(has_id), np.uint64)
    ids[has_id] = bags.ids
    return ids, has_id


def _cut(bags: SlotIds, max_len: int) -> SlotIds:
    """The first `max_len` ids of each row."""
    lengths = np.diff(bags.offsets)
    if lengths.max(initial=0) <= max_len:
        return bags
    place = np.arange(len(bags.ids)) - np.repeat(bags.offsets[:-1], lengths)
    return SlotIds(bags.ids[place < max_len], offsets_of(np.minimum(lengths, max_len)))


def _single_bags(column: Any, encoder: ColumnEncoder) -> SlotIds | None:
    """One id per row, none where it is null; None for columns that only the slow way takes."""
    flat = _flat(column)
    if flat is None:
        return None
    values, codes, is_valid = flat
    ids = encoder.ids_of(values)
    ids = ids if codes is None else ids[codes]
    if is_valid is None:
        return SlotIds(ids, np.arange(len(ids) + 1, dtype=np.int64))
    return SlotIds(ids, offsets_of(is_valid.astype(np.int64)))


def _list_bags(column: Any, encoder: ColumnEncoder) -> SlotIds | None:
    """The first ids of each row's list, likewise."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    is_list = isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray)
    if not is_list or encoder.max_len is None:
        return None
    flat = _flat(column.flatten())
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(False).astype(np.int64)
    if flat is None or flat[2] is not None or lengths.max(initial=0) > LIST_ITEMS_MAX:
        return None
    values, codes, _ = flat
    ids = encoder.ids_of(values)
    ids = ids if codes is None else ids[codes]
    return _cut(SlotIds(ids, offsets_of(lengths)), encoder.max_len)


def _numbers(column: Any) -> F64:
    """`float64[n]`, NaN where it is null."""
    flat = _flat(column)
    try:
        if flat is not None:
            values, codes, is_valid = flat
            found = numbers(values)
            found = found if codes is None else found[codes]
            if is_valid is None:
                return found
            filled = np.full(len(is_valid), np.nan)
            filled[is_valid] = found
            return filled
    except DataError:
        pass
    return _slowly(column, optional_numbers)


def _flat(column: Any) -> tuple[Plain, I64 | None, Bools | None] | None:
    """A column without its nulls; None for what is neither numbers nor strings.

    Returns:
        Values; which of them each entry is, `int64[m]` (None: one by one); and which rows have an
        entry, `bool[n]` (None: all).
    """
    if isinstance(column, np.ndarray):
        return (column, None, None) if column.dtype.kind in "iuf" else None
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if not isinstance(column, pa.Array):
        return None
    is_valid = column.is_valid().to_numpy(False) if column.null_count else None
    present = column.drop_null() if column.null_count else column
    kind = present.type
    if pa.types.is_null(kind):
        return np.empty(0, np.int64), None, np.zeros(len(column), np.bool_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return present.to_numpy(zero_copy_only=False), None, is_valid
    if pa.types.is_dictionary(kind) and len(present.dictionary) > len(present):
        present = present.dictionary_decode()  # more words than rows to say them
        kind = present.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        present = present.dictionary_encode()
    elif not pa.types.is_dictionary(kind) or present.dictionary.null_count:
        return None
    codes = present.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return present.dictionary.to_pylist(), codes, is_valid


def _slowly(column: Any, encode: Callable[[list[Any]], Result]) -> Result:
    """Value by value in Python: what no fast way takes, and to say which row is wrong."""
    if isinstance(column, np.ndarray):
        values = column.tolist()
    else:
        values = column if isinstance(column, list) else column.to_pylist()
    try:
        return encode(values)
    except DataError as error:
        for row, value in enumerate(values):
            try:
                encode([value])
            except DataError as reason:
                raise DataError(f"row {row}: {reason}", code="bad-value") from None
        raise error
