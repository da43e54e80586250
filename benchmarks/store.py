"""The embedding table against the tables of others, and what its own limits cost.

    python -m benchmarks.store [--json] [--quick] [--only PART]

Ours is told 64-bit ids; torch and FBGEMM get ready row numbers. Everything a trainer uses is on:
admission, expiry, versions, Adagrad's state in the rows. Speeds are wall time in batches of 8,192,
all tables of a figure in turns on the same picks, the median of seven rounds; each peer runs in a
process of its own and times itself. A peer that cannot be had leaves its row out and says why on
standard error. Debian's peers: apt-get install libcuckoo-dev libabsl-dev.

Every part has a process of its own too, so that it starts with empty memory. The whole takes about
five minutes and 9 GB; `--quick` tries everything in small, where the goals mean nothing.
"""

import argparse
from collections.abc import Callable
from typing import Final

from benchmarks import parts, report
from benchmarks.report import Row
from benchmarks.store_parts import against_peers, memory, pauses, scans, threads
from benchmarks.store_parts.sizes import FULL, QUICK, Sizes

PARTS: Final[tuple[Callable[[Sizes], list[Row]], ...]] = (
    against_peers.large_lookups,
    against_peers.small_lookups,
    against_peers.updates,
    against_peers.large_updates,
    threads.two_threads,
    memory.bytes_per_row,
    memory.bytes_per_pending_id,
    pauses.growth,
    pauses.snapshot,
    scans.scans,
    scans.lookup_cost_of_size,
)


def run(*, quick: bool = False, only: str | None = None) -> list[Row]:
    """Measure part after part.

    Args:
        quick: Small tables, to try the benchmark itself.
        only: The one part to measure.
    """
    return parts.measured(PARTS, only, QUICK if quick else FULL)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parts.add_options(parser, PARTS, "small tables: try the benchmark")


if __name__ == "__main__":
    report.main(run, add_options)
