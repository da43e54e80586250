"""The table of faults names tests that are there."""

import re
from pathlib import Path

from tests.fault.input_cases import CASES

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


# What a program of this kind has to survive; others are held elsewhere: limits of requests, soaks.
NUMBERS = {*range(1, 35), *range(39, 44), 46, *range(50, 61), 63}


def table() -> list[str]:
    """Its rows."""
    return [
        line
        for line in (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| no. |")
    ]


def numbers(row: str) -> set[int]:
    """Of the faults of a row."""
    return {int(number) for number in row.split("|")[1].split(",") if number.strip()}


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    rows = table()
    assert len(rows) > 30
    assert [row for row in rows if not NAMED.findall(row)] == []
    missing = [
        f"{path}::{name}"
        for row in rows
        for path, name in NAMED.findall(row)
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.M)
    ]
    assert missing == []


def test_every_number_has_a_row_and_every_case_of_the_stream_its_number() -> None:
    rows = table()
    assert set().union(*map(numbers, rows)) == NUMBERS
    held = [row for row in rows if "test_sound_requests_are_joined_whatever_else_is_sent" in row]
    assert {int(case.name.split("-")[0]) for case in CASES} == set().union(*map(numbers, held))
