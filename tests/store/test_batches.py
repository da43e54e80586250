"""A batch's read and learn against the table's plain calls and one bag at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedding_store import StoreError, Table
from tests.store.helpers import admit, ids_of, make
from tests.store.reference_pooling import first_of, pool, unpool

F32 = npt.NDArray[np.float32]
Slots = list[tuple[int, Any, Any, Any, str, int]]
N_SLOTS = 5


def _table(**changes: Any) -> Table:
    return make(**{"first_order": True, "optimizer": "adagrad", "eps": 1e-8, **changes})


def _random_batch(rng: np.random.Generator, n: int) -> tuple[Slots, npt.NDArray[np.uint64]]:
    """Slots 0 (one id a row), 2, 3 and 4 of a table; few ids, so that many are equal."""
    slots: Slots = []
    lengths = {0: np.ones(n, np.int64), **{s: rng.integers(0, s + 2, n) for s in (2, 3, 4)}}
    modes = {0: ("sum", 0), 2: ("sum", 0), 3: ("mean", 2), 4: ("sqrtn", 3)}
    for slot, length in lengths.items():
        offsets = np.concatenate([[0], np.cumsum(length)])
        ids = rng.integers(2**64 - 40, 2**64, offsets[-1], np.uint64)
        slots.append((slot, ids, offsets, rng.random(n) < 0.7, *modes[slot]))
    return slots, rng.integers(0, 5, n).astype(np.uint64)


def _plain_step(
    table: Table, slots: Slots, requests: npt.NDArray[np.uint64], now_s: int, gradients: F32
) -> F32:
    """Counting with a set, then the calls that know neither bags nor requests."""
    slots = [
        (slot, *first_of(ids, offsets, first_n), is_counted, mode, 0)
        for slot, ids, offsets, is_counted, mode, first_n in slots
    ]
    seen: set[tuple[int, int]] = set()
    counts = []
    for _, ids, offsets, is_counted, *_ in slots:
        for row in range(len(requests)):
            for one in ids[offsets[row] : offsets[row + 1]].tolist():
                pair = (int(requests[row]), one)
                counts.append(int(is_counted[row] and pair not in seen))
                seen |= {pair} if is_counted[row] else set()
    ids = np.concatenate([slot[1] for slot in slots])
    values = table.lookup_or_admit(ids, np.array(counts, np.uint32), now_s)
    pooled = np.full_like(gradients, 9)
    by_id = []
    start = 0
    for slot, own, offsets, _, mode, _ in slots:
        pooled[:, slot] = pool(values[start : start + len(own)], offsets, mode)
        by_id.append(unpool(np.ascontiguousarray(gradients[:, slot]), offsets, mode))
        start += len(own)
    table.apply(ids, np.concatenate(by_id))
    return pooled


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
@pytest.mark.parametrize("changes", [{"dim": 16}, {"min_count": 3}, {"probability": 0.4}])
def test_batches_leave_the_table_that_plain_calls_do_to_the_bit(
    optimizer: str, changes: dict[str, Any]
) -> None:
    batched, plain = (_table(optimizer=optimizer, ttl_s=5, **changes) for _ in range(2))
    rng = np.random.default_rng(3)
    for now_s in range(1, 40):
        slots, requests = _random_batch(rng, int(rng.integers(0, 30)))
        shape = (len(requests), N_SLOTS, batched.width)
        gradients = rng.normal(size=shape).astype(np.float32)
        pooled = np.full(shape, 9, np.float32)
        batched.read(slots, requests, now_s, pooled)
        assert batched.learn(gradients) <= 40
        expected = _plain_step(plain, slots, requests, now_s, gradients)
        np.testing.assert_array_equal(pooled, expected)
        for table in (batched, plain):
            table.expire(now_s, 10)
    assert len(batched) > 5
    assert batched.snapshot() == plain.snapshot()


def _one(ids: list[int], **changes: Any) -> Slots:
    fields = {
        "slot": 0,
        "ids": ids_of(*ids),
        "offsets": np.array([0, len(ids)]),
        "is_counted": np.ones(1, np.bool_),
        "mode": "sum",
        "first_n": 0,
    }
    return [tuple({**fields, **changes}.values())]


def test_read_is_learned_once_and_not_after_rows_have_left() -> None:
    table = _table(ttl_s=10)
    rows = np.zeros((1, 1, 5), np.float32)
    with pytest.raises(StoreError, match="no read"):
        table.learn(rows)
    table.read(_one([1, 2]), ids_of(0), 1, rows)
    with pytest.raises(StoreError, match="2 rows"):
        table.learn(np.zeros((2, 1, 5), np.float32))
    assert table.learn(rows) == 2
    with pytest.raises(StoreError, match="once"):
        table.learn(rows)
    table.read(_one([1, 2]), ids_of(0), 1, rows)
    table.erase(ids_of(2))
    with pytest.raises(StoreError, match="after rows left"):
        table.learn(rows)


def test_rows_stay_where_they_are_while_the_table_grows() -> None:
    table = _table()
    rows = np.empty((1, 1, 5), np.float32)
    table.read(_one([7]), ids_of(0), 1, rows)
    admit(table, np.arange(1_000, 90_000, dtype=np.uint64))
    before = table.lookup(ids_of(7))
    table.learn(np.ones((1, 1, 5), np.float32))
    assert (table.lookup(ids_of(7)) < before).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 1])}, "number of ids, 2"),
        ({"offsets": np.array([1, 2])}, "start at 0"),
        ({"offsets": np.array([0, 1, 2])}, "one length"),
        ({"slot": 3}, "slot 3 of 1"),
        ({"mode": "max"}, "mode is 'max'"),
        ({"first_n": -1}, "first_n is -1"),
        ({"is_counted": np.ones(2, np.bool_)}, "one length"),
        ({"is_counted": np.ones(1, np.uint8)}, "dtype bool"),
        ({"offsets": np.array([0, 2], np.int32)}, "dtype int64"),
    ],
)
def test_slot_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    table = _table()
    with pytest.raises((StoreError, ValueError, TypeError), match=message):
        table.read(_one([1, 2], **changes), ids_of(0), 1, np.empty((1, 1, 5), np.float32))
    assert len(table) == 0


@pytest.mark.parametrize("n_entries", [0, 1, 5])
def test_slot_of_too_few_entries_is_refused(n_entries: int) -> None:
    [slot] = _one([1])
    with pytest.raises(StoreError, match=f"not {n_entries} entries"):
        _table().read([slot[:n_entries]], ids_of(0), 1, np.empty((1, 1, 5), np.float32))  # type: ignore[list-item]


def test_array_of_another_shape_is_refused() -> None:
    table = _table()
    for out in (np.empty((2, 1, 5), np.float32), np.empty((1, 1, 4), np.float32)):
        with pytest.raises(ValueError, match="its shape is"):
            table.read(_one([1]), ids_of(0), 1, out)
    table.read(_one([1]), ids_of(0), 1, np.empty((1, 1, 5), np.float32))
    with pytest.raises(ValueError, match="one length"):
        table.learn(np.empty((1, 1, 4), np.float32))
    with pytest.raises(StoreError, match="C-contiguous"):
        table.learn(np.empty((1, 1, 10), np.float32)[:, :, ::2])


def test_threads_change_no_bit_of_any_result() -> None:
    results = []
    for threads in (1, 2, 5):
        rng = np.random.default_rng(11)
        table = _table(min_count=2, probability=0.7, ttl_s=30, dim=8)
        table.threads = threads
        result: list[Any] = []
        for now_s in range(1, 60):
            slots, requests = _random_batch(rng, int(rng.integers(0, 300)))
            ids = rng.integers(0, 900, int(rng.integers(0, 4_000))).astype(np.uint64)
            counts = rng.integers(0, 3, len(ids)).astype(np.uint32)
            if now_s % 3 == 0:  # gradients of other ids than those looked up last
                result.append(table.apply(ids[::2], np.ones((len(ids[::2]), 9), np.float32)))
            result.append(table.lookup_or_admit(ids, counts, now_s))
            if now_s % 4 == 0:  # rows leave between a lookup and its gradients
                result.append(table.erase(ids[:20]))
            result.append(table.apply(ids, rng.normal(size=(len(ids), 9)).astype(np.float32)))
            pooled = np.empty((len(requests), N_SLOTS, 9), np.float32)
            table.read(slots, requests, now_s, pooled)
            for slot in {0, 2, 3}:
                result.append(pooled[:, slot].copy())
            gradients = rng.normal(size=pooled.shape).astype(np.float32)
            result.append(table.learn(gradients))
            result.append(table.lookup(ids))
            offsets = np.append(np.sort(rng.integers(0, len(ids) + 1, 40)), len(ids))
            offsets[0] = 0
            bags = rng.normal(size=(40, 9)).astype(np.float32)
            result.append(table.apply_pooled(ids, offsets, bags, "mean"))
            result.append(table.lookup_pooled(ids, offsets, "sqrtn"))
            result.append(table.expire(now_s, 50))
        results.append([np.asarray(value).tobytes() for value in result] + [table.snapshot()])
    assert results[0] == results[1] == results[2]


def test_gradients_do_not_go_where_rows_were_at_the_lookup() -> None:
    table = make()
    ids = ids_of(1, 2, 3)
    admit(table, ids)
    table.erase(ids_of(2))
    admit(table, ids_of(4))  # in the memory that 2 has left
    born = table.lookup(ids_of(4))
    admit(table, ids)
    table.erase(ids)
    assert table.apply(ids, np.ones((3, 4), np.float32)) == 0
    table.lookup_or_admit(ids, np.zeros(3, np.uint32), 0)
    other = make()
    admit(other, ids)
    table.put_rows(*other.rows_from(0, 10)[1:])  # rows come between a lookup and its gradients
    assert table.apply(ids, np.ones((3, 4), np.float32)) == 3
    np.testing.assert_array_equal(table.lookup(ids_of(4)), born)


@pytest.mark.parametrize("n", [0, -1, 65])
def test_threads_out_of_range_are_refused(n: int) -> None:
    table = make()
    with pytest.raises(StoreError, match="threads is"):
        table.threads = n
    assert table.threads == 1


def test_a_step_of_no_ids_moves_none_of_the_rows_read_before_it() -> None:
    """They may have gone meanwhile: their numbers are other rows' or nobody's."""
    table = make(init_scale=1.0)
    rows = admit(table, ids_of(3, 4))
    table.erase(ids_of(3))
    assert table.apply(ids_of(), np.ones((0, table.width), np.float32)) == 0
    np.testing.assert_array_equal(table.lookup(ids_of(3, 4)), [np.zeros(4), rows[1]])
    assert len(Table.restore(table.snapshot())) == 1
