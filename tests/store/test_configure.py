"""What may change while a table lives, and that a snapshot keeps it."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from embedding_store import Optimizer, StoreError, Table
from tests.store.helpers import admit, ids_of, make, plain

POLICY: dict[str, Any] = {
    "optimizer": plain("sgd", lr=0.5), "min_count": 3, "probability": 1.0, "ttl_s": 10,
}  # fmt: skip


def test_a_new_learning_rate_moves_the_next_step() -> None:
    table = make(optimizer="sgd", lr=0.1)
    before = admit(table, ids_of(1))
    table.configure(**POLICY)
    table.apply(ids_of(1), np.ones((1, 4), np.float32))
    np.testing.assert_allclose(table.lookup(ids_of(1)), before - 0.5, rtol=1e-6)


def test_a_new_threshold_holds_for_ids_to_come() -> None:
    table = make(min_count=1)
    admit(table, ids_of(1))
    table.configure(**POLICY | {"min_count": 3})
    admit(table, ids_of(2), count=2)
    assert table.contains(ids_of(1, 2)).tolist() == [1, 0]
    admit(table, ids_of(2))
    assert table.contains(ids_of(2)).tolist() == [1]


def test_a_shorter_time_to_live_expires_what_it_finds_too_old() -> None:
    table = make(ttl_s=0)
    admit(table, ids_of(1), now_s=100)
    table.configure(**POLICY | {"ttl_s": 10, "min_count": 1})
    assert table.expire(111, 1_000) == 1


def test_a_snapshot_keeps_the_changed_policy() -> None:
    table = make(ttl_s=0)
    table.configure(**POLICY)
    restored = Table.restore(table.snapshot())
    admit(restored, ids_of(9), now_s=5, count=2)
    assert restored.contains(ids_of(9)).tolist() == [0]
    admit(restored, ids_of(9), now_s=5)
    assert restored.expire(16, 1_000) == 1


def test_a_refused_policy_changes_nothing() -> None:
    table = make(optimizer="sgd", lr=0.1)
    before = admit(table, ids_of(1))
    with pytest.raises(StoreError, match="probability is -1"):
        table.configure(**POLICY | {"probability": -1.0})
    table.apply(ids_of(1), np.ones((1, 4), np.float32))
    np.testing.assert_allclose(table.lookup(ids_of(1)), before - 0.1, rtol=1e-6)


def test_a_table_tells_what_its_rows_are() -> None:
    table = make(dim=4, optimizer="rowwise_adagrad")
    assert (table.dim, table.width) == (4, 4)
    assert table.optimizer == plain("rowwise_adagrad")
    assert table.first_order_optimizer is None


def configure(table: Table, optimizer: Optimizer, first_order: Optimizer | None = None) -> None:
    table.configure(**POLICY | {"optimizer": optimizer, "first_order_optimizer": first_order})


@pytest.mark.parametrize(
    ("held", "wanted", "said"),
    [
        (plain("adam"), plain("sgd"), "rows hold the state of adam, not of sgd"),
        (plain("adagrad"), plain("rowwise_adagrad"), "state of adagrad, not of rowwise_adagrad"),
        (plain("adagrad"), plain("adagrad", accumulator_half_life_s=9), "on or off"),
        (plain("adagrad", accumulator_half_life_s=9), plain("adagrad"), "on or off"),
        (plain("ftrl", beta=1.0), plain("ftrl", beta=2.0), "beta is 1.0.* cannot change to 2.0"),
    ],
)
def test_what_the_state_rests_on_cannot_change(
    held: Optimizer, wanted: Optimizer, said: str
) -> None:
    row = make(held.kind, **{k: v for k, v in asdict(held).items() if k != "kind"})
    before = row.snapshot()
    with pytest.raises(StoreError, match=f"^[^.]*{said}"):
        configure(row, wanted)
    assert row.snapshot() == before
    column = make("sgd", first_order=True, first_order_optimizer=held)
    with pytest.raises(StoreError, match=rf"^first_order_optimizer\..*{said}"):
        configure(column, plain("sgd"), wanted)


def test_an_optimizer_of_the_first_order_column_is_neither_given_nor_taken() -> None:
    for first_order, wanted in ((None, plain("ftrl")), (plain("ftrl"), None)):
        table = make("sgd", first_order=True, first_order_optimizer=first_order)
        with pytest.raises(StoreError, match="cannot be given or taken away"):
            configure(table, plain("sgd"), wanted)


def test_all_other_values_of_an_optimizer_change_with_the_next_step() -> None:
    table = make("adagrad", first_order=True, first_order_optimizer=plain("ftrl"), init_scale=0.0)
    admit(table, ids_of(1))
    vector = plain("adagrad", lr=1.0, weight_decay=0.5, clip_value=2.0, initial_accumulator=5.0)
    column = plain("ftrl", lr=0.5, l1=0.1, clip_norm=1.0)
    configure(table, vector, column)
    assert (table.optimizer, table.first_order_optimizer) == (vector, column)
    table.apply(ids_of(1), np.full((1, 5), 9, np.float32))
    # Adagrad's first step is lr * sign; the column's gradient is 1, its divisor beta + 1.
    np.testing.assert_allclose(table.lookup(ids_of(1)), [[-1] * 4 + [-0.5 * 0.9 / 2]], rtol=1e-6)


def test_a_new_rate_of_ftrl_moves_no_weight_by_itself() -> None:
    table = make("ftrl", lr=0.1)
    admit(table, ids_of(1))
    table.apply(ids_of(1), np.full((1, 4), 3, np.float32))
    before = table.lookup(ids_of(1))
    configure(table, plain("ftrl", lr=0.9))
    table.apply(ids_of(1), np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(table.lookup(ids_of(1)), before, rtol=1e-6)


def test_what_is_not_given_stays() -> None:
    table = make(
        "adagrad",
        first_order=True,
        first_order_optimizer=plain("ftrl"),
        min_count=3,
        probability=0.5,
        ttl_s=9,
        min_rows=2,
        count_half_life_s=7,
    )
    table.configure(optimizer=replace(table.optimizer, lr=0.01))
    assert table.optimizer == plain("adagrad", lr=0.01)
    assert table.first_order_optimizer == plain("ftrl")
    told = (table.min_count, table.probability, table.ttl_s, table.min_rows)
    assert (*told, table.count_half_life_s) == (3, 0.5, 9, 2, 7)
    table.configure(ttl_s=10)
    assert (table.ttl_s, table.min_count, table.optimizer.lr) == (10, 3, 0.01)
    assert (table.seed, table.slot, table.max_bytes) == (7, 3, 0)
