"""Native feature state: keys with what is remembered of them. All batch calls release the GIL."""

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

class Series:
    """Keys with a decayed sum, their last or their first time; safe for threads.

    Updates commute, and a read sees what happened strictly before its time. An entry takes 43 to 85
    bytes; it goes when it can no longer be read, as later updates come by.
    """

    def __init__(
        self,
        *,
        kind: str,  # "sum": events, halved every span | "last", "first": seconds since, NaN if none
        span_ms: float,  # half-life of a sum; how long a last or first time is known
    ) -> None: ...
    def __len__(self) -> int: ...
    def add(self, keys: U64, ts_ms: I64) -> None:
        """One event per key; `keys[n]`, `ts_ms[n]`."""
    def read(self, keys: U64, ts_ms: I64) -> F64:
        """What each key has strictly before its time; `float64[n]`."""
    def read_then_add(self, offsets: I64, keys: U64, ts_ms: I64, acted: Bools | None) -> F64:
        """Request by request: reads all its keys, then adds those that `acted` (None: all) names.

        `offsets[r + 1]` into `keys[n]` and `acted[n]`, `ts_ms[r]`; returns `float64[n]`.
        """
    def entries(self) -> tuple[U64, I64, F64, F64]:
        """Everything, as `restore` takes it: keys, times and two numbers."""
    def restore(self, keys: U64, times: I64, x: F64, y: F64) -> None:
        """Put entries in place of what the keys had."""

class Rings:
    """The last `n_max` items of each key by (time, tie); safe for threads.

    Updates commute and may come twice. A key takes 32 to 64 bytes, and 24 per item of `n_max`.
    """

    def __init__(self, *, n_max: int) -> None: ...
    def __len__(self) -> int: ...
    def add(self, keys: U64, ts_ms: I64, ties: U64, items: U64) -> None:
        """One item per key."""
    def read(self, keys: U64, ts_ms: I64) -> tuple[U64, I64]:
        """Items of each key before its time, newest first: `items[m]`, `offsets[n + 1]`."""
    def read_then_add(
        self,
        offsets: I64,
        keys: U64,
        is_known: Bools,
        ts_ms: I64,
        items: U64,
        acted: Bools,
        first_tie: int,
    ) -> tuple[U64, I64]:
        """Request by request: reads its key, then adds its rows that `acted` names.

        `offsets[r + 1]` into `items[n]` and `acted[n]`; `keys[r]`, `ts_ms[r]`, and `is_known[r]`:
        False has nothing and adds nothing. Row i has the tie `first_tie + i`.
        """
    def entries(self) -> tuple[U64, I64, U64, U64]:
        """Everything, as `add` takes it."""
