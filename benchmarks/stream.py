"""The stream on a real Kafka: joining, learning, how soon a click is learned, and the whole loop.

    python -m benchmarks.stream [--json] [--only PART] [--quick]

One broker runs on one core, what is measured on the other; the loop has both. A peer that cannot be
had leaves its rows out and says why on standard error.
"""

import argparse
from collections.abc import Callable
from typing import Final

from benchmarks import parts, report
from benchmarks.report import Row
from benchmarks.stream_parts import freshness, joining, loop, training

PARTS: Final[tuple[Callable[..., list[Row]], ...]] = (
    joining.joining,
    training.training,
    freshness.freshness,
    loop.loop,
)


def run(*, only: str | None = None, quick: bool = False) -> list[Row]:
    """Measure part after part, each in a process of its own.

    Args:
        only: The one part to measure.
        quick: Hold the load on the whole loop for seconds, not minutes.
    """
    *others, whole = PARTS
    return parts.measured(others, only) + parts.measured([whole], only, is_quick=quick)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parts.add_options(parser, PARTS, "the loop for seconds, not minutes")


if __name__ == "__main__":
    report.main(run, add_options)
