"""Deltas: nothing lost, nothing twice, and base + deltas = the table."""

import numpy as np
import pytest

from embedding_store import ServingTable, StoreError, Table
from tests.store.helpers import F32, U64, admit, ids_of, make


def test_advance_closes_the_version_it_returns() -> None:
    table = make()
    assert table.version == 1
    assert table.advance() == 1
    assert table.version == 2


def test_versions_end_at_31_bits_and_say_so() -> None:
    table = make()
    admit(table, ids_of(1))
    first = table.advance()
    rows = table.rows_from(0, 1)[1:]
    put = (*rows[:2], None, *rows[3:])
    with pytest.raises(StoreError, match="table_version is 2147483648; it must be at most"):
        table.put_rows(*put, table_version=2**31)
    assert table.version == first + 1
    table.put_rows(*put, table_version=2**31 - 1)
    with pytest.raises(StoreError, match="version is 2147483647, the last there is"):
        table.advance()
    assert table.version == 2**31 - 1
    assert table.rows_from(0, 1)[3].tolist() == [2**31 - 1]
    assert table.delta(2**31 - 2)[0].tolist() == [1]
    assert Table.restore(table.snapshot()).snapshot() == table.snapshot()


def test_delta_holds_only_what_changed_since() -> None:
    table = make()
    admit(table, ids_of(5, 3, 9))
    first = table.advance()
    table.apply(ids_of(9, 3), np.ones((2, 4), np.float32))
    second = table.advance()
    admit(table, ids_of(1))
    keys, rows, tombstones = table.delta(first)
    assert keys.tolist() == [1, 3, 9]
    np.testing.assert_array_equal(rows, table.lookup(keys))
    assert tombstones.size == 0
    assert table.delta(second)[0].tolist() == [1]
    assert table.delta(table.version)[0].size == 0
    assert table.delta(0)[0].tolist() == [1, 3, 5, 9]


@pytest.mark.parametrize(
    "spread", ["all", "close", "two ends", "one outlier"], ids=lambda kind: kind.replace(" ", "-")
)
def test_delta_of_many_rows_ascends_however_keys_are_spread(spread: str) -> None:
    rng = np.random.default_rng(3)
    n = 70_000
    keys = {
        "all": rng.integers(0, 2**64, n, np.uint64),
        "close": 2**63 + rng.permutation(n).astype(np.uint64),
        "two ends": rng.permutation(n).astype(np.uint64) - np.uint64(n // 2),  # around 0
        "one outlier": np.append(rng.permutation(n).astype(np.uint64), np.uint64(2**64 - 1)),
    }[spread]
    table = make()
    admit(table, keys)
    found, rows, _ = table.delta(0)
    np.testing.assert_array_equal(found, np.unique(keys))
    np.testing.assert_array_equal(rows, table.lookup(found))


def test_reading_changes_no_version() -> None:
    table = make()
    admit(table, ids_of(1))
    version = table.advance()
    table.lookup(ids_of(1))
    admit(table, ids_of(1))
    assert table.delta(version)[0].size == 0


def test_the_later_of_upsert_and_tombstone_wins() -> None:
    table = make()
    admit(table, ids_of(1, 2, 3))
    version = table.advance()
    table.erase(ids_of(1, 2))
    table.advance()
    admit(table, ids_of(2))  # came back
    table.apply(ids_of(3), np.ones((1, 4), np.float32))
    table.erase(ids_of(3))  # changed, then went
    keys, _, tombstones = table.delta(version)
    assert keys.tolist() == [2]
    assert tombstones.tolist() == [1, 3]


def test_tombstones_stay_until_trimmed() -> None:
    table = make()
    admit(table, ids_of(1, 2))
    table.erase(ids_of(1))
    first = table.advance()
    table.erase(ids_of(2))
    second = table.advance()
    assert table.delta(0)[2].tolist() == [1, 2]
    assert table.delta(first)[2].tolist() == [2]
    assert table.trim_tombstones(first) == 1
    assert table.delta(0)[2].tolist() == [2]
    assert table.trim_tombstones(second) == 1
    assert table.statistics()["tombstones"] == 0


def follow(replica: ServingTable, delta: tuple[U64, F32, U64]) -> None:
    keys, rows, tombstones = delta
    assert not np.intersect1d(keys, tombstones).size
    assert (np.diff(keys.astype(object)) > 0).all()
    assert (np.diff(tombstones.astype(object)) > 0).all()
    replica.upsert(keys, rows)
    replica.remove(tombstones)


def assert_same(replica: ServingTable, table: Table) -> None:
    keys = table.keys()
    np.testing.assert_array_equal(replica.keys(), keys)
    rows, found = replica.lookup(keys)
    assert found.all()
    np.testing.assert_array_equal(rows, table.lookup(keys))


def test_base_and_deltas_replayed_equal_the_whole_table() -> None:
    rng = np.random.default_rng(6)
    table = make(ttl_s=30, min_count=2, first_order=True, optimizer="adagrad")
    always, late = ServingTable(width=5, initial_rows=0), ServingTable(width=5, initial_rows=0)
    base_version, seen = 0, 0
    for now_s in range(1, 200):
        ids = rng.integers(0, 300, 40, np.uint64)
        admit(table, ids, now_s)
        table.apply(ids, rng.normal(size=(40, 5)).astype(np.float32))
        table.expire(now_s, 50)
        table.erase(rng.integers(0, 300, 2, np.uint64))
        if now_s % 7 == 0:
            follow(always, table.delta(seen))
            seen = table.advance()
        if now_s == 70:
            follow(late, table.delta(0))
            base_version = table.advance()
    assert table.statistics()["expired"] > 20
    follow(always, table.delta(seen))
    follow(late, table.delta(base_version))  # one cumulative delta instead of many
    assert_same(always, table)
    assert_same(late, table)


def test_a_reader_that_is_ahead_is_told_so() -> None:
    table = make()
    admit(table, ids_of(1))
    ended = table.advance()
    assert len(table.delta(ended)[0]) == 0
    with pytest.raises(StoreError, match="fill it anew"):
        table.delta(ended + 2)


@pytest.mark.parametrize("erased", [False, True])
def test_rows_put_with_an_older_version_reach_readers_all_the_same(erased: bool) -> None:
    table = make()
    admit(table, ids_of(1))
    rows = table.rows_from(0, 10)[1:]
    table.advance()
    if erased:
        table.erase(ids_of(1))
    seen = table.advance()
    table.put_rows(*rows)
    keys, _, gone = table.delta(seen)
    assert (keys.tolist(), gone.tolist()) == ([1], [])
