"""The parts of benchmarks/store.py: what is measured, a module per kind of figure."""
