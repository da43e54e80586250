"""Parameter sync over a real Kafka and a real Redis: how soon, how fast, and what it costs.

    python -m benchmarks.sync [--json] [--quick] [--only PART]

Every part has a process of its own. The whole takes about four minutes and 5 GB; `--quick` tries
everything in small, where the goals mean nothing.
"""

import argparse
from collections.abc import Callable
from typing import Final

from benchmarks import parts, report
from benchmarks.report import Row
from benchmarks.sync_parts import applying, coming_back, publishing, ranking, soon, steady, troubles
from benchmarks.sync_parts.sizes import FULL, QUICK, Sizes

PARTS: Final[tuple[Callable[[Sizes], list[Row]], ...]] = (
    soon.soon,
    steady.steady,
    applying.applying,
    applying.ready,
    publishing.publishing,
    publishing.rolling_back,
    coming_back.coming_back,
    ranking.ranking,
    troubles.ill_redis,
    troubles.taking_over,
)


def run(*, quick: bool = False, only: str | None = None) -> list[Row]:
    """Measure part after part.

    Args:
        quick: Small, to try the benchmark itself.
        only: The one part to measure.
    """
    return parts.measured(PARTS, only, QUICK if quick else FULL)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parts.add_options(parser, PARTS, "small: try the benchmark")


if __name__ == "__main__":
    report.main(run, add_options)
