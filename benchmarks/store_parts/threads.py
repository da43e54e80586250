"""A table whose calls two threads share, against one."""

from benchmarks.report import Row, row
from benchmarks.store_parts.sizes import Sizes
from benchmarks.store_parts.tables import filled_table, lookup_round, update_round
from benchmarks.store_peers.process import Round, seconds_in_turns
from benchmarks.store_peers.stream import N_ROUNDS, make_stream
from embedding_store import Table


def two_threads(sizes: Sizes) -> list[Row]:
    """Lookups and updates at ten million rows."""
    rows = []
    for name, goal, n_batches, rounds in (
        ("two_threads_vs_one_lookup", 1.7, sizes.lookup_batches, lookup_round),
        ("two_threads_vs_one_update", 1.6, sizes.update_batches, update_round),
    ):
        stream = make_stream(sizes.large, 16, n_batches)
        table = filled_table(stream.n_rows)
        call = rounds(table, stream)
        took_s = seconds_in_turns(
            {
                "one": _with_threads(table, 1, call),
                "two": _with_threads(table, 2, _next_round(call)),
            }
        )
        rows.append(row(name, took_s["one"] / took_s["two"], "times", goal))
    return rows


def _with_threads(table: Table, n: int, call: Round) -> Round:
    def run_round(number: int) -> float:
        table.threads = n
        return call(number)

    return run_round


def _next_round(call: Round) -> Round:
    """The picks of the round asked for are in the caches of whoever went before."""
    return lambda number: call((number + 1) % N_ROUNDS)
