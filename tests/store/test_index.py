"""Exactness of ids: all of them, many of them, and those chosen to hurt."""

import numpy as np
import pytest

from embedding_store import ServingTable, StoreError
from tests.store.helpers import admit, ids_of, initial_row, make

SPECIAL = ids_of(0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)


def test_every_special_id_has_its_own_row() -> None:
    table = make(dim=8)
    rows = admit(table, SPECIAL)
    assert len(table) == len(SPECIAL)
    assert table.keys().tolist() == SPECIAL.tolist()
    for row_id, row in zip(SPECIAL, rows, strict=True):
        expected = initial_row(7, 3, int(row_id), 8, 0.05)
        assert row.tobytes() == expected.tobytes()


def test_initial_weights_stay_inside_the_scale_and_spread_evenly() -> None:
    table = make(dim=16, init_scale=0.1)
    rows = admit(table, np.arange(20_000, dtype=np.uint64))
    assert np.abs(rows).max() < np.float32(0.1)
    # Uniform: mean 0, standard deviation scale / sqrt(3); 320,000 draws, five sigma.
    assert abs(rows.mean()) < 5 * 0.1 / np.sqrt(3 * rows.size)
    assert abs(rows.std() - 0.1 / np.sqrt(3)) < 5e-4


def test_first_order_column_is_last_and_starts_at_zero() -> None:
    with_bias = make(first_order=True)
    without = make()
    assert (with_bias.width, without.width) == (5, 4)
    rows = admit(with_bias, SPECIAL)
    assert not rows[:, 4].any()
    assert rows[:, :4].tobytes() == admit(without, SPECIAL).tobytes()


def test_table_of_first_order_weights_alone() -> None:
    table = make(dim=0, first_order=True, optimizer="rowwise_adagrad")
    assert table.width == 1
    admit(table, ids_of(5))
    table.apply(ids_of(5), np.ones((1, 1), np.float32))
    assert table.lookup(ids_of(5)) == pytest.approx(-0.1)


def test_seed_slot_and_id_each_change_the_row() -> None:
    base = admit(make(), ids_of(9))
    assert not np.array_equal(base, admit(make(seed=8), ids_of(9)))
    assert not np.array_equal(base, admit(make(slot=4), ids_of(9)))
    assert not np.array_equal(base, admit(make(), ids_of(10)))


def test_growth_to_a_million_ids_loses_and_confuses_none() -> None:
    table = make(dim=1, init_scale=0.0, lr=1.0)
    ids = np.random.default_rng(1).permutation(
        np.arange(1_000_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    )
    marks = np.arange(1_000_000, dtype=np.float32)[:, None]
    for start in range(0, len(ids), 50_000):
        batch = ids[start : start + 50_000]
        admit(table, batch)
        table.apply(batch, -marks[start : start + 50_000])
    assert len(table) == 1_000_000
    np.testing.assert_array_equal(table.lookup(ids), marks)
    np.testing.assert_array_equal(table.keys(), np.sort(ids))
    assert not table.contains(ids + np.uint64(1)).any()


@pytest.mark.parametrize("shift", [0, 13, 32, 44])
def test_ids_that_differ_in_few_bits_only_stay_exact(shift: int) -> None:
    table = make(dim=1, init_scale=0.0, lr=1.0)
    ids = np.arange(20_000, dtype=np.uint64) << np.uint64(shift)
    admit(table, ids)
    table.apply(ids, -np.arange(20_000, dtype=np.float32)[:, None])
    np.testing.assert_array_equal(table.lookup(ids)[:, 0], np.arange(20_000))
    assert table.erase(ids[::2]) == 10_000
    assert table.contains(ids).tolist() == [0, 1] * 10_000
    np.testing.assert_array_equal(table.lookup(ids[1::2])[:, 0], np.arange(1, 20_000, 2))


def test_rows_do_not_depend_on_the_history_of_growth() -> None:
    ids = np.random.default_rng(2).integers(0, 2**64, 30_000, np.uint64)
    gradients = np.random.default_rng(3).normal(size=(30_000, 4)).astype(np.float32)
    reserved = make(initial_rows=100_000)
    grown = make()
    admit(reserved, ids)
    for start in range(0, 30_000, 777):
        admit(grown, ids[::-1][start : start + 777])
    for table in (reserved, grown):
        table.apply(ids, gradients)
    for left, right in zip(reserved.delta(0), grown.delta(0), strict=True):
        np.testing.assert_array_equal(left, right)


def test_serving_table_answers_what_was_put_and_forgets_what_was_removed() -> None:
    table = ServingTable(width=3, initial_rows=0)
    keys = np.concatenate([SPECIAL, np.arange(100, 9_100, dtype=np.uint64)])
    rows = np.random.default_rng(4).normal(size=(len(keys), 3)).astype(np.float32)
    table.upsert(keys, rows)
    values, found = table.lookup(keys)
    np.testing.assert_array_equal(values, rows)
    assert found.all()
    assert table.remove(keys[::2]) == len(keys[::2])
    values, found = table.lookup(keys)
    assert not values[::2].any()
    assert found.tolist() == [0, 1] * (len(keys) // 2)
    np.testing.assert_array_equal(table.keys(), np.sort(keys[1::2]))
    table.upsert(keys[:2], rows[:2] * 2)
    np.testing.assert_array_equal(table.lookup(keys[:2])[0], rows[:2] * 2)
    assert len(table) == len(keys) // 2 + 1


def test_serving_table_keeps_the_later_of_two_rows_with_one_key() -> None:
    table = ServingTable(width=1, initial_rows=10)
    table.upsert(ids_of(4, 5, 4), np.array([[1], [2], [3]], np.float32))
    values, _ = table.lookup(ids_of(4, 5))
    assert values[:, 0].tolist() == [3, 2]
    assert len(table) == 2
    assert table.nbytes > 0


def test_serving_width_zero_is_refused() -> None:
    with pytest.raises(StoreError, match="width is 0"):
        ServingTable(width=0, initial_rows=0)
