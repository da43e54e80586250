"""A snapshot written once by format v1: it must open, and be written, byte for byte, for ever."""

from pathlib import Path

import numpy as np
import pytest

from embedding_store import Optimizer, Table
from tests.store.helpers import admit, ids_of, make

GOLDEN = Path(__file__).parent / "golden" / "table_v1.bin"
GOLDEN_SKETCH = GOLDEN.with_name("table_sketch_v1.bin")


def known_table() -> Table:
    """Rows, a freed row, pending counts, a tombstone and every counter off its start."""
    table = make(
        dim=3, first_order=True, optimizer="adagrad", l2=0.01, initial_accumulator=0.1,
        weight_decay=0.5, accumulator_half_life_s=3600, clip_norm=9.0, clip_value=7.0,
        first_order_optimizer=Optimizer("ftrl", lr=0.2, l1=0.25), min_count=2, ttl_s=50,
        seed=2**64 - 1, slot=9, max_bytes=2**23, pending_bytes=2**17, min_rows=1,
        count_half_life_s=100,
    )  # fmt: skip
    admit(table, ids_of(0, 1, 2**63, 2**64 - 1, 77), now_s=100, count=2)
    table.advance()
    gradients = np.arange(-8, 8, dtype=np.float32).reshape(4, 4)
    table.apply(ids_of(0, 2**64 - 1, 0, 2**63), gradients)
    admit(table, ids_of(0, 5, 6), now_s=140)
    table.erase(ids_of(1))
    table.expire(160, 3)
    table.advance()
    return table


def test_golden_snapshot_is_written_and_opened(request: pytest.FixtureRequest) -> None:
    table = known_table()
    if request.config.getoption("--update-golden"):
        GOLDEN.write_bytes(table.snapshot())
    golden = GOLDEN.read_bytes()
    assert table.snapshot() == golden
    opened = Table.restore(golden)
    assert opened.snapshot() == golden
    assert opened.keys().tolist() == [0, 77, 2**64 - 1]
    assert opened.delta(1)[2].tolist() == [1, 2**63]
    assert opened.pending(ids_of(5, 6)).tolist() == [1, 1]
    assert opened.last_seen_s(ids_of(0, 77)).tolist() == [140, 100]


def test_header_fields_lie_where_the_format_says() -> None:
    data = GOLDEN.read_bytes()
    assert data[:8] == b"FRTABLE\n"
    assert np.frombuffer(data, "<u4", 2, 8).tolist() == [1, 0]
    assert np.frombuffer(data, "<u8", 1, 16).item() == 0
    assert np.frombuffer(data, "<u4", 4, 24).tolist() == [3, 1, 2, 9]
    assert np.frombuffer(data, "<f8", 2, 40).tolist() == [0.05, 1.0]
    assert np.frombuffer(data, "<u8", 1, 56).item() == 2**64 - 1
    assert np.frombuffer(data, "<u4", 2, 64).tolist() == [2, 50]
    # lr, l1, l2, weight decay, eps, beta, beta 1, beta 2, start, limits of norm and values
    assert np.frombuffer(data, "<u4", 2, 72).tolist() == [1, 3600]
    hyper = [0.1, 0, 0.01, 0.5, 1e-8, 1, 0.9, 0.999, 0.1, 9, 7]
    assert np.frombuffer(data, "<f8", 11, 80).tolist() == hyper
    assert np.frombuffer(data, "<u4", 2, 168).tolist() == [4, 0]
    hyper = [0.2, 0.25, 0, 0, 1e-8, 1, 0.9, 0.999, 0.1, 0, 0]
    assert np.frombuffer(data, "<f8", 11, 176).tolist() == hyper
    # version, clock, draws, admitted, filtered, expired, erased
    assert np.frombuffer(data, "<u8", 7, 264).tolist() == [3, 160, 0, 5, 2, 1, 1]
    # cursors of sweep and eviction, numbers of rows used and free; pending counts, tombstones
    assert np.frombuffer(data, "<u4", 4, 320).tolist() == [3, 0, 5, 2]
    assert np.frombuffer(data, "<u8", 2, 336).tolist() == [2, 2]
    # budgets of all and of pending counts, fewest rows, half-life
    assert np.frombuffer(data, "<u8", 3, 352).tolist() == [2**23, 2**17, 1]
    assert np.frombuffer(data, "<u4", 2, 376).tolist() == [100, 0]
    # rows of the budget, evicted, admitted by the sketch, wanted; its occurrences, its lines
    assert np.frombuffer(data, "<u8", 6, 384).tolist() == [65_536, 0, 0, 0, 0, 0]
    assert np.frombuffer(data, "<u4", 2, 432).tolist() == [0, 0]
    # Row 1 was freed first, then row 2; the tombstones of both; two pending counts.
    assert np.frombuffer(data, "<u4", 2, 440).tolist() == [1, 2]
    assert np.frombuffer(data, "<u8", 4, 448).tolist() == [1, 2, 2**63, 2]
    assert np.frombuffer(data, "<u8", 1, 480).item() == 5
    assert np.frombuffer(data, "<u4", 2, 488).tolist() == [1, 140]
    assert np.frombuffer(data, "<u8", 1, 496).item() == 6
    # One block of rows 0, 3 and 4, then an empty one.
    n_floats = 4 + 3 + 1 + 2
    assert np.frombuffer(data, "<u8", 1, 512).item() == 3
    record = np.dtype(
        [("row", "<u4"), ("last_seen_s", "<u4"), ("born_s", "<u4"), ("frequency", "<u4"),
         ("key", "<u8"), ("version", "<u8"), ("values", "<f4", n_floats)]
    )  # fmt: skip
    rows = np.frombuffer(data, record, 3, 520)
    assert rows["row"].tolist() == [0, 3, 4]
    assert rows["key"].tolist() == [0, 2**64 - 1, 77]
    assert rows["last_seen_s"].tolist() == [140, 100, 100]
    assert rows["born_s"].tolist() == [100, 100, 100]
    assert rows["frequency"].tolist() == [3, 2, 2]
    assert rows["version"].tolist() == [2, 2, 1]
    assert len(data) == 520 + 3 * (32 + 4 * n_floats) + 8 + 8


def test_golden_snapshot_with_a_sketch_is_written_and_opened(
    request: pytest.FixtureRequest,
) -> None:
    table = make(min_count=3, pending_bytes=1 << 16)
    ids = np.arange(2_100, dtype=np.uint64)
    admit(table, ids, now_s=40_000)
    admit(table, ids[2_050:], now_s=80_000)
    if request.config.getoption("--update-golden"):
        GOLDEN_SKETCH.write_bytes(table.snapshot())
    golden = GOLDEN_SKETCH.read_bytes()
    assert table.snapshot() == golden
    opened = Table.restore(golden)
    assert opened.snapshot() == golden
    np.testing.assert_array_equal(opened.pending(ids), table.pending(ids))
    assert opened.pending(ids[:500]).tolist() == [1] * 500
    assert opened.statistics()["pending"] < 2_050
    assert (opened.pending(ids[2_050:]) >= 1).mean() > 0.9  # some exact, some in the sketch
