"""Pages of docs/ that tests write from the code, in whole or below a mark."""

from pathlib import Path
from typing import Final

import pytest

DOCS: Final = Path(__file__).parents[2] / "docs"
MARK: Final = "<!-- Below: "


def check_page(name: str, text: str, request: pytest.FixtureRequest) -> None:
    """The page is this text; with --update-golden it becomes so."""
    page = DOCS / name
    if request.config.getoption("--update-golden"):
        page.write_text(text, "utf-8")
    is_current = page.read_text("utf-8") == text
    assert is_current, f'docs/{name} is old: make test ARGS="tests/docs --update-golden"'


def check_below(name: str, text: str, request: pytest.FixtureRequest) -> None:
    """What follows the line with the mark is this text."""
    before, mark, rest = (DOCS / name).read_text("utf-8").partition(MARK)
    assert mark, f"docs/{name} has no line {MARK!r}"
    line = rest.partition("\n")[0]
    check_page(name, f"{before}{mark}{line}\n{text}", request)
