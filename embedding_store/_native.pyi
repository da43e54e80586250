"""The native core: exact, expirable embedding tables. All batch calls release the GIL."""

from typing import Final

import numpy as np
import numpy.typing as npt

from embedding_store.optimizer import Optimizer

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
U8 = npt.NDArray[np.uint8]

FORMAT_VERSION: Final[int]

class StoreError(Exception):
    """A table refused: the message says what, with which value, and what to do."""

def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse values out of range with a StoreError that names the first."""

def hash_strings(values: list[str], seed: int) -> U64:
    """SipHash-2-4 of every string's UTF-8 bytes, keyed by `seed`; `uint64[n]`."""

def mix_ids(left: U64, right: U64, seed: int) -> U64:
    """One well-mixed 64-bit id per pair (order matters); the id of a feature cross."""

class Table:
    """One training table: 64-bit id -> row [weights | optimizer state].

    Admission, expiry and versions included. Calls from several threads are safe: readers run
    together, a writer runs alone.
    """

    def __init__(
        self,
        *,
        dim: int,
        first_order: bool,
        optimizer: Optimizer,
        first_order_optimizer: Optimizer | None = None,  # None: `optimizer` moves that column too
        init_scale: float,  # weights start uniform in (-scale, scale), by (seed, slot, id) alone
        seed: int,
        slot: int,
        min_count: int,  # the id gets its row at its min_count-th occurrence
        probability: float,  # < 1: each occurrence of an absent id admits with this probability
        ttl_s: int,  # 0: never expires
        initial_rows: int,
    ) -> None: ...
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
    @property
    def optimizer(self) -> Optimizer:
        """Whose state stands in the rows, and the values of today."""
    @property
    def first_order_optimizer(self) -> Optimizer | None:
        """The first-order column's own, if it has one."""
    def configure(
        self,
        *,
        optimizer: Optimizer,
        first_order_optimizer: Optimizer | None = None,
        min_count: int,
        probability: float,
        ttl_s: int,
    ) -> None:
        """Change, from the next call on, what decides about the future and not what rows mean.

        An optimizer keeps its kind, ftrl its beta, and a half-life stays 0 or above 0: the state
        in the rows rests on them. All its other values may change. Rows that a new `ttl_s` finds
        too old go at the next sweep; pending counts are kept.

        Raises:
            StoreError: a value out of range, or state of another kind; nothing has changed.
        """
    def lookup(self, ids: U64, out: F32 | None = None) -> F32:
        """Read rows without touching anything; absent ids read zeros. `float32[n, width]`."""
    def lookup_or_admit(self, ids: U64, counts: U32, now_s: int, out: F32 | None = None) -> F32:
        """Count occurrences, admit ids that reach the filter's threshold, mark them seen, read."""
    def apply(self, ids: U64, gradients: F32) -> int:
        """Sum gradients by id, then one optimizer step per row. Returns rows updated."""
    def read(
        self,
        slots: list[tuple[int, U64, I64, Bools, bool]],
        requests: U64,
        now_s: int,
        out: F32,
    ) -> None:
        """Count a batch's occurrences, admit what reaches the threshold, and pool the rows.

        An id counts once per request, in the counted rows of all slots together.

        Args:
            slots: Of this table: place among the batch's slots; ids, `uint64[m]`; offsets,
                `int64[n + 1]`, row i has `ids[offsets[i]:offsets[i + 1]]`; whether a row's ids
                count, `bool[n]`; mean instead of sum.
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
    def contains(self, ids: U64) -> U8: ...
    def pending(self, ids: U64) -> U32:
        """Occurrences counted so far of ids that have no row yet."""
    def born_s(self, ids: U64) -> U32:
        """Event time, in seconds, at which each id's row was admitted; 0 where absent."""
    def last_seen_s(self, ids: U64) -> U32: ...
    def expire(self, now_s: int, max_rows: int) -> int:
        """Advance the clock, sweep at most max_rows rows from the cursor; returns rows removed."""
    def erase(self, ids: U64) -> int:
        """Remove ids now, pending counts included, leaving tombstones; returns rows removed."""
    @property
    def version(self) -> int:
        """Version stamped on changes made from now on."""
    def advance(self) -> int:
        """Close the current version and return it; later changes carry version + 1."""
    def delta(self, since: int) -> tuple[U64, F32, U64]:
        """Changes with version > since: keys, their rows, tombstones; ascending, disjoint."""
    def trim_tombstones(self, through: int) -> int: ...
    def snapshot(self) -> bytes:
        """The whole table, format v1: rows, state, counts, clocks, cursor, tombstones, checksum."""
    @staticmethod
    def restore(data: bytes) -> Table:
        """Rebuild from `snapshot()`; every later call behaves bit for bit like the original."""
    def keys(self) -> U64:
        """All admitted ids, ascending."""
    def statistics(self) -> dict[str, int]:
        """Counts by name.

        Now: rows, capacity, pending, tombstones, bytes, clock_s. Since the start: admitted,
        filtered (occurrences of ids that stayed without a row), expired, erased.
        """
    def __len__(self) -> int: ...

class ServingTable:
    """Weights only, read while deltas are applied."""

    def __init__(self, *, width: int, initial_rows: int) -> None: ...
    @property
    def width(self) -> int: ...
    def lookup(self, ids: U64, out: F32 | None = None) -> tuple[F32, U8]:
        """Rows and whether each id was there; absent ids read zeros."""
    def upsert(self, keys: U64, rows: F32) -> None: ...
    def remove(self, keys: U64) -> int: ...
    def keys(self) -> U64: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
