"""Who gets a row, at which occurrence, and who reads it."""

import math

import numpy as np
import pytest

from tests.store.helpers import admit, ids_of, make


@pytest.mark.parametrize("min_count", [1, 2, 16, 100, 65_536])
def test_row_is_born_at_exactly_the_nth_occurrence(min_count: int) -> None:
    table = make(min_count=min_count)
    one = ids_of(42)
    if min_count > 1:
        step = max(1, (min_count - 1) // 50)
        for n in range(step, min_count, step):
            assert not admit(table, one, count=step).any()
            assert table.pending(one).item() == n
        left = min_count - 1 - table.pending(one).item()
        admit(table, one, count=int(left))
        assert table.pending(one).item() == min_count - 1
        assert not table.contains(one).any()
    assert admit(table, one).any()
    assert table.contains(one).all()
    assert table.pending(one).item() == 0
    assert table.statistics()["pending"] == 0


def test_occurrences_are_summed_within_a_batch_and_all_its_entries_read_the_newborn() -> None:
    table = make(min_count=3)
    rows = table.lookup_or_admit(
        ids_of(7, 8, 7, 7, 8, 7), np.array([1, 1, 0, 2, 1, 0], np.uint32), 5
    )
    assert rows[0].any()
    for entry in (2, 3, 5):
        assert rows[entry].tobytes() == rows[0].tobytes()
    assert not rows[[1, 4]].any()
    assert table.pending(ids_of(7, 8)).tolist() == [0, 2]


def test_count_zero_reads_and_leaves_no_trace() -> None:
    table = make(min_count=2, ttl_s=10)
    admit(table, ids_of(1, 1), now_s=5)
    zeros = np.zeros(3, np.uint32)
    rows = table.lookup_or_admit(ids_of(1, 2, 2), zeros, 9)
    assert rows[0].any()
    assert not rows[1:].any()
    assert table.last_seen_s(ids_of(1)).item() == 5
    assert table.pending(ids_of(2)).item() == 0
    assert table.statistics()["filtered"] == 1


def test_first_entry_beyond_one_group_reads_the_row_born_at_the_end() -> None:
    table = make(min_count=2)
    ids = np.concatenate([ids_of(5), np.arange(100, 400, dtype=np.uint64), ids_of(5)])
    rows = admit(table, ids)
    assert rows[0].any()
    assert rows[0].tobytes() == rows[-1].tobytes()
    assert not rows[1:-1].any()
    assert len(table) == 1


def test_many_new_ids_repeated_across_groups_are_born_once() -> None:
    table = make()
    ids = np.tile(np.arange(5_000, dtype=np.uint64), 3)
    rows = admit(table, ids)
    assert len(table) == table.statistics()["admitted"] == 5_000
    assert rows[:5_000].tobytes() == rows[10_000:].tobytes()


def test_large_counts_do_not_overflow() -> None:
    table = make(min_count=65_536)
    most = 2**32 - 1
    admit(table, ids_of(1), count=65_535)
    admit(table, ids_of(1, 2), count=most)
    assert table.contains(ids_of(1, 2)).all()
    admit(table, ids_of(1), count=most)
    assert len(table) == 2


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.01])
def test_share_of_ids_admitted_by_chance_is_within_three_sigma(probability: float) -> None:
    table = make(probability=probability)
    n = 100_000
    admit(table, np.arange(n, dtype=np.uint64))
    sigma = math.sqrt(n * probability * (1 - probability))
    assert abs(len(table) - n * probability) < 3 * sigma
    assert table.statistics()["filtered"] == n - len(table)
    assert table.statistics()["pending"] == 0


def test_each_occurrence_draws_anew() -> None:
    probability, count, n = 0.1, 5, 20_000
    expected = 1 - (1 - probability) ** count
    sigma = math.sqrt(n * expected * (1 - expected))
    ids = np.arange(n, dtype=np.uint64)
    at_once, one_by_one = make(probability=probability), make(probability=probability)
    admit(at_once, ids, count=count)
    for _ in range(count):
        admit(one_by_one, ids)
    for table in (at_once, one_by_one):
        assert abs(len(table) - n * expected) < 3 * sigma


def test_with_both_filters_only_occurrences_that_pass_the_draw_count() -> None:
    table = make(probability=0.5, min_count=3)
    n = 20_000
    admit(table, np.arange(n, dtype=np.uint64), count=4)
    expected = 5 / 16  # at least 3 of 4 fair draws
    assert abs(len(table) - n * expected) < 3 * math.sqrt(n * expected * (1 - expected))


def test_draws_depend_on_the_seed_and_repeat_with_it() -> None:
    ids = np.arange(2_000, dtype=np.uint64)
    tables = [make(probability=0.3, seed=seed) for seed in (1, 1, 2)]
    for table in tables:
        admit(table, ids)
    keys = [table.keys().tolist() for table in tables]
    assert keys[0] == keys[1] != keys[2]
