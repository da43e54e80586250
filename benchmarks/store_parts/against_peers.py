"""Lookups and updates against the tables of others, on the same picks, in turns, one thread."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.report import Row, row
from benchmarks.store_parts.sizes import Sizes
from benchmarks.store_parts.tables import filled_table, lookup_round, update_round
from benchmarks.store_peers import install
from benchmarks.store_peers.process import rates_in_turns
from benchmarks.store_peers.stream import Stream, make_stream

Command = Callable[[Path], Sequence[str | Path]]


def large_lookups(sizes: Sizes) -> list[Row]:
    """Ten million rows: torch gets known row numbers, everybody else 64-bit ids."""
    stream = make_stream(sizes.large, 16, sizes.lookup_batches)
    ours = lookup_round(filled_table(stream.n_rows), stream)
    peers = {name: _map_peer(name, stream) for name in ("libcuckoo", "absl", "absl_numbers")}
    peers["torch"] = _python_peer("lookup", stream)
    rates = rates_in_turns(stream, {"ours": ours}, peers)
    # Of absl's two ways the faster one counts.
    if "absl_numbers" in rates:
        rates["absl"] = max(rates["absl"], rates.pop("absl_numbers"))
    ratios = {
        "torch": ("lookup_vs_torch_known_rows_10m_d16", 1.15),
        "libcuckoo": ("lookup_vs_libcuckoo_10m_d16", 8),
        "absl": ("lookup_vs_absl_10m_d16", 5),
    }
    return _rows("lookup_10m_d16", rates, ratios)


def small_lookups(sizes: Sizes) -> list[Row]:
    """A million long rows."""
    stream = make_stream(sizes.small, 64, sizes.lookup_batches // 2)
    ours = lookup_round(filled_table(stream.n_rows, stream.dim), stream)
    rates = rates_in_turns(stream, {"ours": ours}, {"torch": _python_peer("lookup", stream)})
    ratios = {"torch": ("lookup_vs_torch_known_rows_1m_d64", 1.3)}
    return _rows("lookup_1m_d64", rates, ratios)


def updates(sizes: Sizes) -> list[Row]:
    """Forward, sums over equal ids and Adagrad: uniform picks, then popular ones."""
    rows = []
    for kind, goal in (("uniform", 5), ("zipf", 3.5)):
        stream = make_stream(sizes.small, 16, sizes.update_batches, is_zipf=kind == "zipf")
        ours = update_round(filled_table(stream.n_rows), stream)
        peer = _python_peer("sparse_adagrad", stream)
        rates = rates_in_turns(stream, {"ours": ours}, {"torch": peer})
        ratios = {"torch": (f"update_vs_torch_sparse_1m_d16_{kind}", goal)}
        rows += _rows(f"update_1m_d16_{kind}", rates, ratios)
    return rows


def large_updates(sizes: Sizes) -> list[Row]:
    """The same with ten million rows; FBGEMM brings a torch of its own."""
    stream = make_stream(sizes.large, 16, sizes.update_batches)
    ours = update_round(filled_table(stream.n_rows), stream)
    peer = _python_peer("fbgemm_adagrad", stream, install.fbgemm_python)
    rates = rates_in_turns(stream, {"ours": ours}, {"fbgemm": peer})
    return _rows("update_10m_d16", rates, {"fbgemm": ("update_vs_fbgemm_cpu_10m_d16", 4)})


def _python_peer(
    kind: str, stream: Stream, python: Callable[[], Path] = lambda: Path(sys.executable)
) -> Command:
    sizes = [str(size) for size in (stream.n_rows, stream.dim, stream.n_batches)]
    return lambda folder: [python(), install.PYTHON_PEER, kind, folder, *sizes]


def _map_peer(kind: str, stream: Stream) -> Command:
    sizes = [str(size) for size in (stream.n_rows, stream.n_batches)]
    return lambda folder: [install.maps_program(), kind, folder, *sizes]


def _rows(
    what: str, rates: Mapping[str, float], ratios: Mapping[str, tuple[str, float]]
) -> list[Row]:
    """The speeds, then ours by those of the peers: peer -> the figure's name and goal."""
    return [
        *(row(f"{what}_{name}", rate / 1e6, "million rows/s") for name, rate in rates.items()),
        *(
            row(name, rates["ours"] / rates[peer], "times", goal)
            for peer, (name, goal) in ratios.items()
            if peer in rates
        ),
    ]
