"""Benchmarks of several parts, each measured in a process of its own."""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.report import Row

Part = Callable[..., list[Row]]


def measured(parts: Iterable[Part], only: str | None, *arguments: Any, **options: Any) -> list[Row]:
    """The rows of part after part.

    Args:
        parts: What measures.
        only: Name of the one part to measure.
        arguments: Of each part.
        options: As well.
    """
    rows: list[Row] = []
    for part in parts:
        if only is None or part.__name__ == only:
            print(f"measuring {part.__name__}", file=sys.stderr)
            # Spawned, not forked: nothing of the parts before is mapped in it.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as fresh_process:
                rows += fresh_process.submit(part, *arguments, **options).result()
    return rows


def add_options(parser: argparse.ArgumentParser, parts: Iterable[Part], quick: str) -> None:
    """`--only` and `--quick`; `quick` says what that one does."""
    parser.add_argument("--quick", action="store_true", help=quick)
    names = [part.__name__ for part in parts]
    parser.add_argument("--only", choices=names, help="measure this part alone")
