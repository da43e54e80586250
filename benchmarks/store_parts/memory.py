"""Bytes per row and per waiting id, by the table's own account and by the kernel's."""

from pathlib import Path

from benchmarks.report import Row, row
from benchmarks.store_parts.sizes import Sizes
from benchmarks.store_parts.tables import build_table, fill


def bytes_per_row(sizes: Sizes) -> list[Row]:
    """Ten million rows of 16 floats, room for exactly them reserved before."""
    before = resident_bytes()
    table = build_table(16, "rowwise_adagrad", reserve=sizes.large)
    fill(table, 0, sizes.large)
    n_resident = resident_bytes() - before
    name = "bytes_per_row_d16_rowwise_adagrad"
    return [
        row(name, table.statistics()["bytes"] / sizes.large, "bytes", 104, is_maximum=True),
        row(f"resident_{name}", n_resident / sizes.large, "bytes"),
    ]


def bytes_per_pending_id(sizes: Sizes) -> list[Row]:
    """Ids met once where two occurrences are asked for."""
    table = build_table(16, min_count=2)
    n_before = table.statistics()["bytes"]
    fill(table, 0, sizes.large)
    statistics = table.statistics()
    assert statistics["pending"] == sizes.large
    each = (statistics["bytes"] - n_before) / sizes.large
    return [row("bytes_per_pending_id", each, "bytes", 16, is_maximum=True)]


def resident_bytes() -> int:
    """What this process holds in memory."""
    n_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return n_pages * 4_096
