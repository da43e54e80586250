"""Embedding tables of others, each in a process of its own, for benchmarks/store.py."""
