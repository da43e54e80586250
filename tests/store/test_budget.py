"""Tables that stay within their bytes whatever comes, and say what that costs."""

import gc
import time
from typing import Any

import numpy as np
import pytest

from embedding_store import Budget, ServingTable, StoreError, Table
from tests.proofs import record, scale
from tests.store.helpers import U64, admit, ids_of, make

MIB = 1 << 20
ALL = 1 << 40
FLOOD_S = scale("flood", 2)


def new_ids(rng: np.random.Generator, n: int) -> U64:
    return rng.integers(1 << 32, 2**64, n, np.uint64)


@pytest.mark.parametrize("settings", [{}, {"dim": 16, "optimizer": "rowwise_adagrad"}])
def test_a_flood_of_new_ids_stays_within_the_budget(settings: dict[str, Any]) -> None:
    table = make(max_bytes=16 * MIB, min_count=1, **settings)
    rng = np.random.default_rng(1)
    regulars = np.arange(2_000, dtype=np.uint64)
    end_s, now_s, n_calls = time.process_time() + FLOOD_S, 0, 0
    while time.process_time() < end_s:
        now_s, n_calls = now_s + 1, n_calls + 1
        admit(table, new_ids(rng, 4_096), now_s)
        admit(table, np.repeat(rng.permutation(regulars)[:256], 4), now_s)
        table.trim_tombstones(table.advance())
        statistics = table.statistics()
        assert statistics["bytes"] <= statistics["peak_bytes"] <= statistics["budget_bytes"]
        assert statistics["budget_bytes"] <= 16 * MIB
        assert statistics["rows"] <= statistics["max_rows"]
    assert statistics["rows"] > 0.85 * statistics["max_rows"]
    assert statistics["peak_bytes"] > 0.6 * 16 * MIB
    assert statistics["threshold"] > 1
    assert table.contains(regulars).all()
    record(
        f"a flood of new ids stays within 16 MiB, {table.optimizer.kind}, {table.width} floats",
        seconds=FLOOD_S,
        new_ids=f"{n_calls * 4_096:,}",
        evicted=f"{statistics['evicted']:,}",
        peak_mib=round(statistics["peak_bytes"] / MIB, 2),
    )


def test_admission_tightens_before_anything_is_evicted() -> None:
    table = make(max_bytes=16 * MIB, min_count=3)
    max_rows = table.statistics()["max_rows"]
    thresholds = []
    for n in range(0, max_rows, max_rows // 64):
        admit(table, np.arange(n, min(n + max_rows // 64, max_rows), dtype=np.uint64), count=48)
        statistics = table.statistics()
        thresholds.append(statistics["threshold"])
        assert statistics["evicted"] == 0
    assert thresholds == sorted(thresholds)
    assert set(thresholds) == {3, 6, 12, 24, 48}
    n_rows = len(table)
    admit(table, np.arange(1 << 32, (1 << 32) + 10_000, dtype=np.uint64), now_s=2, count=47)
    assert table.statistics()["evicted"] == 0
    assert len(table) == n_rows


def test_the_least_valuable_rows_go_and_a_replica_hears_of_it() -> None:
    table = make(max_bytes=8 * MIB, min_count=2)
    replica = ServingTable(width=4, initial_rows=0)
    max_rows = table.statistics()["max_rows"]
    busy, idle = np.split(np.arange(max_rows, dtype=np.uint64), 2)
    rng = np.random.default_rng(3)
    order = rng.permutation(max_rows)
    admit(table, order.astype(np.uint64), now_s=10, count=32)
    admit(table, busy, now_s=10, count=1_000)
    since = 0
    for now_s in range(20, 60):
        for _ in range(2):  # wanted in one call, born in the next
            admit(table, np.arange(100, dtype=np.uint64) + np.uint64(now_s << 32), now_s, count=40)
        keys, rows, tombstones = table.delta(since)
        replica.upsert(keys, rows)
        replica.remove(tombstones)
        since = table.advance()
        table.trim_tombstones(since)
        np.testing.assert_array_equal(replica.keys(), table.keys())
    statistics = table.statistics()
    assert statistics["evicted"] == 40 * 100
    assert table.contains(busy).all()
    assert table.contains(idle).sum() == len(idle) - 40 * 100
    assert table.contains(np.arange(100, dtype=np.uint64) + np.uint64(59 << 32)).all()


def test_frequency_fades_so_that_what_was_busy_once_can_go() -> None:
    table = make(max_bytes=8 * MIB, count_half_life_s=100)
    max_rows = table.statistics()["max_rows"]
    once, now = np.split(np.arange(max_rows, dtype=np.uint64), 2)
    admit(table, once, now_s=1, count=5_000)
    admit(table, now, now_s=1_001, count=50)
    for _ in range(2):
        admit(table, np.arange(1 << 32, (1 << 32) + 500, dtype=np.uint64), 1_002, count=16)
    assert table.statistics()["evicted"] == 500
    assert table.contains(now).all()


def test_memory_is_flat_over_ten_fills_and_expiries() -> None:
    table = make(max_bytes=16 * MIB, ttl_s=10, min_count=2, initial_rows=20_000)
    held = []
    for cycle in range(10):
        now_s = 100 + 100 * cycle
        ids = np.arange(20_000, dtype=np.uint64) + np.uint64(cycle * 1_000_000)
        admit(table, ids, now_s, count=2)
        admit(table, ids + np.uint64(500_000), now_s)
        table.trim_tombstones(table.advance())
        held.append(table.statistics()["bytes"])
        assert table.expire(now_s + 50, ALL) == 20_000
        assert table.statistics()["pending"] == 0
    assert max(held[1:]) < 1.1 * held[1]


def test_tables_share_one_budget_and_give_it_back() -> None:
    budget = Budget(32 * MIB)
    tables = [make(dim=dim, budget=budget, slot=dim) for dim in (4, 16)]
    rng = np.random.default_rng(5)
    for now_s in range(60):
        for table in tables:
            admit(table, np.repeat(new_ids(rng, 5_000), 16), now_s)
            table.trim_tombstones(table.advance())
        peaks = [table.statistics()["peak_bytes"] for table in tables]
        leases = [table.statistics()["budget_bytes"] for table in tables]
        assert all(peak <= lease for peak, lease in zip(peaks, leases, strict=True))
        assert sum(leases) == budget.used_bytes <= budget.max_bytes
    assert budget.used_bytes > 0.8 * budget.max_bytes
    assert sum(table.statistics()["evicted"] for table in tables) > 0
    del table, tables[0]
    gc.collect()
    assert budget.used_bytes == tables[0].statistics()["budget_bytes"]
    rows_before = tables[0].statistics()["max_rows"]
    for now_s in range(60, 90):
        admit(tables[0], np.repeat(new_ids(rng, 4_000), 16), now_s)
    assert tables[0].statistics()["max_rows"] > rows_before


def test_a_table_under_its_budget_goes_on_bit_for_bit_after_a_restore() -> None:
    def churn(table: Table, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for now_s in range(seed * 50, seed * 50 + 30):
            ids = rng.zipf(1.1, 3_000).astype(np.uint64) % np.uint64(1 << 40)
            admit(table, np.concatenate([ids, np.repeat(new_ids(rng, 1_500), 16)]), now_s)
            table.apply(ids, rng.normal(size=(len(ids), 4)).astype(np.float32))
            table.expire(now_s, 500)
            if now_s % 10 == 0:
                table.trim_tombstones(table.advance())

    tables = [make(max_bytes=5 * MIB, ttl_s=60) for _ in range(2)]
    for table in tables:
        churn(table, 1)
    data = tables[0].snapshot()
    assert data == tables[1].snapshot()
    tables[1] = Table.restore(data)
    assert tables[1].statistics()["peak_bytes"] <= 5 * MIB
    for table in tables:
        churn(table, 2)
    assert tables[0].snapshot() == tables[1].snapshot()
    assert tables[0].statistics()["evicted"] > 100


def test_a_budget_within_another_limits_some_tables_within_the_limit_of_all() -> None:
    shared = Budget(32 * MIB)
    own = Budget(8 * MIB, within=shared)
    tables = [make(dim=16, budget=budget, slot=slot) for slot, budget in enumerate((own, shared))]
    rng = np.random.default_rng(6)
    for now_s in range(40):
        for table in tables:
            admit(table, np.repeat(new_ids(rng, 5_000), 16), now_s)
            table.trim_tombstones(table.advance())
    leases = [table.statistics()["budget_bytes"] for table in tables]
    assert own.used_bytes == leases[0] <= own.max_bytes
    assert shared.used_bytes == sum(leases) <= shared.max_bytes
    assert own.used_bytes > own.max_bytes // 2
    assert leases[1] > 2 * own.max_bytes
    # What the outer one refuses is not taken of the inner one either.
    with pytest.raises(StoreError, match="bytes; the budget has 9 left"):
        make(budget=Budget(9, within=shared))
    tight = Budget(64 * MIB, within=Budget(MIB))
    with pytest.raises(StoreError, match="bytes; the budget has 1048576 left"):
        make(budget=tight)
    assert tight.used_bytes == 0
    del table, tables[:]
    gc.collect()
    assert own.used_bytes == shared.used_bytes == 0


def test_a_restored_table_takes_its_room_from_the_budget_it_is_given() -> None:
    table = make(budget=Budget(32 * MIB))
    admit(table, np.arange(60_000, dtype=np.uint64))
    budget = Budget(32 * MIB)
    restored = Table.restore(table.snapshot(), budget=budget)
    assert budget.used_bytes == restored.statistics()["budget_bytes"] > 0
    with pytest.raises(StoreError, match="the budget has room for 32768 rows"):
        Table.restore(table.snapshot(), budget=Budget(4 * MIB))
    assert Table.restore(table.snapshot()).statistics()["budget_bytes"] == 0


def test_a_table_without_a_budget_is_restored_into_one_that_holds_it() -> None:
    table = make(min_count=2)
    admit(table, np.repeat(np.arange(110_000, dtype=np.uint64), 2))
    table.erase(np.arange(50_000, dtype=np.uint64))
    admit(table, np.arange(1 << 32, (1 << 32) + 100_000, dtype=np.uint64))
    budget = Budget(256 * MIB)
    restored = Table.restore(table.snapshot(), budget=budget)
    counts = ("rows", "tombstones", "pending")
    before, after = table.statistics(), restored.statistics()
    assert [after[name] for name in counts] == [before[name] for name in counts]
    assert after["peak_bytes"] <= after["budget_bytes"] == budget.used_bytes
    Table.restore(table.snapshot(), budget=Budget(after["budget_bytes"]))
    with pytest.raises(StoreError, match="the budget has room"):
        Table.restore(table.snapshot(), budget=Budget(4 * MIB))


def test_without_room_for_tombstones_rows_wait_for_a_trim() -> None:
    table = make(max_bytes=5 * MIB, ttl_s=10)
    max_rows = table.statistics()["max_rows"]
    admit(table, np.arange(max_rows // 2, dtype=np.uint64), now_s=100)
    n_removed = table.expire(200, ALL)
    assert 0 < n_removed < max_rows // 2
    with pytest.raises(StoreError, match="trim_tombstones first"):
        table.erase(table.keys()[:1])
    assert table.expire(200, ALL) == 0
    table.trim_tombstones(table.advance())
    assert table.erase(table.keys()[:1]) == 1
    assert table.expire(200, ALL) > 0
    assert table.statistics()["peak_bytes"] <= 5 * MIB


def test_expiry_stops_at_the_fewest_rows_to_keep() -> None:
    table = make(ttl_s=10, min_rows=30)
    admit(table, np.arange(100, dtype=np.uint64), now_s=1)
    assert [table.expire(1_000, 50) for _ in range(3)] == [50, 20, 0]
    policy: dict[str, Any] = {
        "optimizer": table.optimizer,
        "min_count": 1,
        "probability": 1.0,
        "ttl_s": 10,
    }
    table.configure(**policy)
    assert table.expire(1_000, ALL) == 0
    table.configure(**policy, min_rows=5)
    assert table.expire(1_000, ALL) == 25


def test_limits_that_cannot_hold_are_refused() -> None:
    with pytest.raises(StoreError, match=r"takes \d+ bytes; max_bytes is 9"):
        make(max_bytes=9)
    with pytest.raises(StoreError, match="bytes; the budget has 1048576 left"):
        make(budget=Budget(MIB))
    with pytest.raises(StoreError, match="initial_rows is 1000000; the budget has room for"):
        make(max_bytes=8 * MIB, initial_rows=1_000_000)
    assert [make(pending_bytes=n).pending_bytes for n in (0, 1 << 16)] == [0, 1 << 16]
    with pytest.raises(StoreError, match="pending_bytes is 1000; it must be 0 or at least 65536"):
        make(pending_bytes=1_000)
    settings: list[dict[str, Any]] = [{"max_bytes": -1}, {"pending_bytes": -1}, {"min_rows": -1}]
    for one in settings:
        with pytest.raises(StoreError, match=f"{next(iter(one))} is -1"):
            make(**one)
    with pytest.raises(StoreError, match="count_half_life_s is"):
        make(count_half_life_s=2**32)
    with pytest.raises(StoreError, match="max_bytes is -1"):
        Budget(-1)


def test_reserved_rows_fit_the_budget_that_was_asked() -> None:
    table = make(max_bytes=16 * MIB, initial_rows=60_000)
    assert table.statistics()["capacity"] >= 60_000
    assert table.statistics()["peak_bytes"] <= 16 * MIB
    admit(table, ids_of(1))


def test_row_of_16_weights_and_one_accumulator_takes_a_line_and_44_bytes() -> None:
    table = make("rowwise_adagrad", dim=16, initial_rows=1 << 18)
    # 16 and 12 of metadata and 16 of the index, which reserves what its parts may fill unevenly.
    assert 64 + 28 + 16 <= table.statistics()["bytes"] / (1 << 18) <= 64 + 28 + 18


def test_rows_beyond_a_budget_are_refused_before_any_is_put() -> None:
    source = make(dim=64, ttl_s=9)
    admit(source, np.arange(40_000, dtype=np.uint64), now_s=50)
    columns: tuple[Any, ...] = source.rows_from(0, 40_000)
    _, keys, values, versions, *metadata = columns
    table = make(dim=64, ttl_s=9, min_count=2, max_bytes=4 * MIB)
    admit(table, ids_of(77_777), now_s=1)
    max_rows = table.statistics()["max_rows"]
    assert max_rows < len(keys)
    before = table.snapshot()
    with pytest.raises(StoreError, match=f"no room for 40000 new rows: .* {max_rows}, and 0 are"):
        table.put_rows(keys, values, versions, *metadata)
    assert table.snapshot() == before
    most = slice(max_rows)
    table.put_rows(keys[most], values[most], versions[most], *(own[most] for own in metadata))
    statistics = table.statistics()
    assert statistics["rows"] == max_rows
    assert statistics["peak_bytes"] <= statistics["budget_bytes"]
    assert statistics["clock_s"] == 50
    assert statistics["pending"] == 0  # the clock has moved on, for what waits too
    np.testing.assert_array_equal(table.lookup(keys[most]), values[most])
    table.put_rows(keys[:9], values[9:18], versions[:9], *(own[:9] for own in metadata))
    np.testing.assert_array_equal(table.lookup(keys[:9]), values[9:18])
    np.testing.assert_array_equal(Table.restore(table.snapshot()).keys(), keys[:max_rows])
