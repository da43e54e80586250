"""Every identity of the accounting: broken, it is named with its figures."""

import pytest

from freshrank.accounting import n_open, problems
from freshrank.config import loads

SETTINGS = loads(
    "features: [{name: item_id, type: id, scope: item}]\n"
    "tasks:\n"
    "  - {name: click, event: click, negative: {from: shown}}\n"
    "  - {name: dwell, event: dwell, loss: huber}\n",
    name="test",
    environ={},
)
TOTALS = {
    **{"received": 12, "accepted": 11, "rejected": 1},
    **{"accepted_actions": 6, "matched": 1, "duplicate": 1, "unmatched": 1, "late": 1},
    **{"dead_letter": 1, "pending": 1},
    "impression_items": 10,
    **{"click.positive": 2, "click.negative": 5, "click.sampled_out": 2, "click.pending": 1},
    **{"dwell.positive": 1, "dwell.unlabelled": 9},
    **{"examples_written": 8, "examples_learned": 7, "examples_dead_letter": 1},
}


def test_what_adds_up_has_no_problem() -> None:
    assert problems(TOTALS, SETTINGS) == []
    assert problems({}, SETTINGS) == []


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("received", "received"),
        ("rejected", "received"),
        ("late", "accepted_actions"),
        ("pending", "accepted_actions"),
        ("click.sampled_out", "impression_items (click)"),
        ("dwell.unlabelled", "impression_items (dwell)"),
        ("examples_learned", "examples_written"),
        ("examples_dead_letter", "examples_written"),
    ],
)
def test_one_too_many_is_named_with_its_figures(name: str, whole: str) -> None:
    [problem] = problems({**TOTALS, name: TOTALS[name] + 1}, SETTINGS)
    assert problem.startswith(f"{whole} ")
    assert str(TOTALS[name] + 1) in problem


def test_open_is_what_time_will_decide() -> None:
    assert n_open(TOTALS, SETTINGS) == 2  # a parked action and a click's window; dwell has none
