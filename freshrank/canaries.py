"""Labelled rows that a frame carries beside a dense net: by them a replica judges before it serves.

Format: a msgpack map `{labels, weights, dense, slots, mean}`, little-endian arrays as bytes;
`slots` is name -> `[ids uint64[m], offsets int64[n + 1]]`, and `mean` may be missing. Unknown
fields are skipped. Ids are those of the encoder, and neither requests nor items are named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from freshrank.errors import SyncError
from freshrank.features import Encoded, SlotIds

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_F32: Final[np.dtype[np.float32]] = np.dtype("<f4")
_U64: Final[np.dtype[np.uint64]] = np.dtype("<u8")
_I64: Final[np.dtype[np.int64]] = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class Canary:
    """n rows.

    Attributes:
        labels: `float32[n, T]`.
        weights: `float32[n, T]`, what each row stands for; 0 where it says nothing of the task.
        values: Ids and dense values.
        mean: `float32[n, T]`, the mean of what was published since the row's window was over, of
            about as long as a window; NaN where nothing was. None where the writer does not tell.
    """

    labels: F32
    weights: F32
    values: Encoded
    mean: F32 | None = None


class _Wire(msgspec.Struct, omit_defaults=True):
    labels: bytes
    weights: bytes
    dense: bytes
    slots: dict[str, tuple[bytes, bytes]]
    mean: bytes | None = None


def encode(canary: Canary) -> bytes:
    """The rows' bytes."""
    return msgspec.msgpack.encode(
        _Wire(
            labels=canary.labels.astype(_F32).tobytes(),
            weights=canary.weights.astype(_F32).tobytes(),
            dense=canary.values.dense.astype(_F32).tobytes(),
            slots={
                name: (column.ids.astype(_U64).tobytes(), column.offsets.astype(_I64).tobytes())
                for name, column in canary.values.slots.items()
            },
            mean=None if canary.mean is None else canary.mean.astype(_F32).tobytes(),
        )
    )


def decode(data: bytes, slots: Sequence[str], *, n_dense: int, n_tasks: int) -> Canary:
    """Read rows back; their arrays are read-only views.

    Args:
        data: What `encode` made.
        slots: Names that must be there.
        n_dense: K.
        n_tasks: T.

    Raises:
        SyncError: not such rows (code `malformed`).
    """
    try:
        wire = msgspec.msgpack.decode(data, type=_Wire)
        labels = np.frombuffer(wire.labels, _F32).reshape(-1, n_tasks)
        n = len(labels)
        weights = np.frombuffer(wire.weights, _F32).reshape(n, n_tasks)
        dense = np.frombuffer(wire.dense, _F32).reshape(n, n_dense)
        columns = {name: _slot(*wire.slots[name], n) for name in slots}
        mean = None if wire.mean is None else np.frombuffer(wire.mean, _F32).reshape(n, n_tasks)
    except (msgspec.DecodeError, KeyError, RecursionError, ValueError) as error:
        raise SyncError(
            f"malformed canary set: {error}; its writer is wrong, keep the frame and report it",
            code="malformed",
        ) from error
    return Canary(labels, weights, Encoded(n, columns, dense), mean)


def _slot(ids_bytes: bytes, offsets_bytes: bytes, n: int) -> SlotIds:
    ids, offsets = np.frombuffer(ids_bytes, _U64), np.frombuffer(offsets_bytes, _I64)
    is_whole = len(offsets) == n + 1 and offsets[0] == 0 and offsets[-1] == len(ids)
    if not is_whole or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{len(offsets)} offsets do not cut {len(ids)} ids into {n} rows")
    return SlotIds(ids, offsets)
