"""Counting rules, admission, pooling and the way back of gradients."""

from datetime import timedelta

import numpy as np

from embedding_store import Optimizer
from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from tests.unit.trainer.example_records import NOW_MS, make_batch, make_settings
from trainer.table_settings import create_budgets, create_tables
from trainer.tables import SparseTables, request_numbers

NOW_S = NOW_MS // 1_000


def _sparse(settings: Settings, encoder: FeatureEncoder) -> SparseTables:
    budgets = create_budgets(settings, encoder)
    return SparseTables(encoder.slots, create_tables(settings, encoder, budgets), budgets)


def _tables(min_count: int = 100) -> tuple[Settings, FeatureEncoder, SparseTables]:
    admission = {"min_count": min_count}
    settings = make_settings(
        features=[
            {"name": "user_id", "type": "id", "scope": "user", "dim": 2, "admission": admission},
            {"name": "item_id", "type": "id", "scope": "item", "dim": 2, "admission": admission},
            {"name": "tags", "type": "id_list", "scope": "item", "dim": 2, "pooling": "sum"},
            {"name": "last", "type": "recent", "event": "click", "max_len": 3},
        ]
    )
    encoder = FeatureEncoder(settings)
    return settings, encoder, _sparse(settings, encoder)


def _pending(sparse: SparseTables, table: str, ids: list[int]) -> list[int]:
    return [int(n) for n in sparse.tables[table].pending(np.array(ids, np.uint64))]


def _read(sparse: SparseTables, batch: ExampleBatch) -> None:
    sparse.read(batch, NOW_S)


def test_id_of_an_item_counts_once_per_request() -> None:
    _, encoder, sparse = _tables()
    batch = make_batch(
        encoder,
        {"item_id": [[7], [7], [8], [7]]},
        [1, 0, 0, 0],
        request_ids=["a", "a", "a", "b"],
        is_first=[True, False, False, True],
    )
    _read(sparse, batch)
    assert _pending(sparse, "item_id", [7, 8, 9]) == [2, 1, 0]


def test_id_of_a_user_counts_only_in_the_first_row_of_its_request() -> None:
    _, encoder, sparse = _tables()
    batch = make_batch(
        encoder,
        {"user_id": [[5], [5], [5]]},
        [1, 0, 0],
        request_ids=["a", "a", "b"],
        is_first=[True, False, False],
    )
    _read(sparse, batch)
    assert _pending(sparse, "user_id", [5]) == [1]


def test_only_rows_of_positive_weight_count() -> None:
    _, encoder, sparse = _tables()
    batch = make_batch(
        encoder,
        {"item_id": [[1], [2], [3], [3]]},
        [1, 0, 1, 0],
        request_ids=["a", "b", "c", "c"],
        weights=[[1], [0], [1], [-1]],
        is_reversal=[False, False, True, True],
    )
    _read(sparse, batch)
    assert _pending(sparse, "item_id", [1, 2, 3]) == [1, 0, 0]


def test_slots_that_share_a_table_count_a_pair_once() -> None:
    _, encoder, sparse = _tables()
    batch = make_batch(encoder, {"item_id": [[4]], "last": [[4, 6]]}, [1])
    _read(sparse, batch)
    assert _pending(sparse, "item_id", [4, 6]) == [1, 1]


def test_row_is_born_and_trained_in_the_batch_of_its_nth_occurrence() -> None:
    _, encoder, sparse = _tables(min_count=3)
    table = sparse.tables["item_id"]
    key = np.array([9], np.uint64)
    for n in range(2):
        sparse.read(make_batch(encoder, {"item_id": [[9]]}, [1], request_ids=[str(n)]), 1)
        sparse.learn(np.ones((1, 4, 3), np.float32))
    assert not table.contains(key)[0]  # the gradients before the third occurrence are dropped
    rows = sparse.read(
        make_batch(encoder, {"item_id": [[9], [9]]}, [1, 0], request_ids=["3", "4"]), 1
    )
    born = table.lookup(key)[0]
    np.testing.assert_array_equal(rows[:, 1], [born, born])
    sparse.learn(np.ones((2, 4, 3), np.float32))
    # Adagrad from 0.1, one step with the sum of both rows' gradients: 2.
    moved = born - 0.05 * 2 / (np.sqrt(0.1 + 4) + 1e-8)
    np.testing.assert_allclose(table.lookup(key)[0], moved, rtol=1e-6)


def test_bag_is_pooled_and_its_gradient_reaches_every_id() -> None:
    _, encoder, sparse = _tables()
    batch = make_batch(encoder, {"tags": [[1, 2], [], [2]]}, [1, 0, 0])
    pooled = sparse.read(batch, NOW_S)
    rows = sparse.tables["tags"].lookup(np.array([1, 2], np.uint64))
    np.testing.assert_allclose(pooled[:, 2], [rows[0] + rows[1], rows[0] * 0, rows[1]])
    gradients = np.zeros((3, 4, 3), np.float32)
    gradients[0, 2], gradients[2, 2] = 1.0, 0.5
    sparse.learn(gradients)
    moved = sparse.tables["tags"].lookup(np.array([1, 2], np.uint64))
    step = np.array([[1.0], [1.5]])
    np.testing.assert_allclose(moved, rows - 0.05 * step / np.sqrt(0.1 + step**2), rtol=1e-5)


def test_age_of_an_item_counts_from_the_birth_of_its_row() -> None:
    _, encoder, sparse = _tables(min_count=1)
    _read(sparse, make_batch(encoder, {"item_id": [[3]]}, [1]))
    born_s = sparse.item_born_s(make_batch(encoder, {"item_id": [[3], [], [4]]}, [0, 0, 0]).values)
    assert born_s.tolist() == [NOW_S, 0, 0]


def test_idle_rows_expire_step_by_step() -> None:
    settings = make_settings(
        features=[{"name": "item_id", "type": "id", "scope": "item", "dim": 2, "expire": "60s"}]
    )
    encoder = FeatureEncoder(settings)
    sparse = _sparse(settings, encoder)
    _read(sparse, make_batch(encoder, {"item_id": [[3]]}, [1]))
    sparse.expire(NOW_S + 60)
    assert len(sparse.tables["item_id"]) == 1
    sparse.expire(NOW_S + 61)
    assert len(sparse.tables["item_id"]) == 0


def test_configured_optimizers_reach_every_table() -> None:
    sparse = {
        "lr": 0.2, "accumulator_half_life": timedelta(seconds=90.5), "clip_norm": 3.0,
        "weight_decay": 0.1, "first_order": {"kind": "ftrl", "l1": 0.5, "clip_value": 2.0},
    }  # fmt: skip
    settings = make_settings(optimizer={"sparse": sparse})
    tables = _sparse(settings, FeatureEncoder(settings)).tables
    assert len(tables) > 1
    for table in tables.values():
        assert table.optimizer == Optimizer(
            "adagrad", lr=0.2, accumulator_half_life_s=91, clip_norm=3.0, weight_decay=0.1
        )
        assert table.first_order_optimizer == Optimizer("ftrl", lr=0.05, l1=0.5, clip_value=2.0)


def test_numbers_are_equal_where_the_request_is() -> None:
    numbers = request_numbers(["a", "b", "a", "c"])
    assert numbers.dtype == np.uint64
    assert numbers[0] == numbers[2]
    assert len(np.unique(numbers)) == 3
