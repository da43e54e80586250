"""An impression as records: split by items where it is too large for one."""

from typing import Final

import msgspec

from freshrank.errors import DataError
from freshrank.messages import Impression, encode
from freshrank.transport.base import RECORD_BYTES_MAX, NewRecord

# `part` and `parts` grow by some bytes when they are filled in.
_BYTES_MAX: Final = RECORD_BYTES_MAX - 64


def records_of(impression: Impression) -> list[NewRecord]:
    """One record, or several under the same key and event id, each below `RECORD_BYTES_MAX`.

    Raises:
        DataError: one item alone is too large (code `too-large`).
    """
    key = impression.request_id.encode()
    parts = _split(impression)
    numbered = (
        msgspec.structs.replace(part, part=index, parts=len(parts))
        for index, part in enumerate(parts)
    )
    return [NewRecord(key, encode(part)) for part in numbered]


def _split(impression: Impression) -> list[Impression]:
    if len(encode(impression)) < _BYTES_MAX:
        return [impression]
    n_items = len(impression.items)
    if n_items <= 1:
        raise DataError(
            f"the features of one item take more than {_BYTES_MAX} bytes: send fewer",
            code="too-large",
        )
    middle = n_items // 2
    return _split(_cut(impression, 0, middle)) + _split(_cut(impression, middle, n_items))


def _cut(impression: Impression, start: int, end: int) -> Impression:
    rows = slice(start, end)
    return msgspec.structs.replace(
        impression,
        items=impression.items[rows],
        columns={name: values[rows] for name, values in impression.columns.items()},
        served={task: values[rows] for task, values in impression.served.items()},
        positions=impression.positions[rows],
    )
