"""The state of one id, through its whole life."""

from typing import Any

import numpy as np
import pytest

from embedding_store import StoreError, Table
from tests.store.helpers import admit, ids_of, make

NOTHING = {
    "state": "absent",
    "count": 0,
    "min_count": 0,
    "last_seen_s": 0,
    "expires_s": 0,
    "born_s": 0,
    "frequency": 0,
    "version": 0,
    "weight_norm": 0.0,
    "state_norm": 0.0,
}


def test_an_id_is_told_at_every_station_of_its_life() -> None:
    table = make(optimizer="adagrad", min_count=3, ttl_s=10, init_scale=0.0, lr=1.0)
    one = 2**64 - 1
    assert table.inspect(one) == NOTHING
    admit(table, ids_of(one), now_s=5, count=2)
    assert table.inspect(one) == NOTHING | {
        "state": "pending", "count": 2, "min_count": 3, "last_seen_s": 5, "expires_s": 15,
    }  # fmt: skip
    admit(table, ids_of(one), now_s=7)
    table.advance()
    table.apply(ids_of(one), np.array([[3, 0, 0, 4]], np.float32))
    admit(table, ids_of(one), now_s=9)
    admitted = NOTHING | {
        "state": "admitted", "last_seen_s": 9, "expires_s": 19, "born_s": 7, "frequency": 4,
        "version": 2, "weight_norm": pytest.approx(2**0.5), "state_norm": pytest.approx(337**0.5),
    }  # fmt: skip
    assert table.inspect(one) == admitted
    table.expire(19, 0)
    assert table.inspect(one) == admitted
    table.expire(20, 0)
    assert table.inspect(one) == admitted | {"state": "expired"}
    table.advance()
    table.expire(20, 10)
    assert table.inspect(one) == NOTHING | {"state": "removed", "version": 3}
    table.trim_tombstones(3)
    assert table.inspect(one) == NOTHING


def test_pending_count_out_of_time_is_absent_and_erased_row_is_removed() -> None:
    table = make(min_count=2, ttl_s=10)
    admit(table, ids_of(1), now_s=1)
    admit(table, ids_of(2), now_s=50, count=2)
    assert table.inspect(1) == NOTHING
    table.erase(ids_of(1, 2))
    assert table.inspect(1) == NOTHING  # nobody was told of it, so nobody need forget it
    assert table.inspect(2)["state"] == "removed"


def test_pending_count_fades_and_is_an_estimate_beyond_its_bytes() -> None:
    table = make(min_count=9, ttl_s=100, count_half_life_s=10, pending_bytes=65_536)
    admit(table, ids_of(1), now_s=5, count=8)
    admit(table, ids_of(2), now_s=15)
    assert table.inspect(1) == NOTHING | {
        "state": "pending", "count": 4, "min_count": 9, "last_seen_s": 5, "expires_s": 105,
    }  # fmt: skip
    admit(table, np.arange(10, 10_000, dtype=np.uint64), now_s=15)  # more than have room
    admit(table, ids_of(20_000), now_s=15, count=8)
    estimate = table.inspect(20_000)
    assert estimate == NOTHING | {
        "state": "pending", "count": table.pending(ids_of(20_000))[0], "min_count": 9,
    }  # fmt: skip
    assert estimate["count"] >= 8


def test_row_that_never_expires_says_so() -> None:
    table = make()
    admit(table, ids_of(1), now_s=1)
    table.expire(4_000_000_000, 10)
    assert table.inspect(1)["state"] == "admitted"
    assert table.inspect(1)["expires_s"] == 0


@pytest.mark.parametrize(
    ("kind", "changes", "norm"),
    [
        ("adam", {}, np.hypot(0.2, 0.004) * 2**0.5),  # (1 - beta) g and (1 - beta2) g^2, twice
        ("adagrad", {"accumulator_half_life_s": 9}, 4 * 2**0.5),
        ("rowwise_adagrad", {"accumulator_half_life_s": 9}, 4.0),
        ("ftrl", {"first_order": True, "dim": 0, "beta": 1.0, "lr": 0.1}, np.hypot(4, 0.2)),
        ("sgd", {}, 0.0),
    ],
)
def test_state_norm_leaves_times_and_step_counts_out(
    kind: Any, changes: dict[str, Any], norm: float
) -> None:
    table = make(kind, **{"dim": 2, "init_scale": 0.0, **changes})
    admit(table, ids_of(1), now_s=1_800_000_000)
    table.apply(ids_of(1), np.full((1, table.width), 2, np.float32))
    assert table.inspect(1)["state_norm"] == pytest.approx(norm, rel=1e-5)


def test_rows_aged_ahead_of_the_clock_are_refused_before_anything_changes() -> None:
    """A snapshot of them would be refused as damaged."""
    table = make("adagrad", dim=1, accumulator_half_life_s=9)
    admit(table, ids_of(7), now_s=5)
    before = table.snapshot()
    values = np.array([[0.5, 0.25, 0], [0.5, 0.25, 0]], np.float32)
    values[1, 2:].view(np.uint32)[:] = 101
    times = np.full(2, 90, np.uint32)
    with pytest.raises(StoreError, match="accumulators of id 9 were aged at 101 s, ahead of the"):
        table.put_rows(ids_of(8, 9), values, None, times, times, times)
    assert table.snapshot() == before
    table.put_rows(ids_of(8, 9), values, None, times, times, times, clock_s=101)
    assert len(Table.restore(table.snapshot())) == 3
