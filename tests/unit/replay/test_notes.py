"""Notes say what was legal and is probably not what was meant, and nothing of what is fine."""

from collections import Counter

import pytest

from freshrank import config
from freshrank.replay.notes import of_replay
from freshrank.replay.report import ModelRow, Report
from freshrank.settings import Settings

CONFIG = """
features:
  - {name: user_id, type: id, scope: user}
  - {name: item_id, type: id, scope: item}
  - {name: last, type: recent, event: buy}
  - {name: rate, type: rate, event: EVENT}
  - {name: shown, type: count}
tasks: [{name: buy, event: buy}]
join: {window: 30s, allowed_lateness: 5m}
replay: {ts_unit: ms, columns: {ts: shown_at}}
"""
YEAR_2024_MS = 1_704_067_200_000


def settings(event: str = "buy") -> Settings:
    return config.loads(CONFIG.replace("EVENT", event), name="f.yaml", environ={})


def notes(chosen: Settings, first_ms: int, **accounting: int) -> list[str]:
    hours = {"buy": {"by_hour": [{"ts_ms": first_ms}, {"ts_ms": YEAR_2024_MS}]}}
    report = Report("f.yaml", "log.csv", [ModelRow("freshrank", [hours])])
    report.accounting = Counter(accounting)
    return list(of_replay(report, chosen))


def test_nothing_is_said_where_nothing_is_odd() -> None:
    assert notes(settings(), YEAR_2024_MS) == []
    assert notes(settings(), YEAR_2024_MS, accepted_actions=5, matched=5) == []
    assert list(of_replay(Report("f.yaml", "log.csv"), settings())) == []


def test_a_feature_of_an_event_that_a_table_has_not() -> None:
    (note,) = notes(settings("buyy"), YEAR_2024_MS)
    assert note.startswith("feature 'rate' is of the event 'buyy'")
    assert note.endswith("did you mean 'buy'?")
    (note,) = notes(settings("view"), YEAR_2024_MS)
    assert note.endswith("; these are buy")
    assert notes(settings("view"), YEAR_2024_MS, accepted_actions=5, matched=5) == []


def test_a_time_in_too_small_a_unit() -> None:
    (note,) = notes(settings(), YEAR_2024_MS // 1_000)
    assert note == "the log begins in 1970: is its time in ms (replay.ts_unit)?"
    untimed = CONFIG.replace("replay:", "#").replace("EVENT", "buy")
    assert notes(config.loads(untimed, name="f.yaml", environ={}), 0) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("late", "came later than join.window + join.allowed_lateness (30s + 5m)"),
        ("unmatched", "are of requests or items that no impression shows"),
        ("dead_letter", "could not be used"),
    ],
)
def test_actions_that_count_for_nothing(name: str, words: str) -> None:
    (note,) = notes(settings(), YEAR_2024_MS, accepted_actions=1_000, matched=988, **{name: 12})
    assert note.startswith("12 of 1,000 actions (1.2%)")
    assert words in note
