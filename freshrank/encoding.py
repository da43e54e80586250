"""One column of raw values -> bags of ids or numbers; `freshrank.features` knows which column.

Every rule stands twice: a `parse_…` function for one value, which names what is wrong, and a column
function that is fast where all values are plain and falls back to parsing each where one is not.
"""

import reprlib
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedding_store import hash_strings, mix_ids
from freshrank.errors import DataError
from freshrank.feature_types import I64, U64, SlotIds
from freshrank.messages import Value

F64 = npt.NDArray[np.float64]

TEXT_CHARACTERS_MAX: Final = 256
LIST_ITEMS_MAX: Final = 256
# The largest float32: a number beyond it would enter the net as infinity.
NUMBER_MAX: Final = float(np.finfo(np.float32).max)

_DECIMAL_CHARACTERS_MAX: Final = len(str((1 << 64) - 1))

# Values of a column without those that are missing: as a list, or numbers as an array.
Plain = Sequence[Value] | npt.NDArray[Any]
IdsOf = Callable[[Plain], U64]


def parse_text(value: object) -> str:
    """The NFC text of a string key.

    Raises:
        DataError: not a string, longer than 256 characters, or not Unicode text.
    """
    if not isinstance(value, str):
        raise _bad(f"expected a string, got {shown(value)}")
    text = value if value.isascii() else unicodedata.normalize("NFC", value)
    if max(len(value), len(text)) > TEXT_CHARACTERS_MAX:
        raise _bad(
            f"expected at most {TEXT_CHARACTERS_MAX} characters, got {max(len(value), len(text))}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _bad(f"expected Unicode text, got a lone surrogate in {shown(value)}") from None
    return text


def parse_uint64(value: object) -> int:
    """The id of a uint64 key, from an integer or its decimal text.

    Text has one spelling per id, so `007`, `+7` and ` 7` are refused: an answer names the item as
    `7`, and a client that wrote `007` would not find it again.

    Raises:
        DataError: neither, or not in 0..2^64-1.
    """
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= _DECIMAL_CHARACTERS_MAX):
            raise _bad(f"expected an integer from 0 to 2^64-1, got {shown(value)}")
        if value[0] == "0" and value != "0":
            raise _bad(f"expected an integer without leading zeros, got {shown(value)}")
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise _bad(f"expected an integer from 0 to 2^64-1, got {shown(value)}")
    return value


def parse_number(value: object) -> float:
    """A finite number that float32 can hold.

    Raises:
        DataError: not a number (a bool is none), NaN, infinite or too large.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _bad(f"expected a number, got {shown(value)}")
    if not -NUMBER_MAX <= value <= NUMBER_MAX:
        raise _bad(f"expected a finite number up to {NUMBER_MAX:.1e}, got {shown(value)}")
    return float(value)


def parse_nonnegative(value: object) -> float:
    """A number that log1p takes.

    Raises:
        DataError: not a number, or below 0.
    """
    number = parse_number(value)
    if number < 0:
        raise _bad(f"expected a number from 0, got {shown(value)}")
    return number


def parse_list(value: object, parse: Callable[[object], object] | None = None) -> list[Value]:
    """A list of at most 256 entries, each accepted by `parse` where that is given.

    Raises:
        DataError: not a list, longer, or with an entry that `parse` refuses.
    """
    if not isinstance(value, list | tuple):
        raise _bad(f"expected a list, got {shown(value)}")
    if len(value) > LIST_ITEMS_MAX:
        raise _bad(f"expected at most {LIST_ITEMS_MAX} entries, got {len(value)}")
    if parse is not None:
        for index, entry in enumerate(value):
            try:
                parse(entry)
            except DataError as error:
                raise _bad(f"entry {index}: {error}") from None
    return list(value)


def shown(value: object) -> str:
    """The value as an error message may carry it: short, whatever a client sent."""
    return reprlib.repr(value)


def text_ids(values: Plain, salt: int) -> U64:
    """`uint64[n]` of n string keys: the keyed hash of their NFC UTF-8 bytes."""
    values = _as_list(values)
    texts = [value for value in values if isinstance(value, str)]
    is_plain = len(texts) == len(values) and are_plain_texts(texts)
    return hash_strings(texts if is_plain else [parse_text(value) for value in values], salt)


def bucket_ids(values: Plain, boundaries: F64) -> U64:
    """`uint64[n]` of n numbers: how many of the ascending boundaries are at or below each."""
    buckets: U64 = np.searchsorted(boundaries, numbers(values), side="right").astype(np.uint64)
    return buckets


def uint64_ids(values: Plain) -> U64:
    """`uint64[n]` of n uint64 keys: the integers themselves."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        if not (values < 0).any():
            return values.astype(np.uint64)
        values = values.tolist()
    values = _as_list(values)
    integers = plain_integers(values)
    if integers is None:
        integers = [parse_uint64(value) for value in values]
    return np.array(integers, np.uint64)


def numbers(values: Plain) -> F64:
    """`float64[n]` of n numbers."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        converted = values.astype(np.float64)
        if (np.abs(converted) <= NUMBER_MAX).all():
            return converted
    values = _as_list(values)
    if set(map(type, values)) <= {int, float}:
        try:
            plain = np.array(values, np.float64)
        except OverflowError:  # an integer beyond float64; parsing says which
            plain = np.array([np.nan])
        if (np.abs(plain) <= NUMBER_MAX).all():
            return plain
    return np.array([parse_number(value) for value in values], np.float64)


def optional_numbers(values: Sequence[Value]) -> F64:
    """`float64[n]` of n numbers, NaN where the value is None."""
    present = [value for value in values if value is not None]
    if len(present) == len(values):
        return numbers(present)
    filled = np.full(len(values), np.nan)
    filled[[value is not None for value in values]] = numbers(present)
    return filled


def single_bags(values: Sequence[Value], ids_of: IdsOf) -> SlotIds:
    """One id per row, none where the value is None."""
    present = [value for value in values if value is not None]
    if len(present) == len(values):
        return SlotIds(ids_of(present), np.arange(len(values) + 1, dtype=np.int64))
    lengths = np.fromiter((value is not None for value in values), np.int64, len(values))
    return SlotIds(ids_of(present), offsets_of(lengths))


def list_bags(values: Sequence[Value], max_len: int, ids_of: IdsOf) -> SlotIds:
    """The first `max_len` ids of each row's list, none where it is None."""
    lists = [() if value is None else parse_list(value)[:max_len] for value in values]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return SlotIds(ids_of(list(chain.from_iterable(lists))), offsets_of(lengths))


def repeat_bags(bags: SlotIds, counts: I64) -> SlotIds:
    """Row i of `bags`, `counts[i]` times, for every i."""
    if len(counts) == 1:
        n_rows, n_ids = int(counts[0]), len(bags.ids)
        return SlotIds(np.tile(bags.ids, n_rows), np.arange(n_rows + 1, dtype=np.int64) * n_ids)
    rows = np.repeat(np.arange(len(counts)), counts)
    lengths = np.diff(bags.offsets)
    if (lengths == 1).all():
        return SlotIds(bags.ids[rows], np.arange(len(rows) + 1, dtype=np.int64))
    offsets = offsets_of(lengths[rows])
    starts = np.repeat(bags.offsets[:-1][rows] - offsets[:-1], lengths[rows])
    return SlotIds(bags.ids[starts + np.arange(len(starts))], offsets)


def cross_bags(left: SlotIds, right: SlotIds, seed: int) -> SlotIds:
    """One id for every pair of a left and a right id of the same row, left-major."""
    n_left, n_right = np.diff(left.offsets), np.diff(right.offsets)
    if (n_left == 1).all() and (n_right == 1).all():
        return SlotIds(mix_ids(left.ids, right.ids, seed), left.offsets)
    n_pairs = n_left * n_right
    offsets = offsets_of(n_pairs)
    rows = np.repeat(np.arange(len(n_pairs)), n_pairs)
    pair = np.arange(len(rows)) - offsets[rows]  # number of the pair within its row
    lefts = left.ids[left.offsets[rows] + pair // n_right[rows]]
    rights = right.ids[right.offsets[rows] + pair % n_right[rows]]
    return SlotIds(mix_ids(lefts, rights, seed), offsets)


def are_plain_texts(texts: Sequence[str]) -> bool:
    """Whether `parse_text` takes all of them and leaves them as they are."""
    return all(map(str.isascii, texts)) and max(map(len, texts), default=0) <= TEXT_CHARACTERS_MAX


def plain_integers(values: Sequence[Value]) -> list[int] | None:
    """What `parse_uint64` makes of values that are all integers, or all texts; else None."""
    texts = [value for value in values if isinstance(value, str)]
    integers = _decimals(texts) if len(texts) == len(values) else _integers(values)
    if integers is None or not 0 <= min(integers, default=0) <= max(integers, default=0) < 1 << 64:
        return None
    return integers


def _as_list(values: Plain) -> Sequence[Value]:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _integers(values: Sequence[Value]) -> list[int] | None:
    """The values when all are integers."""
    integers = [value for value in values if type(value) is int]
    return integers if len(integers) == len(values) else None


def _decimals(texts: list[str]) -> list[int] | None:
    """The integers that the texts spell when each is spelled as `str` does it."""
    joined, firsts = "".join(texts), {text[:1] for text in texts}
    if not joined.isascii() or not joined.isdecimal():
        return None if texts else []
    if max(map(len, texts)) > _DECIMAL_CHARACTERS_MAX or "" in firsts:
        return None
    if "0" in firsts and any(text[0] == "0" and text != "0" for text in texts):
        return None
    return list(map(int, texts))


def offsets_of(lengths: I64) -> I64:
    """`int64[n + 1]` of n bags, one after the other."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _bad(detail: str) -> DataError:
    return DataError(detail, code="bad-value")
