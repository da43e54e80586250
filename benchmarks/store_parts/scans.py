"""Sweeps over all rows, and what a table ten times as large costs a lookup."""

import time
from collections.abc import Callable

from benchmarks.report import Row, row
from benchmarks.store_parts.sizes import Sizes
from benchmarks.store_parts.tables import NOW_S, filled_table, lookup_round, update_round
from benchmarks.store_peers.process import Round, seconds_in_turns
from benchmarks.store_peers.stream import BATCH, make_stream


def scans(sizes: Sizes) -> list[Row]:
    """Ten million rows: none has expired, and since the version asked for one batch has changed."""
    table = filled_table(sizes.large)
    since = table.advance()
    update_round(table, make_stream(sizes.large, 16, 1))(0)

    def sweep() -> None:
        assert table.expire(NOW_S, sizes.large) == 0

    def find_changed() -> None:
        assert 0 < len(table.delta(since)[0]) <= BATCH

    took_s = seconds_in_turns({"expiry_scan": _timed(sweep), "changed_since": _timed(find_changed)})
    return [
        row(f"{name}_rows_per_second", sizes.large / value, "rows/s", 200e6)
        for name, value in took_s.items()
    ]


def lookup_cost_of_size(sizes: Sizes) -> list[Row]:
    """Short rows, so that a hundred million of them fit."""
    rounds = {}
    for name, n_rows in (("10m", sizes.large), ("100m", sizes.huge)):
        stream = make_stream(n_rows, 4, sizes.lookup_batches)
        rounds[name] = lookup_round(filled_table(n_rows, 4, "sgd"), stream)
    took_s = seconds_in_turns(rounds)
    cost = took_s["100m"] / took_s["10m"]
    return [row("lookup_cost_100m_vs_10m", cost, "times", 1.5, is_maximum=True)]


def _timed(call: Callable[[], object]) -> Round:
    def run_round(_: int) -> float:
        start_s = time.perf_counter()
        call()
        return time.perf_counter() - start_s

    return run_round
