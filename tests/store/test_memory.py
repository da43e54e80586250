"""What the kernel says a table holds, over fills and expiries."""

import gc

import numpy as np

from tests.proofs import record, resident_bytes, scale
from tests.store.helpers import admit, make

N_ROWS = scale("memory", 100_000)
BATCH = 8_192
MIB = 1 << 20


def test_memory_is_flat_over_ten_fills_and_expiries() -> None:
    table = make(dim=16, optimizer="adagrad", ttl_s=10, min_count=2)
    before = resident_bytes()
    held, resident = [], []
    for cycle in range(10):
        now_s = 100 * (cycle + 1)
        first = cycle * 10 * N_ROWS
        for start in range(first, first + N_ROWS, BATCH):
            ids = np.arange(start, min(start + BATCH, first + N_ROWS), dtype=np.uint64)
            admit(table, ids, now_s, count=2)
            admit(table, ids + np.uint64(5 * N_ROWS), now_s)  # never seen again
        gc.collect()
        held.append(table.statistics()["bytes"])
        resident.append(resident_bytes() - before)
        while table.expire(now_s + 50, 1 << 16):
            table.trim_tombstones(table.advance())
        statistics = table.statistics()
        assert statistics["rows"] == statistics["pending"] == statistics["tombstones"] == 0
    growth = max(resident[2:]) - resident[1]
    assert growth < 0.02 * held[1] + MIB
    assert max(held[2:]) < 1.02 * held[1]
    record(
        "memory is flat over ten fills and expiries, by the kernel's account",
        rows=f"{N_ROWS:,}",
        resident_mib_second_fill=round(resident[1] / MIB, 1),
        most_mib_above_it_later=round(growth / MIB, 2),
    )
