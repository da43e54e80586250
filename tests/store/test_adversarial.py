"""Keys that somebody chose to slow the index down cost what random keys cost."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from tests.proofs import record, scale
from tests.store.helpers import U64, admit, make

N_KEYS = scale("adversarial", 200_000)
BATCH = 8_192
WORD = (1 << 64) - 1


def mixed(x: int) -> int:
    """splitmix64's output function, as the core keys its hash."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & WORD
    return x ^ x >> 31


def hashed(keys: U64, secret: int) -> U64:
    """The index's hash, had it that secret."""
    offset, first, second = mixed(secret), mixed(secret + 1) | 1, mixed(secret + 2) | 1
    x = (keys ^ np.uint64(offset)) * np.uint64(first)
    x = (x ^ x >> np.uint64(32)) * np.uint64(second)
    return x ^ x >> np.uint64(29)


def keys_of_hashes(hashes: U64, secret: int) -> U64:
    """Its inverse: the keys that have these hashes under that secret."""
    offset, first, second = mixed(secret), mixed(secret + 1) | 1, mixed(secret + 2) | 1
    x = hashes ^ hashes >> np.uint64(29) ^ hashes >> np.uint64(58)
    x = x * np.uint64(pow(second, -1, 1 << 64))
    x = (x ^ x >> np.uint64(32)) * np.uint64(pow(first, -1, 1 << 64))
    return x ^ np.uint64(offset)


def spread_bits(numbers: U64) -> U64:
    """Bit i of a number at bit 2 i."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        numbers = (numbers | numbers << np.uint64(shift)) & np.uint64(mask)
    return numbers


KINDS: dict[str, Callable[[U64], U64]] = {
    "consecutive": lambda n: n,
    "only their highest bits differ": lambda n: n << np.uint64(40),
    "multiples of 2^20": lambda n: n << np.uint64(20),
    "every second bit": spread_bits,
    "all in one bucket, had the index another table's secret": lambda n: keys_of_hashes(n, 0),
    "multiples of the golden ratio": lambda n: n * np.uint64(0x9E3779B97F4A7C15),
}


def cpu_s(keys: U64) -> float:
    """To insert all keys into an empty table and find them again; the best of three."""
    times_s = []
    for _ in range(3 if len(keys) < 1_000_000 else 1):
        table = make(dim=1)
        began_s = time.process_time()
        for start in range(0, len(keys), BATCH):
            admit(table, keys[start : start + BATCH])
        for start in range(0, len(keys), BATCH):
            table.lookup(keys[start : start + BATCH])
        times_s.append(time.process_time() - began_s)
        assert len(table) == len(keys)
    return min(times_s)


@pytest.mark.timeout(1800)
def test_chosen_keys_cost_at_most_three_times_what_random_keys_cost() -> None:
    numbers = np.arange(N_KEYS, dtype=np.uint64)
    np.testing.assert_array_equal(hashed(keys_of_hashes(numbers, 0), 0), numbers)
    random = np.unique(np.random.default_rng(1).integers(0, 2**64, N_KEYS, np.uint64))
    expected_s = cpu_s(np.random.default_rng(2).permutation(random))
    for kind, keys_of in KINDS.items():
        ratio = cpu_s(keys_of(numbers)) / expected_s
        record(
            f"chosen keys cost at most 3 times what random keys cost: {kind}",
            keys=f"{N_KEYS:,}",
            times=round(ratio, 2),
        )
        assert ratio < 3, kind
