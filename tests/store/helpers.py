"""One way to build tables, and references that share no code with the core."""

from typing import Any

import numpy as np
import numpy.typing as npt

from embedding_store import Optimizer, Table
from embedding_store.optimizer import Kind

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

DEFAULTS: dict[str, Any] = {
    "dim": 4,
    "first_order": False,
    "first_order_optimizer": None,
    "init_scale": 0.05,
    "seed": 7,
    "slot": 3,
    "min_count": 1,
    "probability": 1.0,
    "ttl_s": 0,
    "initial_rows": 0,
    "max_bytes": 0,
    "pending_bytes": 0,
    "min_rows": 0,
    "count_half_life_s": 0,
    "budget": None,
}


def make(optimizer: Kind = "sgd", **changes: Any) -> Table:
    """Build a table, each argument of it or of its optimizer overriding a small default."""
    table = {name: changes.pop(name, default) for name, default in DEFAULTS.items()}
    return Table(optimizer=plain(optimizer, **changes), **table)


def plain(kind: Kind, **changes: Any) -> Optimizer:
    """An optimizer whose accumulators start at 0."""
    return Optimizer(kind, **{"lr": 0.1, "initial_accumulator": 0.0, **changes})


def ids_of(*values: int) -> U64:
    return np.array(values, np.uint64)


def admit(table: Table, ids: U64, now_s: int = 1, count: int = 1) -> F32:
    """Count every entry `count` times."""
    return table.lookup_or_admit(ids, np.full(len(ids), count, np.uint32), now_s)


def mix64(x: int) -> int:
    """splitmix64 in Python integers."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def initial_row(seed: int, slot: int, row_id: int, dim: int, scale: float) -> F32:
    """The documented start of a row's vector."""
    stream = mix64(mix64(seed) ^ slot)
    values = []
    for column in range(dim):
        bits = mix64((mix64(stream ^ row_id) + column) % 2**64) >> 41
        values.append((2 * bits + 1 - 2**23) / 2**23)
    return np.array(values, np.float32) * np.float32(scale)
