"""The table under test: everything on, as a trainer uses it."""

import time
from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.store_peers.process import Round
from benchmarks.store_peers.stream import BATCH, F32, U64, Stream, ids_of
from embedding_store import Optimizer, Table
from embedding_store.optimizer import Kind

NOW_S: Final = 1_700_000_000
TTL_S: Final = 86_400
ONES: Final = np.ones(BATCH, np.uint32)


def build_table(
    dim: int = 16, optimizer: Kind = "adagrad", *, reserve: int = 0, min_count: int = 1
) -> Table:
    """An empty table that admits, expires, counts and stamps versions."""
    return Table(
        dim=dim, first_order=False,
        optimizer=Optimizer(optimizer, lr=0.05, eps=1e-8, initial_accumulator=0.1),
        init_scale=0.01, seed=1, slot=0, min_count=min_count, probability=1.0, ttl_s=TTL_S,
        initial_rows=reserve,
    )  # fmt: skip


def filled_table(n_rows: int, dim: int = 16, optimizer: Kind = "adagrad") -> Table:
    """A table with the rows that a stream of `n_rows` picks from."""
    table = build_table(dim, optimizer, reserve=n_rows)
    fill(table, 0, n_rows)
    assert len(table) == n_rows
    return table


def fill(table: Table, first: int, end: int) -> None:
    """Show the table the ids of row numbers `first` to `end` - 1, once each."""
    out = aligned_rows(table.width)
    for start in range(first, end, BATCH):
        ids = ids_of(np.arange(start, min(start + BATCH, end)))
        table.lookup_or_admit(ids, ONES[: len(ids)], NOW_S, out[: len(ids)])


def aligned_rows(width: int) -> F32:
    """Room for a batch's rows from a cache line on, where torch's outputs begin too."""
    n_bytes = BATCH * width * 4
    room = np.empty(n_bytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + n_bytes].view(np.float32).reshape(BATCH, width)


def lookup_round(table: Table, stream: Stream) -> Round:
    """Rounds that read rows and touch nothing."""
    out = aligned_rows(stream.dim)
    return _round(stream, lambda ids: table.lookup(ids, out))


def update_round(table: Table, stream: Stream) -> Round:
    """Rounds that read rows, sum the gradients of equal ids, and step."""
    out = aligned_rows(stream.dim)

    def step(ids: U64) -> None:
        table.lookup_or_admit(ids, ONES, NOW_S, out)
        table.apply(ids, stream.gradients)

    return _round(stream, step)


def _round(stream: Stream, use: Callable[[U64], object]) -> Round:
    ids = stream.ids.reshape(-1, stream.n_batches, BATCH)

    def run_round(number: int) -> float:
        start_s = time.perf_counter()
        for batch in ids[number]:
            use(batch)
        return time.perf_counter() - start_s

    return run_round
