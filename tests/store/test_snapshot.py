"""Snapshots: continue bit for bit, refuse everything that is not whole."""

import numpy as np
import pytest

from embedding_store import FORMAT_VERSION, Optimizer, StoreError, Table
from tests.store.helpers import admit, ids_of, make, plain


def churn(table: Table, rng: np.random.Generator, n_steps: int, start_s: int) -> None:
    """Everything that changes a table, in slices that depend on its inner state."""
    for now_s in range(start_s, start_s + n_steps):
        ids = rng.integers(0, 400, 60, np.uint64)
        admit(table, ids, now_s)
        table.apply(ids, rng.normal(size=(60, table.width)).astype(np.float32))
        table.expire(now_s, 17)
        table.erase(rng.integers(0, 400, 3, np.uint64))
        if now_s % 5 == 0:
            table.advance()
        if now_s % 11 == 0:
            table.trim_tombstones(max(0, table.version - 4))


LIMITS = {"clip_norm": 2.0, "clip_value": 1.5}
FADING = plain("adagrad", accumulator_half_life_s=20, weight_decay=0.1)
FTRL = plain("ftrl", l1=0.1, **LIMITS)


@pytest.mark.parametrize(
    ("optimizer", "first_order"),
    [
        *((plain(kind), None) for kind in ("sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl")),
        (plain("rowwise_adagrad", accumulator_half_life_s=20, **LIMITS), None),
        (FADING, FTRL),
        (FTRL, FADING),
        (plain("adam"), plain("adam", **LIMITS)),
    ],
)
@pytest.mark.parametrize("probability", [1.0, 0.7])
def test_restored_table_goes_on_bit_for_bit(
    optimizer: Optimizer, first_order: Optimizer | None, probability: float
) -> None:
    original = Table(
        dim=4, first_order=True, optimizer=optimizer, first_order_optimizer=first_order,
        init_scale=0.05, seed=7, slot=3, min_count=3, probability=probability, ttl_s=9,
        initial_rows=0,
    )  # fmt: skip
    churn(original, np.random.default_rng(1), 120, 1)
    data = original.snapshot()
    restored = Table.restore(data)
    assert restored.snapshot() == data
    assert (restored.optimizer, restored.first_order_optimizer) == (optimizer, first_order)
    for table in (original, restored):
        churn(table, np.random.default_rng(2), 120, 121)
    statistics = original.statistics()
    assert min(statistics[name] for name in ("rows", "pending", "expired", "erased")) > 10
    assert restored.snapshot() == original.snapshot()
    ignored = {"capacity", "bytes", "peak_bytes"}  # of memory at hand, not of content
    assert {k: v for k, v in restored.statistics().items() if k not in ignored} == {
        k: v for k, v in statistics.items() if k not in ignored
    }


def test_empty_table_survives() -> None:
    restored = Table.restore(make(dim=0, first_order=True).snapshot())
    assert len(restored) == 0
    assert restored.width == 1


@pytest.fixture(scope="module")
def snapshot() -> bytes:
    table = make(optimizer="adam", min_count=2, ttl_s=10)
    churn(table, np.random.default_rng(3), 20, 1)
    return table.snapshot()


def test_every_flipped_bit_is_found(snapshot: bytes) -> None:
    positions = {*range(450), *range(len(snapshot) - 40, len(snapshot))}
    positions |= set(np.random.default_rng(4).integers(0, len(snapshot), 1_500).tolist())
    for position in positions:
        for bit in range(8) if position < 450 else (position % 8,):
            damaged = bytearray(snapshot)
            damaged[position] ^= 1 << bit
            with pytest.raises(StoreError, match="snapshot"):
                Table.restore(bytes(damaged))


def test_every_truncation_is_found(snapshot: bytes) -> None:
    for length in {*range(400), *range(400, len(snapshot), 97), len(snapshot) - 1}:
        with pytest.raises(StoreError, match="truncated"):
            Table.restore(snapshot[:length])
    with pytest.raises(StoreError, match="damaged"):
        Table.restore(snapshot + b"\0")


def test_what_is_wrong_is_said(snapshot: bytes) -> None:
    with pytest.raises(StoreError, match="do not start with FRTABLE"):
        Table.restore(b"x" * len(snapshot))
    newer = bytearray(snapshot)
    newer[8] = FORMAT_VERSION + 1
    with pytest.raises(StoreError, match=f"format version {FORMAT_VERSION + 1}"):
        Table.restore(bytes(newer))
    damaged = bytearray(snapshot)
    damaged[-20] ^= 1
    with pytest.raises(StoreError, match="checksum does not match"):
        Table.restore(bytes(damaged))


def test_random_bytes_never_restore(snapshot: bytes) -> None:
    rng = np.random.default_rng(5)
    for length in rng.integers(0, 2_000, 300):
        with pytest.raises(StoreError):
            Table.restore(rng.bytes(int(length)))
        with pytest.raises(StoreError):
            Table.restore(snapshot[:24] + rng.bytes(len(snapshot) - 24))


def test_restored_table_shares_nothing_with_the_original() -> None:
    table = make()
    admit(table, ids_of(1))
    restored = Table.restore(table.snapshot())
    table.apply(ids_of(1), np.ones((1, 4), np.float32))
    assert not np.array_equal(table.lookup(ids_of(1)), restored.lookup(ids_of(1)))
