"""What a benchmark prints: rows of a name, a value, its unit, and a goal with whether it is met.

A benchmark is a file of this folder with a function `run` that returns rows:

    if __name__ == "__main__":
        report.main(run)

A goal that is not met is a finding, not a failure: the exit code stays 0.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TypedDict


class Row(TypedDict):
    """One figure; `goal` and `met` are None where nobody set a goal."""

    name: str
    value: float
    unit: str
    goal: float | None
    met: bool | None


def row(
    name: str, value: float, unit: str, goal: float | None = None, *, is_maximum: bool = False
) -> Row:
    """One figure, judged by its goal as measured, then rounded to six digits.

    Args:
        name: What was measured.
        value: In `unit`.
        unit: As printed.
        goal: The least value wanted; none for information.
        is_maximum: The goal is the largest value wanted instead.
    """
    met = None if goal is None else bool(value <= goal if is_maximum else value >= goal)
    return {"name": name, "value": float(f"{value:.6g}"), "unit": unit, "goal": goal, "met": met}


def main(
    run: Callable[..., Sequence[Row]],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """Run a benchmark and print its rows: aligned, or as a JSON array with `--json`.

    Args:
        run: Gets the options' values by name.
        add_options: Gives the command line options of the benchmark's own.
    """
    parser = argparse.ArgumentParser(description=(run.__doc__ or "").strip())
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_options(parser)
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    rows = run(**options)
    print(json.dumps(rows) if as_json else as_text(rows))


def as_text(rows: Sequence[Row]) -> str:
    """A line per row, in columns."""
    table = [_cells(one) for one in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}"
        + (f"  goal {goal:>{widths[3]}}  met {met}" if goal else "")
        for name, value, unit, goal, met in table
    )
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| name | value | unit | goal | met |", "|---|--:|---|--:|---|"]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in rows]
    return "\n".join(lines)


def _cells(one: Row) -> tuple[str, str, str, str, str]:
    goal = "" if one["goal"] is None else _number(one["goal"])
    met = {None: "", True: "yes", False: "no"}[one["met"]]
    return one["name"], _number(one["value"]), one["unit"], goal, met


def _number(value: float) -> str:
    """From a thousand on without decimals, below with three digits."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
