"""The table of `freshrank rank`."""

import io
from typing import Any

import pytest
from rich.console import Console

from freshrank.commands.rank import show


def shown(*items: dict[str, Any]) -> str:
    answer = {
        "items": items,
        "model": {"version": "d1-s2"},
        "freshness": {"sparse_age_seconds": 1.25},
        "degraded": [],
        "took_ms": 3.0,
    }
    out = io.StringIO()
    show(answer, Console(file=out, width=100))
    return out.getvalue()


def item(name: str, score: float | None) -> dict[str, Any]:
    tasks = {} if score is None else {"click": score}
    return {"rank": 1, "item": name, "score": score, "task_scores": tasks, "known": True}


@pytest.mark.parametrize("name", ["[red]i1", "[/closed]", "i[0]"])
def test_an_item_is_shown_as_it_is_called(name: str) -> None:
    assert name in shown(item(name, 0.5))


def test_an_item_without_a_score_has_a_dash() -> None:
    text = shown(item("i1", 0.5), item("i2", None))
    assert "0.5000" in text
    assert text.splitlines()[2].split() == ["1", "i2", "-", "-", "yes"]


def test_no_items_are_an_empty_table() -> None:
    assert "version d1-s2, parameters 1.2 s old, degraded: nothing" in shown()
