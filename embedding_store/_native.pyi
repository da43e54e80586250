"""The native core: exact, expirable embedding tables. All batch calls release the GIL."""

from collections.abc import Iterable
from os import PathLike
from typing import Final, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from embedding_store.optimizer import Optimizer

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# A snapshot whole, in a file, or in chunks.
SnapshotData = bytes | bytearray | memoryview | str | PathLike[str] | Iterable[bytes]

FORMAT_VERSION: Final[int]

class StoreError(Exception):
    """A table refused: the message says what, with which value, and what to do."""

def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse values out of range with a StoreError that names the first."""

def hash_strings(values: list[str], seed: int) -> U64:
    """SipHash-2-4 of every string's UTF-8 bytes, keyed by `seed`; `uint64[n]`."""

def mix_ids(left: U64, right: U64, seed: int) -> U64:
    """One well-mixed 64-bit id per pair (order matters); the id of a feature cross."""

class Budget:
    """Bytes that several tables share: give it to each, and together they stay within it.

    A table takes room in steps before it fills it, and gives it back when it is dropped. What is
    taken of a budget within another is taken of both: a limit for some, within a limit for all.
    """

    def __init__(self, max_bytes: int, within: Budget | None = None) -> None: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...  # what tables have taken so far

class Inspection(TypedDict):
    """What a table knows of one id; what its state does not have is 0.

    States: "absent"; "pending", seen `count` times of the `min_count` it needs, which is the
    threshold of `statistics` (`count` fades; an estimate has no times); "admitted", it has a row;
    "expired", its row is out of time and goes at the next sweep; "removed", expired, erased or
    evicted in `version`, its tombstone not yet trimmed.
    """

    state: Literal["absent", "pending", "admitted", "expired", "removed"]
    count: int
    min_count: int
    last_seen_s: int
    expires_s: int  # a clock beyond this ends it; 0: never
    born_s: int
    frequency: int
    version: int  # of the last change
    weight_norm: float
    state_norm: float  # of the optimizer's state

class Snapshot:
    """A table as it was when this began, `bytes` chunk by chunk, while the table goes on.

    A chunk is about 256 KiB, or one row, or up to 1 MiB of pending counts; reading one holds up
    other calls of the table for the time it takes to copy it. Until the end, memory holds what
    changes meanwhile, each row once, and 16 bytes for each pending count and tombstone: it is
    `snapshot_bytes` of the table's statistics, and no part of its budget.

    A table has one at a time. One that is not read to its end (an exception, `close`, or nobody
    holds it any more) frees its memory, and the next must be a whole one.

    Example:
        with table.begin_snapshot() as snapshot:
            for chunk in snapshot:
                file.write(chunk)
    """

    def __enter__(self) -> Snapshot: ...
    def __exit__(self, *exception: object) -> None: ...
    def __iter__(self) -> Snapshot: ...
    def __next__(self) -> bytes: ...
    def close(self) -> None: ...
    @property
    def id(self) -> int:
        """What an increment names as `since`: the snapshot's checksum.

        Raises:
            StoreError: it was not read to its end.
        """

class Table:
    """One training table: 64-bit id -> row [weights | optimizer state].

    Admission, expiry and versions included. Calls from several threads are safe: readers run
    together, a writer runs alone.
    """

    def __init__(
        self,
        *,
        dim: int,
        first_order: bool = False,  # one more column, which starts at 0: a weight of its own
        optimizer: Optimizer,
        first_order_optimizer: Optimizer | None = None,  # None: `optimizer` moves that column too
        init_scale: float = 0.01,  # weights start uniform in (-scale, scale), by seed, slot and id
        seed: int = 0,
        slot: int = 0,
        min_count: int = 1,  # the id gets its row at its min_count-th occurrence
        probability: float = 1.0,  # < 1: so many of an absent id's occurrences count
        ttl_s: int = 0,  # 0: never expires
        initial_rows: int = 0,
        max_bytes: int = 0,  # of everything, growth included; 0: no limit
        pending_bytes: int = 0,  # of ids that wait for a row: exact within, estimated beyond
        min_rows: int = 0,  # expiry stops at as few
        count_half_life_s: int = 0,  # occurrences fade by half in this event time; 0: never
        budget: Budget | None = None,  # shared with other tables
    ) -> None:
        """An empty table.

        Under `max_bytes` or `budget` a table that fills up first raises its threshold, up to 16
        times `min_count`, then evicts what was seen least; `statistics` says so. Tombstones take
        room too, until they are trimmed.

        Raises:
            StoreError: a value out of range, or a budget too small for one slab of rows.
        """
    @property
    def width(self) -> int:
        """Floats a lookup returns per id: dim, plus one when first_order."""
    @property
    def dim(self) -> int:
        """Length of a row's vector."""
    @property
    def threads(self) -> int:
        """How many threads share a call on a batch: 1 to 64, at first 1.

        Results do not depend on it, bit by bit. Threads pay from some thousand ids a call.
        """
    @threads.setter
    def threads(self, n: int) -> None: ...
    # As it was made with:
    @property
    def seed(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    # As `configure` last left them:
    @property
    def min_count(self) -> int: ...
    @property
    def probability(self) -> float: ...
    @property
    def ttl_s(self) -> int: ...
    @property
    def min_rows(self) -> int: ...
    @property
    def count_half_life_s(self) -> int: ...
    @property
    def pending_bytes(self) -> int:
        """Bytes set aside for ids that wait for a row, as it was made with; 0: no limit."""
    @property
    def optimizer(self) -> Optimizer:
        """Whose state stands in the rows, and the values of today."""
    @property
    def first_order_optimizer(self) -> Optimizer | None:
        """The first-order column's own, if it has one."""
    def configure(
        self,
        *,
        optimizer: Optimizer | None = None,
        first_order_optimizer: Optimizer | None = ...,
        min_count: int | None = None,
        probability: float | None = None,
        ttl_s: int | None = None,
        min_rows: int | None = None,
        count_half_life_s: int | None = None,
    ) -> None:
        """Change, from the next call on, what decides about the future and not what rows mean.

        An optimizer keeps its kind, ftrl its beta, and a half-life stays 0 or above 0: the state
        in the rows rests on them. All its other values may change. Rows that a new `ttl_s` finds
        too old go at the next sweep; pending counts are kept. What is not given stays.

        Raises:
            StoreError: a value out of range, or state of another kind; nothing has changed.
        """
    def lookup(self, ids: U64, out: F32 | None = None) -> F32:
        """Read rows without touching anything; absent ids read zeros. `float32[n, width]`."""
    def lookup_or_admit(self, ids: U64, counts: U32, now_s: int, out: F32 | None = None) -> F32:
        """Count occurrences, admit ids that reach the filter's threshold, mark them seen, read."""
    def apply(self, ids: U64, gradients: F32) -> int:
        """Sum gradients by id, then one optimizer step per row. Returns rows updated."""
    def lookup_pooled(self, ids: U64, offsets: I64, mode: str, first_n: int = 0) -> F32:
        """Read one row per bag, `float32[n, width]`, touching nothing; absent ids add zeros.

        Args:
            ids: `uint64[m]`, one bag after the other.
            offsets: `int64[n + 1]`, bag i is `ids[offsets[i]:offsets[i + 1]]`; starts at 0, never
                falls, ends at m. An empty bag reads zeros.
            mode: "sum"; "mean", the sum over a bag's number of ids; "sqrtn", over its square root.
            first_n: Only so many ids of a bag are used, the others as if they were not there;
                0: all of them.

        Raises:
            StoreError: offsets, mode or first_n do not fit.
        """
    def apply_pooled(
        self, ids: U64, offsets: I64, gradients: F32, mode: str, first_n: int = 0
    ) -> int:
        """Pass the gradients of `lookup_pooled`'s rows, `float32[n, width]`, back to the ids.

        They are summed by id, then one optimizer step per row. Returns rows updated.
        """
    def read(
        self,
        slots: list[tuple[int, U64, I64, Bools, str, int]],
        requests: U64,
        now_s: int,
        out: F32,
    ) -> None:
        """Count a batch's occurrences, admit what reaches the threshold, and pool the rows.

        An id counts once per request, in the counted rows of all slots together.

        Args:
            slots: Of this table: place among the batch's slots; ids, `uint64[m]`; offsets,
                `int64[n + 1]`, row i has `ids[offsets[i]:offsets[i + 1]]`; whether a row's ids
                count, `bool[n]`; mode and first_n, as in `lookup_pooled`.
            requests: `uint64[n]`, equal where the request is.
            now_s: Event time.
            out: `float32[n, S, width]`; the places of `slots` are written.

        Raises:
            StoreError: offsets or a place do not fit.
        """
    def learn(self, gradients: F32) -> int:
        """Pass the gradients of the last `read`'s rows back, and step; returns rows updated.

        Args:
            gradients: `float32[n, S, width]`, C-contiguous.

        Raises:
            StoreError: there was no such read, it was learned, or rows have left since.
        """
    def contains(self, ids: U64) -> Bools: ...
    def pending(self, ids: U64) -> U32:
        """Occurrences of ids without a row, faded up to now; estimated beyond their bytes."""
    def born_s(self, ids: U64) -> U32:
        """Event time, in seconds, at which each id's row was admitted; 0 where absent."""
    def last_seen_s(self, ids: U64) -> U32: ...
    def expire(self, now_s: int, max_rows: int) -> int:
        """Advance the clock, sweep at most max_rows rows from the cursor; returns rows removed.

        At `min_rows` rows it stops, and where a budget has no room for tombstones.
        """
    def erase(self, ids: U64) -> int:
        """Remove ids now, pending counts included, leaving tombstones; returns rows removed.

        Raises:
            StoreError: a budget has no room for as many tombstones; nothing has changed.
        """
    @property
    def version(self) -> int:
        """Version stamped on changes made from now on."""
    def advance(self) -> int:
        """Close the current version and return it; later changes carry version + 1.

        Raises:
            StoreError: it is 2^31 - 1, the last there is: one a second lasts 68 years.
        """
    def delta(self, since: int) -> tuple[U64, F32, U64]:
        """Changes with version > since: keys, their rows, tombstones; ascending, disjoint.

        Raises:
            StoreError: `since` is not below `version`, so it is not one that `advance` ended.
        """
    def trim_tombstones(self, through: int) -> int: ...
    def snapshot(self) -> bytes:
        """The whole table, format v1: `begin_snapshot` read to its end. Equal tables, equal bytes.

        Raises:
            StoreError: a snapshot of this table is being taken.
        """
    def begin_snapshot(self, since: int | None = None) -> Snapshot:
        """The table as it is now, to be read while it goes on: see `Snapshot`.

        Args:
            since: Write an increment: the rows that changed since that snapshot, by its `id`, and
                all else in full. It must be the last of this table that was read to its end, or
                the last that this table was restored from.

        Raises:
            StoreError: a snapshot of this table is being taken, or `since` is not its last one.
        """
    @staticmethod
    def restore(
        data: SnapshotData, *increments: SnapshotData, budget: Budget | None = None
    ) -> Table:
        """Rebuild from a snapshot; every later call behaves bit for bit like the original.

        Args:
            data: A whole one: bytes, a path, or its chunks.
            increments: What follows it, in order.
            budget: Where the table takes its room.

        Raises:
            OSError: a file cannot be read.
            StoreError: truncated, damaged, of another version, not a chain, or too large for the
                budget.
        """
    def inspect(self, id: int) -> Inspection:
        """What the table knows of one id.

        Raises:
            StoreError: `id` is no int from 0 to 2^64 - 1.
        """
    def rows_from(self, start: int, max_rows: int) -> tuple[int, U64, F32, U64, U32, U32, U32]:
        """Read up to `max_rows` rows in the order of row numbers, with all that is theirs.

        Returns:
            Where the next call goes on; keys, `uint64[n]`; weights and optimizer state,
            `float32[n, width + state]`; versions, last seen, born, frequency. No keys: the end.
        """
    def put_rows(
        self,
        keys: U64,
        values: F32,
        versions: U64 | None,
        last_seen_s: U32,
        born_s: U32,
        frequency: U32,
        table_version: int = 0,
        clock_s: int = 0,
    ) -> None:
        """Insert or replace whole rows, as `rows_from` gave them.

        Without versions the rows are changed now. The table's own version and clock become at least
        `table_version`, and `clock_s` and the rows' last times.

        Raises:
            StoreError: `table_version` is above 2^31 - 1, a row's version is 0 or beyond it, or the
                budget has no room for all; nothing has changed.
        """
    def keys(self) -> U64:
        """All admitted ids, ascending."""
    def statistics(self) -> dict[str, int]:
        """Counts by name.

        Now: rows, capacity, pending, tombstones, bytes, clock_s, threshold (occurrences that make
        a row: more than min_count when a budget is short). Since the start: admitted,
        sketch_admitted (of these, on an estimated count: fewer than 2.4 % of the ids estimated
        come too early), filtered (occurrences of ids that stayed without a row), expired, erased,
        evicted. Of a budget: budget_bytes taken, max_rows they have room for; peak_bytes, the most
        that was ever held, never exceeds them. snapshot_bytes, of a snapshot that is being taken,
        come on top.
        """
    def __len__(self) -> int: ...

class ServingTable:
    """Weights only, read while deltas are applied.

    A row is kept as `dtype` says; what goes in and comes out is float32.

    - "float32": as it is.
    - "float16": rounded to nearest, ties to even; relative error at most 2^-11 from 2^-14 on.
    - "int8": 127 steps of max|w| / 127 up and down, and that scale per row: absolute error at most
      max|w| / 254, 0 stays 0.

    Readers share a lock for one batch, a writer has it alone for 2,048 keys at a time: a batch is
    of one instant, no row is ever half-written, and a large base delays a reader by one slice.
    """

    def __init__(self, *, width: int, initial_rows: int = 0, dtype: str = "float32") -> None: ...
    @property
    def width(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    def lookup(self, ids: U64, out: F32 | None = None) -> tuple[F32, Bools]:
        """Rows and whether each id was there; absent ids read zeros."""
    def lookup_pooled(self, ids: U64, offsets: I64, mode: str, first_n: int = 0) -> tuple[F32, U32]:
        """Read one row per bag, as `Table.lookup_pooled` does.

        Returns:
            `float32[n, width]`, and of how many of each bag's ids there was a row, `uint32[n]`.
        """
    def check(self, keys: U64, rows: F32) -> None:
        """Refuse what `upsert` would, and change nothing.

        Raises:
            StoreError: a value that `dtype` cannot hold, by id and column.
        """
    def upsert(self, keys: U64, rows: F32) -> None:
        """Put rows in; of two with one key the later stays.

        Raises:
            StoreError: a value that `dtype` cannot hold, by id and column; nothing has changed.
        """
    def remove(self, keys: U64) -> int: ...
    def keys(self) -> U64: ...
    def __len__(self) -> int: ...
    def statistics(self) -> dict[str, int]:
        """Counts by name: rows, capacity, bytes, index_bytes, row_bytes (of one row as kept)."""
    @property
    def nbytes(self) -> int: ...
