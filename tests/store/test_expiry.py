"""Event time, its clock, and what goes when nobody asked for it any more."""

import numpy as np

from tests.store.helpers import admit, ids_of, make

ALL = 1 << 40


def test_row_is_kept_through_its_time_to_live_and_gone_after_it() -> None:
    table = make(ttl_s=100)
    admit(table, ids_of(1), now_s=1_000)
    assert table.expire(1_099, ALL) == 0
    assert table.expire(1_100, ALL) == 0
    assert table.contains(ids_of(1)).all()
    assert table.expire(1_101, ALL) == 1
    assert not table.contains(ids_of(1)).any()
    assert not table.lookup(ids_of(1)).any()
    assert table.statistics()["expired"] == 1


def test_a_late_event_never_moves_the_clock_back() -> None:
    table = make(ttl_s=100)
    admit(table, ids_of(1), now_s=1_000)
    admit(table, ids_of(2), now_s=500)
    assert table.statistics()["clock_s"] == 1_000
    table.expire(10, ALL)
    assert table.statistics()["clock_s"] == 1_000
    # The row seen 500 s before the clock is stale; the one seen at the clock is not.
    assert table.keys().tolist() == [1]


def test_last_seen_is_the_latest_time_not_the_last_told() -> None:
    table = make(ttl_s=100)
    for now_s in (1_000, 1_050, 900):
        admit(table, ids_of(1), now_s=now_s)
    assert table.last_seen_s(ids_of(1, 2)).tolist() == [1_050, 0]
    assert table.born_s(ids_of(1, 2)).tolist() == [1_000, 0]
    assert table.expire(1_150, ALL) == 0
    assert table.expire(1_151, ALL) == 1


def test_without_time_to_live_nothing_ever_goes() -> None:
    table = make(ttl_s=0, min_count=2)
    admit(table, ids_of(1, 1, 2), now_s=1)
    assert table.expire(2**32 - 1, ALL) == 0
    assert table.contains(ids_of(1)).all()
    assert table.pending(ids_of(2)).item() == 1


def test_largest_time_to_live_does_not_overflow() -> None:
    table = make(ttl_s=2**32 - 1)
    admit(table, ids_of(1), now_s=2**32 - 2)
    assert table.expire(2**32 - 1, ALL) == 0


def test_sweep_visits_at_most_the_slice_and_goes_on_where_it_stopped() -> None:
    table = make(ttl_s=10)
    admit(table, np.arange(100, dtype=np.uint64), now_s=1)
    removed = [table.expire(1_000, 30) for _ in range(5)]
    assert removed == [30, 30, 30, 10, 0]
    assert table.expire(1_000, 0) == 0


def test_pending_counts_expire_too() -> None:
    table = make(ttl_s=10, min_count=2)
    admit(table, ids_of(1), now_s=100)
    admit(table, ids_of(2), now_s=105)
    table.expire(111, ALL)
    assert table.pending(ids_of(1, 2)).tolist() == [0, 1]
    admit(table, ids_of(1, 2), now_s=111)
    assert table.contains(ids_of(1, 2)).tolist() == [0, 1]


def test_pending_count_lives_from_its_latest_occurrence() -> None:
    table = make(ttl_s=10, min_count=5)
    for now_s in (100, 109, 104):
        admit(table, ids_of(1), now_s=now_s)
    table.expire(119, ALL)
    assert table.pending(ids_of(1)).item() == 3
    table.expire(120, ALL)
    assert table.pending(ids_of(1)).item() == 0


def test_memory_of_expired_rows_is_used_again() -> None:
    table = make(ttl_s=10)
    bytes_after = []
    for cycle in range(10):
        start = np.uint64(cycle * 20_000)
        admit(table, np.arange(20_000, dtype=np.uint64) + start, now_s=cycle * 100)
        assert len(table) == 20_000
        table.trim_tombstones(table.advance())
        bytes_after.append(table.statistics()["bytes"])
        assert table.expire(cycle * 100 + 50, ALL) == 20_000
    assert table.statistics()["capacity"] < 40_000
    # Shards may yet grow by half, once: which ids meet in one is different in every run.
    assert bytes_after[-1] < 1.5 * bytes_after[1]


def test_erase_takes_rows_and_pending_counts_and_counts_rows_once() -> None:
    table = make(min_count=2)
    admit(table, ids_of(1, 1, 2, 2, 3))
    assert table.erase(ids_of(1, 1, 3, 4)) == 1
    assert table.keys().tolist() == [2]
    assert table.pending(ids_of(1, 3)).tolist() == [0, 0]
    assert table.statistics()["erased"] == 1
    assert table.delta(0)[2].tolist() == [1]
