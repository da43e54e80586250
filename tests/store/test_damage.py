"""Damage to a snapshot's file is found, wherever it is."""

import numpy as np
import pytest

from embedding_store import StoreError, Table
from tests.proofs import record, scale
from tests.store.helpers import admit, ids_of, make
from tests.store.test_snapshot import churn

N_LARGE = scale("damage", 30)


def test_every_bit_and_every_truncation_of_a_small_file() -> None:
    table = make(dim=2, optimizer="adagrad", min_count=2)
    admit(table, ids_of(1, 2, 3), count=2)
    admit(table, ids_of(4, 5))
    table.erase(ids_of(1))
    file = table.snapshot()
    for n_bytes in range(len(file)):
        with pytest.raises(StoreError):
            Table.restore(file[:n_bytes])
    for bit in range(8 * len(file)):
        with pytest.raises(StoreError):
            Table.restore(flipped(file, bit))
    record(
        "every flipped bit and every truncation of a small file is found",
        bits=8 * len(file),
        truncations=len(file),
        missed=0,
    )


def test_bits_and_truncations_anywhere_in_a_large_file() -> None:
    table = make(dim=16, optimizer="adagrad", min_count=2, ttl_s=50)
    admit(table, np.arange(100_000, dtype=np.uint64), count=2)
    admit(table, np.arange(100_000, 130_000, dtype=np.uint64))
    churn(table, np.random.default_rng(1), 20, 1)
    file = table.snapshot()
    rng = np.random.default_rng(2)
    for bit, n_bytes in zip(
        rng.integers(0, 8 * len(file), N_LARGE), rng.integers(0, len(file), N_LARGE), strict=True
    ):
        with pytest.raises(StoreError):
            Table.restore(flipped(file, int(bit)))
        with pytest.raises(StoreError):
            Table.restore(file[:n_bytes])
    record(
        "flipped bits and truncations anywhere in a large file are found",
        mib=len(file) >> 20,
        bits=N_LARGE,
        truncations=N_LARGE,
        missed=0,
    )


def flipped(file: bytes, bit: int) -> bytes:
    """The file with one bit changed."""
    damaged = bytearray(file)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
