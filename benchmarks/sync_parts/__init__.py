"""The parts of benchmarks/sync.py."""
