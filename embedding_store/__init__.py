"""Exact, expirable embedding tables: 64-bit id -> row of weights with its optimizer's state."""

from embedding_store._native import (
    FORMAT_VERSION,
    Budget,
    ServingTable,
    Snapshot,
    StoreError,
    Table,
    hash_strings,
    mix_ids,
)
from embedding_store.optimizer import Optimizer

__all__ = [
    "FORMAT_VERSION",
    "Budget",
    "Optimizer",
    "ServingTable",
    "Snapshot",
    "StoreError",
    "Table",
    "hash_strings",
    "mix_ids",
]
