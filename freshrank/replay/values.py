"""Arrow columns of any type -> the values that features, times and labels are made of.

Each function gives the column converted and which rows did not fit, as `bool[n]`: whole columns are
converted at once, and searched for the culprits only where that fails. A null stays a null.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding_store import hash_strings
from freshrank.encoding import LIST_ITEMS_MAX, NUMBER_MAX, TEXT_CHARACTERS_MAX
from freshrank.errors import DataError
from trainer.rows import TIME_MS_MAX

Bools = npt.NDArray[np.bool_]
Fitted = tuple[pa.Array, Bools]
Convert = Callable[[pa.Array], Fitted]

# Between the entries of a list in a text file.
LIST_SEPARATOR: Final = "|"
_MS_PER_UNIT: Final = {"s": 1_000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_LISTS: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
# Rows looked at to tell how a text column writes its times.
_HEAD_ROWS: Final = 100


def text(column: pa.Array) -> Fitted:
    """String keys: NFC text of at most 256 characters; integers become their decimals."""
    column, bad = _plain(column)
    if pa.types.is_floating(column.type):
        column, is_fraction = cast(column, pa.int64())
        bad |= is_fraction
    column, is_unfit = cast(column, pa.string())
    if not pc.all(pc.string_is_ascii(column)).as_py():
        column = pc.utf8_normalize(column, form="NFC")
    too_long = _true(pc.greater(pc.utf8_length(column), TEXT_CHARACTERS_MAX))
    return column, bad | is_unfit | too_long


def uint64(column: pa.Array) -> Fitted:
    """Integers from 0 to 2^64-1, or their decimals without leading zeros."""
    column, bad = _plain(column)
    if _is_text(column.type):
        bad |= _true(pc.and_(pc.starts_with(column, "0"), pc.greater(pc.binary_length(column), 1)))
    column, is_unfit = cast(column, pa.uint64())
    return column, bad | is_unfit


def number(column: pa.Array, low: float = -NUMBER_MAX, high: float = NUMBER_MAX) -> Fitted:
    """Finite numbers within [low, high], as `float64`."""
    column, bad = _plain(column)
    column, is_unfit = cast(column, pa.float64())
    fits = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
    return column, bad | is_unfit | _true(pc.invert(fits))


def label(column: pa.Array) -> Fitted:
    """Numbers as `float64`; true and false are 1 and 0."""
    column, bad = _plain(column)
    found, is_unfit = cast(column, pa.float64())
    if is_unfit.any() and _is_text(column.type):
        booleans, is_none = cast(column, pa.bool_())
        if is_none.sum() < is_unfit.sum():
            found, is_unfit = booleans.cast(pa.float64()), is_none
    return found, bad | is_unfit | _true(pc.invert(pc.is_finite(found)))


def lists(column: pa.Array, convert: Convert) -> Fitted:
    """Lists of at most 256 entries of one kind; a text is cut at `|`, an empty one has none."""
    column, bad = _plain(column)
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    if _is_text(column.type):
        column, is_unfit = cast(column, pa.string())
        bad |= is_unfit
        parts = pc.split_pattern(column, LIST_SEPARATOR)
        column = pc.if_else(pc.equal(column, ""), pa.scalar([], parts.type), parts)
    if not any(is_list(column.type) for is_list in _LISTS):
        raise DataError(f"holds {column.type}, which is no list", code="bad-column")
    column = column.cast(pa.large_list(column.type.value_type))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    entries, is_bad_entry = convert(column.flatten())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    is_bad_entry |= entries.is_null().to_numpy(zero_copy_only=False)
    n_bad = np.concatenate([[0], np.cumsum(is_bad_entry)])[offsets]
    mask = pa.array(column.is_null().to_numpy(zero_copy_only=False))
    found = pa.LargeListArray.from_arrays(pa.array(offsets), entries, mask=mask)
    return found, bad | (np.diff(n_bad) > 0) | (lengths > LIST_ITEMS_MAX)


def time_ms(column: pa.Array, unit: str) -> Fitted:
    """Event times in ms since 1970 as `int64`: timestamps, numbers in `unit`, or text of either."""
    column, bad = _plain(column)
    if _is_text(column.type):
        column, is_unfit = _written_time(column)
        bad |= is_unfit
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    factor = _MS_PER_UNIT[unit]
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zone = getattr(column.type, "tz", None)
        column = column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
        factor = 1.0
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"holds {column.type}, which is no time", code="bad-column")
    bad |= column.is_null().to_numpy(zero_copy_only=False)
    column = pc.fill_null(column, 0)
    values = column.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):  # NaN is out of range too
        bad |= ~((values >= 0) & (values <= TIME_MS_MAX / factor))
    values = np.where(bad, 0, values)
    if factor == 1.0 or values.dtype.kind == "f":
        found = np.floor(values * factor)
    else:  # integers stay exact
        found = values * int(factor) if factor > 1 else values // round(1 / factor)
    return pa.array(found.astype(np.int64)), bad


def _written_time(column: pa.Array) -> Fitted:
    """Integers, numbers or timestamps: what most of the first rows are; some tools end in UTC."""
    column, bad = cast(column, pa.string())
    column = pc.replace_substring_regex(column, " ?UTC$", "Z")
    head = column.drop_null()[:_HEAD_ROWS]
    # Nanoseconds: Arrow reads no more digits of a second than the type has.
    types = [pa.int64(), pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC")]
    type_ = min(types, key=lambda one: cast(head, one)[1].sum())
    found, is_unfit = cast(column, type_)
    if type_ == pa.int64() and is_unfit.any():  # a fraction further down
        found, is_unfit = cast(column, pa.float64())
    return found, bad | is_unfit


def identity(column: pa.Array) -> Fitted:
    """Ids of requests as `uint64`: integers as they are, texts hashed; null does not fit."""
    column, bad = _plain(column)
    bad |= column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        return pa.array(values.astype(np.uint64)), bad
    if pa.types.is_floating(column.type):
        bad |= _true(pc.is_nan(column))
    column, is_unfit = cast(column, pa.string())
    hashes = hash_strings(pc.fill_null(column, "").to_pylist(), 0)
    return pa.array(hashes), bad | is_unfit


def cast(column: pa.Array, type_: pa.DataType) -> Fitted:
    """The column as another type, null where a value has no place in it.

    Raises:
        DataError: no value of the column could have (code `bad-column`).
    """
    try:
        return column.cast(type_), np.zeros(len(column), np.bool_)
    except pa.ArrowNotImplementedError:
        raise DataError(f"holds {column.type}, which is no {type_}", code="bad-column") from None
    except pa.ArrowInvalid:
        bad = np.zeros(len(column), np.bool_)
        bad[list(_unfit(column, type_))] = True
        return pc.if_else(pa.array(bad), pa.scalar(None, column.type), column).cast(type_), bad


def _unfit(column: pa.Array, type_: pa.DataType) -> list[int]:
    """Rows that cannot be cast, by halving: few casts where few are bad."""
    found = []
    ranges = [(0, len(column))]
    while ranges:
        start, stop = ranges.pop()
        try:
            column[start:stop].cast(type_)
        except pa.ArrowInvalid:
            if stop - start == 1:
                found.append(start)
            else:
                middle = (start + stop) // 2
                ranges += [(start, middle), (middle, stop)]
    return found


def _plain(column: pa.Array) -> Fitted:
    """Without dictionary, and bytes as the text they spell."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return cast(column, pa.string())
    return column, np.zeros(len(column), np.bool_)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _true(found: pa.Array) -> Bools:
    """`bool[n]`, False where it is null."""
    mask: Bools = pc.fill_null(found, False).to_numpy(zero_copy_only=False)
    return mask
