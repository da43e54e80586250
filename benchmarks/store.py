"""The embedding table's speed: lookup by 64-bit id against numpy's take on known row numbers.

    python -m benchmarks.store [--json]

The two run in turns on the same random picks, so that a busy machine slows both; each row is the
median of five rounds. Take is told the row numbers that lookup has to find out: level would be
1.0, and the goal leaves a tenth for the noise of a shared machine.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks import report
from benchmarks.report import Row, row
from embedding_store import Optimizer, Table

N_ROWS, DIM, BATCH, N_BATCHES, N_ROUNDS = 1_000_000, 16, 8_192, 60, 5


def run() -> list[Row]:
    """Fill a table with a million rows and time every call on it."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 2**64, N_ROWS, np.uint64)
    table = build_table()
    ones = np.ones(BATCH, np.uint32)
    for start in range(0, N_ROWS, BATCH):
        batch = ids[start : start + BATCH]
        table.lookup_or_admit(batch, ones[: len(batch)], 1)
    matrix = table.lookup(ids)
    picks = [rng.integers(0, N_ROWS, BATCH) for _ in range(N_BATCHES)]
    picked_ids = [ids[pick] for pick in picks]
    gradients = rng.normal(size=(BATCH, DIM)).astype(np.float32)
    out = np.empty((BATCH, DIM), np.float32)
    np.testing.assert_array_equal(table.lookup(picked_ids[0]), matrix[picks[0]])

    def train(i: int) -> None:
        table.lookup_or_admit(picked_ids[i], ones, 2, out)
        table.apply(picked_ids[i], gradients)

    rates = interleaved(
        {
            "take": lambda i: np.take(matrix, picks[i], axis=0, out=out, mode="clip"),
            "lookup": lambda i: table.lookup(picked_ids[i], out),
            "lookup_or_admit": lambda i: table.lookup_or_admit(picked_ids[i], ones, 2, out),
            "train": train,
        }
    )
    ratio = rates["lookup"] / rates["take"]
    unit = "million rows/s"
    return [
        row("take_known_rows_1m_d16", rates["take"], unit),
        row("lookup_1m_d16", rates["lookup"], unit),
        row("lookup_vs_take_known_rows_1m_d16", ratio, "times", goal=0.9),
        row("lookup_or_admit_1m_d16", rates["lookup_or_admit"], unit),
        row("read_and_adagrad_1m_d16", rates["train"], unit),
        row("bytes_per_row_1m_d16_adagrad", table.statistics()["bytes"] / N_ROWS, "bytes"),
    ]


def build_table() -> Table:
    """Adagrad beside 16 weights: rows of 128 bytes."""
    return Table(
        dim=DIM, first_order=False, optimizer=Optimizer("adagrad", lr=0.05), init_scale=0.01,
        seed=1, slot=0, min_count=1, probability=1.0, ttl_s=86_400, initial_rows=0,
    )  # fmt: skip


def interleaved(calls: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Median of million rows a second for each call, the calls taking turns every round."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(N_ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for i in range(N_BATCHES):
                call(i)
            rates[name].append(N_BATCHES * BATCH / (time.perf_counter() - start) / 1e6)
    return {name: statistics.median(values) for name, values in rates.items()}


if __name__ == "__main__":
    report.main(run)
