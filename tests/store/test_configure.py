"""What may change while a table lives, and that a snapshot keeps it."""

from typing import Any

import numpy as np
import pytest

from embedding_store import StoreError, Table
from tests.store.helpers import admit, ids_of, make

POLICY: dict[str, Any] = {"lr": 0.5, "l2": 0.0, "min_count": 3, "probability": 1.0, "ttl_s": 10}


def test_a_new_learning_rate_moves_the_next_step() -> None:
    table = make(optimizer="sgd", lr=0.1)
    before = admit(table, ids_of(1))
    table.configure(**POLICY | {"lr": 0.5})
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
    with pytest.raises(StoreError, match="lr is -1"):
        table.configure(**POLICY | {"lr": -1.0})
    table.apply(ids_of(1), np.ones((1, 4), np.float32))
    np.testing.assert_allclose(table.lookup(ids_of(1)), before - 0.1, rtol=1e-6)


def test_a_table_tells_what_its_rows_are() -> None:
    table = make(dim=4, optimizer="rowwise_adagrad")
    assert (table.dim, table.width, table.optimizer) == (4, 4, "rowwise_adagrad")
