"""What a replay found, as text for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from freshrank.replay.page import FIGURES, minute_text
from freshrank.replay.report import Report


def report_lines(report: Report, directory: Path | None) -> Iterator[str]:
    """The report line by line; `directory` is where it was written to."""
    document = report.document()
    n_rejected = sum(report.rejected.values())
    speed = document["examples_per_second"]
    yield (
        f"{report.examples:,} examples of {report.requests:,} requests, {n_rejected:,} rejected, "
        f"{report.wall_s:.1f} s" + (f", {speed:,.0f} examples/s" if speed else "")
    )
    for task in document["models"][0]["tasks"] if report.examples else ():
        hours = document["models"][0]["tasks"][task].get("by_hour", [])
        ends = [minute_text(hours[n]["ts_ms"]) for n in (0, -1)] if hours else ["-", "-"]
        yield f"\n{task}, by hour from {ends[0]} to {ends[1]} UTC"
        yield from _figures(task, document["models"])
    if report.notes:
        yield ""
        yield from (f"note: {note}" for note in report.notes)
    if report.parameters is not None:
        yield f"\nparameters {report.parameters}; {report.waiting_rows} rows wait for a full batch"
    if n_rejected:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in report.rejected.items())
        where = f"; see {report.rejects_file}" if report.rejects_file else ""
        yield f"\nrejected: {reasons}{where}"
    if directory is not None:
        yield f"\nreport: {directory / 'report.html'}"


def _figures(task: str, models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line per model: means over seeds, with the standard deviation where there are several."""
    tasks = [(model["name"], model["tasks"][task]) for model in models if task in model["tasks"]]
    names = [name for name in FIGURES if any(name in found["seeds"] for _, found in tasks)]
    table = [["", *(FIGURES[name] for name in names)]]
    for model, found in tasks:
        table.append([model, *(_spread(found["seeds"].get(name)) for name in names)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *cells in table:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([f"{first:{widths[0]}}", *numbers])


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.4f}" + (f" ± {found['sd']:.4f}" if found["sd"] else "")
