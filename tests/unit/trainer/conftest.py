"""Benches that close themselves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.example_records import Bench, make_settings

MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """Benches by settings, each in a directory of its own."""
    benches: list[Bench] = []

    def make(**settings: Any) -> Bench:
        bench = Bench(tmp_path / str(len(benches)), make_settings(**settings))
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.close()
