"""The longest that a call has to wait: while the table grows, while a snapshot is taken."""

import ctypes
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.report import Row, row
from benchmarks.store_parts.sizes import Sizes
from benchmarks.store_parts.tables import NOW_S, ONES, aligned_rows, build_table, filled_table
from benchmarks.store_peers.stream import BATCH, I64, ids_of
from embedding_store import Table

F64 = npt.NDArray[np.float64]

N_GROWTHS: Final = 3
# Of glibc's mallopt(3) and madvise(2).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX, MADV_HUGEPAGE = -1, -4, -8, 14
GROWTH_BYTES_PER_ROW: Final = 200
# The row, what it held when the snapshot began, and room between blocks that are aligned.
SNAPSHOT_BYTES_PER_ROW: Final = 500


def growth(sizes: Sizes) -> list[Row]:
    """New ids alone, a batch a call, from one million to 32; the median of three such growths.

    Memory is mapped before, so that this measures the table and not the hypervisor's page faults.
    """
    prefault(sizes.grown_to * GROWTH_BYTES_PER_ROW)
    longest_ms, longest_cpu_ms, per_row = [], [], []
    for _ in range(N_GROWTHS):
        table = build_table(16, "rowwise_adagrad")
        out = aligned_rows(16)
        calls, sampled = [], []
        n_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for start in range(0, sizes.grown_to, BATCH):
            ids = ids_of(np.arange(start, start + BATCH))
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            table.lookup_or_admit(ids, ONES, NOW_S, out)
            if start >= sizes.grown_from:
                calls.append((time.perf_counter() - wall_s, time.thread_time() - cpu_s))
                sampled.append(table.statistics()["bytes"] / len(table))
        n_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - n_faults
        print(f"growth: {n_faults} page faults", file=sys.stderr)
        walls, cpus = zip(*calls, strict=True)
        longest_ms.append(max(walls) * 1e3)
        longest_cpu_ms.append(max(cpus) * 1e3)
        per_row.append(statistics.fmean(sampled))
        del table
    mean_name = "bytes_per_row_d16_rowwise_adagrad_mean_over_growth"
    return [
        row("growth_longest_call_ms", statistics.median(longest_ms), "ms", 10, is_maximum=True),
        row("growth_longest_call_cpu_ms", statistics.median(longest_cpu_ms), "CPU ms"),
        row(mean_name, statistics.median(per_row), "bytes", 125, is_maximum=True),
    ]


def prefault(n_bytes: int) -> None:
    """Give this process a heap of touched huge pages, which malloc keeps for all blocks."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    block = libc.malloc(n_bytes)
    page = 2 << 20
    start = -(-block // page) * page
    libc.madvise(start, (block + n_bytes - start) // page * page, MADV_HUGEPAGE)
    ctypes.memset(block, 1, n_bytes)
    libc.free(block)


def read_snapshot(table: Table) -> None:
    """All chunks of a snapshot, as they would go to a file."""
    with table.begin_snapshot() as snapshot:
        for _ in snapshot:
            pass


def copy_memory(stop: threading.Event) -> None:
    """Keep the other core and the memory busy with what has nothing to do with a table."""
    source, target = np.ones(4 << 20), np.ones(4 << 20)
    while not stop.is_set():
        target[:] = source


def snapshot(sizes: Sizes) -> list[Row]:
    """Ten million rows train on while another thread takes a snapshot.

    Memory is mapped before, as for growth. What any busy neighbour costs is measured beside it: as
    many batches while a thread copies memory of its own.
    """
    prefault(sizes.large * SNAPSHOT_BYTES_PER_ROW)
    table = filled_table(sizes.large)
    rng = np.random.default_rng(5)
    gradients = rng.normal(size=(BATCH, 16)).astype(np.float32)
    out = aligned_rows(16)

    def step(numbers: I64) -> tuple[float, float]:
        ids = ids_of(numbers)
        start_s, start_cpu_s = time.perf_counter(), time.thread_time()
        table.lookup_or_admit(ids, ONES, NOW_S, out)
        table.apply(ids, gradients)
        return time.perf_counter() - start_s, time.thread_time() - start_cpu_s

    def steps_while(is_going_on: Callable[[], bool], n_least: int) -> list[tuple[float, float]]:
        """Seconds and CPU seconds of each."""
        seconds: list[tuple[float, float]] = []
        while len(seconds) < n_least or is_going_on():
            seconds.append(step(rng.integers(0, sizes.large, BATCH)))
        return seconds

    def slowest(seconds: list[tuple[float, float]]) -> F64:
        return np.asarray(np.max(seconds, axis=0) / p99, np.float64)

    p99 = np.percentile(steps_while(lambda: False, 2_000), 99, axis=0)
    beside_saver, beside_copier = [], []
    for _ in range(3):
        saver = threading.Thread(target=read_snapshot, args=(table,))
        saver.start()
        seconds = steps_while(saver.is_alive, 1)
        saver.join()
        beside_saver.append(slowest(seconds))
        stop = threading.Event()
        copier = threading.Thread(target=copy_memory, args=(stop,))
        copier.start()
        beside_copier.append(slowest(steps_while(lambda: False, len(seconds))))
        stop.set()
        copier.join()
    (wall, cpu), (copier_wall, _) = (
        np.median(some, axis=0) for some in (beside_saver, beside_copier)
    )
    return [
        row("train_batch_p99_ms_10m_d16", p99[0] * 1e3, "ms"),
        row("snapshot_slowest_batch_vs_p99", wall, "times", 2, is_maximum=True),
        row("snapshot_slowest_batch_cpu_vs_p99", cpu, "times"),
        row("memory_copy_slowest_batch_vs_p99", copier_wall, "times"),
    ]
