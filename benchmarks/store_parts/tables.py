"""The table under test: everything on, as a trainer uses it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def lookup_round(table: Table, stream: Stream, n_threads: int = 1) -> Round:
    """Rounds that read rows and touch nothing."""
    outs = [aligned_rows(stream.dim) for _ in range(n_threads)]
    return _round(stream, n_threads, lambda thread, ids: table.lookup(ids, outs[thread]))


def update_round(table: Table, stream: Stream, n_threads: int = 1) -> Round:
    """Rounds that read rows, sum the gradients of equal ids, and step."""
    outs = [aligned_rows(stream.dim) for _ in range(n_threads)]

    def step(thread: int, ids: U64) -> None:
        table.lookup_or_admit(ids, ONES, NOW_S, outs[thread])
        table.apply(ids, stream.gradients)

    return _round(stream, n_threads, step)


def _round(stream: Stream, n_threads: int, use: Callable[[int, U64], object]) -> Round:
    """Rounds in which every thread takes an equal share of the batches."""
    pool = ThreadPoolExecutor(n_threads)
    ids = stream.ids.reshape(-1, stream.n_batches, BATCH)

    def take_share(thread: int, number: int) -> None:
        for batch in ids[number, thread::n_threads]:
            use(thread, batch)

    def run_round(number: int) -> float:
        start_s = time.perf_counter()
        if n_threads == 1:
            take_share(0, number)
        else:
            list(pool.map(take_share, range(n_threads), [number] * n_threads))
        return time.perf_counter() - start_s

    return run_round
