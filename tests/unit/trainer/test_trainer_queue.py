"""Where batches are cut, which rows are judged bad, and what positions follow."""

import numpy as np
import pytest

from freshrank.errors import DataError
from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from freshrank.transport.base import EXAMPLES, Record
from tests.unit.trainer.example_records import NOW_MS, make_batch, make_settings
from trainer.queue import BatchQueue, Cut, Position, ReadRecord
from trainer.rows import concatenate, select
from trainer.validation import check_rows

ENCODER = FeatureEncoder(make_settings())
TWO_TASKS = FeatureEncoder(
    make_settings(
        tasks=[
            {"name": "click", "event": "click"},
            {"name": "dwell", "event": "dwell", "loss": "huber"},
        ]
    )
)


def _batch(
    n: int, first_id: int = 0, *, pairs: tuple[int, ...] = (), **columns: object
) -> ExampleBatch:
    """n rows with item ids counting up; `pairs` are first rows of reversal pairs."""
    labels, weights = np.zeros(n), np.ones((n, 1))
    requests, is_reversal = [f"r{i}" for i in range(n)], np.zeros(n, np.bool_)
    for row in pairs:
        labels[row], weights[row + 1] = 1, -1
        is_reversal[row : row + 2] = True
        requests[row + 1] = requests[row]
    slots = {"item_id": [[first_id + i] for i in range(n)]}
    defaults = {"weights": weights, "is_reversal": is_reversal, "request_ids": requests}
    return make_batch(ENCODER, slots, labels, **{**defaults, "items": ["i"] * n, **columns})


def _read(batch: ExampleBatch | None, offset: int, partition: int = 0) -> ReadRecord:
    record = Record(EXAMPLES, partition, offset, b"", b"", NOW_MS)
    if batch is None:
        return ReadRecord(record, DataError("rubbish", code="malformed"))
    return ReadRecord(record, (batch, check_rows(batch, ["logloss"])))


def _queue(batch_max: int, *, fixed: bool = True, row: int = 0) -> BatchQueue:
    positions = {0: Position(0, row), 1: Position(0, 0)}
    return BatchQueue(batch_max=batch_max, is_fixed=fixed, positions=positions)


def _ids(cut: Cut) -> list[int]:
    return [] if cut.rows is None else cut.rows.values.slots["item_id"].ids.tolist()


def test_fixed_batches_are_cut_by_number_across_records() -> None:
    queue = _queue(4)
    for offset, n in enumerate((3, 1, 6)):
        queue.put(_read(_batch(n, 10 * offset), offset))
    first, second, third = (queue.cut(flush=False) for _ in range(3))
    assert _ids(first) == [0, 1, 2, 10]
    assert first.positions == {0: Position(2, 0)}
    assert _ids(second) == [20, 21, 22, 23]
    assert second.positions == {0: Position(2, 4)}
    assert _ids(third) == []
    assert third.positions == {}
    assert _ids(queue.cut(flush=True)) == [24, 25]


def test_adaptive_batch_takes_what_is_there_up_to_the_maximum() -> None:
    queue = _queue(4, fixed=False)
    queue.put(_read(_batch(3), 0))
    assert _ids(queue.cut(flush=False)) == [0, 1, 2]
    queue.put(_read(_batch(5), 1))
    assert _ids(queue.cut(flush=False)) == [0, 1, 2, 3]
    assert _ids(queue.cut(flush=False)) == [4]


@pytest.mark.parametrize("batch_max", [1, 2, 3, 4])
@pytest.mark.parametrize("fixed", [True, False])
def test_reversal_pair_is_never_parted(batch_max: int, fixed: bool) -> None:
    queue = _queue(batch_max, fixed=fixed)
    queue.put(_read(_batch(9, pairs=(0, 3, 5)), 0))
    queue.put(_read(_batch(4, 100, pairs=(1,)), 1))
    found, sizes = [], []
    while ids := _ids(queue.cut(flush=True)):
        found += ids
        sizes.append(len(ids))
        for first in (0, 3, 5, 101):
            assert (first in ids) == (first + 1 in ids)
    assert found == [*range(9), *range(100, 104)]
    assert max(sizes) <= max(batch_max + 1, 2)


def test_bad_rows_are_passed_over_and_the_rest_is_learned() -> None:
    weights = np.array([[1], [np.nan], [1], [2e6], [1]])
    queue = _queue(2)
    queue.put(_read(_batch(5, weights=weights), 0))
    first, last = queue.cut(flush=False), queue.cut(flush=True)
    assert _ids(first) == [0, 2]
    assert [(r.code, r.rows.items if r.rows else None) for r in first.refused] == [
        ("bad-weight", ["i", "i"])
    ]
    assert first.positions == {0: Position(0, 4)}
    assert _ids(last) == [4]
    assert last.refused == []
    assert last.positions == {0: Position(1, 0)}


def test_record_is_finished_when_its_last_row_is_dealt_with() -> None:
    queue = _queue(2)
    queue.put(_read(_batch(3, offsets={"a:0": 7}), 0))
    assert queue.cut(flush=False).finished == []
    assert [info.offsets for info in queue.cut(flush=True).finished] == [{"a:0": 7}]


def test_record_without_rows_finishes_once_all_before_it_are_learned() -> None:
    queue = _queue(2)
    queue.put(_read(_batch(0, offsets={"a:0": 1}), 0))
    queue.put(_read(_batch(1, 5), 1))
    queue.put(_read(_batch(0, offsets={"a:0": 2}), 2))
    first = queue.cut(flush=False)
    assert [info.offsets for info in first.finished] == [{"a:0": 1}]
    assert _ids(first) == []
    queue.put(_read(_batch(1, 6), 3))
    second = queue.cut(flush=False)
    assert _ids(second) == [5, 6]
    assert {"a:0": 2} in [info.offsets for info in second.finished]


def test_record_that_is_no_batch_is_refused_whole() -> None:
    queue = _queue(2)
    queue.put(_read(None, 0))
    cut = queue.cut(flush=False)
    assert [(r.code, r.rows) for r in cut.refused] == [("malformed", None)]
    assert cut.positions == {0: Position(1, 0)}


def test_restart_in_the_middle_of_a_record_goes_on_behind_what_was_learned() -> None:
    queue = _queue(10, row=2)
    queue.put(_read(_batch(4), 0))
    queue.put(_read(_batch(1, 50), 1))
    queue.put(_read(_batch(1, 70), 0, partition=1))
    assert queue.n_rows == 4
    cut = queue.cut(flush=True)
    assert _ids(cut) == [2, 3, 50, 70]
    assert cut.positions == {0: Position(2, 0), 1: Position(1, 0)}
    assert queue.n_rows == 0


@pytest.mark.parametrize(
    ("reason", "columns"),
    [
        ("bad-weight", {"weights": [[np.inf, 1]]}),
        ("bad-weight", {"weights": [[1e7, 1]]}),
        ("bad-label", {"labels": [[2, 0]]}),
        ("bad-label", {"labels": [[np.nan, 0]]}),
        ("bad-label", {"labels": [[0, np.inf]]}),
        ("bad-label", {"labels": [[0, -2e6]]}),
        ("bad-keep-rate", {"keep_rates": [[0, 1]]}),
        ("bad-keep-rate", {"keep_rates": [[1.5, 1]]}),
        ("bad-dense", {"dense": [[np.nan]]}),
        ("bad-dense", {"dense": [[2e12]]}),
        ("bad-time", {"ts_ms": [-1]}),
        ("bad-time", {"ts_ms": [2**32 * 1_000]}),
        ("negative-weight", {"weights": [[-1, 0]]}),
        ("unpaired-reversal", {"is_reversal": [True]}),
    ],
)
def test_bad_row_is_named(reason: str, columns: dict[str, object]) -> None:
    labels = columns.pop("labels", [[0, 0]])
    batch = make_batch(TWO_TASKS, {}, labels, **columns)  # type: ignore[arg-type]
    verdict = check_rows(batch, ["logloss", "huber"])
    assert verdict.bad == {0: reason}
    assert verdict.good.tolist() == []


def test_bad_half_of_a_pair_takes_the_other_with_it() -> None:
    batch = _batch(4, pairs=(1,), dense=[[0], [0], [np.nan], [0]])
    verdict = check_rows(batch, ["logloss"])
    assert verdict.bad == {1: "bad-dense", 2: "bad-dense"}
    assert verdict.good.tolist() == [0, 3]


def test_adjacent_reversals_of_two_requests_are_no_pair() -> None:
    batch = _batch(2, pairs=(0,), request_ids=["a", "b"])
    verdict = check_rows(batch, ["logloss"])
    assert verdict.bad == {0: "unpaired-reversal", 1: "unpaired-reversal"}


def test_select_and_concatenate_keep_bags_with_their_rows() -> None:
    tags = [[1, 2], [], [3], [4, 5, 6]]
    batch = make_batch(ENCODER, {"tags": tags}, [0, 1, 0, 1], dense=[[0], [1], [2], [3]])
    parts = [select(batch, np.array(rows, np.int64)) for rows in ([3, 0], [1], [2])]
    joined = concatenate(parts, batch.info)
    column = joined.values.slots["tags"]
    found = [
        column.ids[a:b].tolist()
        for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)
    ]
    assert found == [[4, 5, 6], [1, 2], [], [3]]
    assert joined.values.dense[:, 0].tolist() == [3, 0, 1, 2]
    assert joined.request_ids == ["r3", "r0", "r1", "r2"]
    assert joined.labels[:, 0].tolist() == [1, 0, 1, 0]
