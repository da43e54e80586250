"""The rules: as committed, as promtool takes them, each firing when it should and not otherwise."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from freshrank.metrics_alerts import ALERTS
from freshrank.metrics_rules import alerting, as_yaml, recording, runbook
from tests.promtool import promtool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
PAGES = ROOT / "docs" / "runbooks"
RULES: Final = {"recording.yml": recording(), "alerts.yml": alerting(ALERTS)}


@pytest.mark.parametrize("name", RULES)
def test_the_committed_rules_are_those_of_the_code(
    name: str, request: pytest.FixtureRequest
) -> None:
    path = DEPLOY / name
    if request.config.getoption("--update-golden"):
        path.write_text(as_yaml(RULES[name]), "utf-8")
    assert path.read_text("utf-8") == as_yaml(RULES[name])


def test_promtool_takes_the_rules_at_any_scale(tmp_path: Path) -> None:
    for scale in (1.0, 1 / 60):
        files = []
        for name, document in (
            ("recording", recording(scale)),
            ("alerts", alerting(ALERTS, scale)),
        ):
            path = tmp_path / f"{name}.yml"
            path.write_text(as_yaml(document))
            files.append(str(path))
        promtool("check", "rules", "--lint=all", "--lint-fatal", *files)


def test_links_lead_to_where_the_pages_are() -> None:
    command = [sys.executable, "-m", "freshrank.metrics_alerts", "--runbooks", "https://x.org/r/"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = (DEPLOY / "alerts.yml").read_text("utf-8")
    assert told == here.replace(": docs/runbooks/", ": https://x.org/r/")


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert pages == {runbook(one.name) for one in ALERTS}
    index = (PAGES / "README.md").read_text("utf-8")
    for name in pages:
        text = (PAGES / name).read_text("utf-8")
        assert f"({name})" in index
        for heading in ("## What it means", "## What to look at", "## What to do"):
            assert heading in text, name


# A series: its value a minute ago and the minute it is -> its value now; None where it is gone.
Series = Callable[[float, int], float | None]
BEFORE_MIN: Final = 10  # minutes without a fault


def rises(by: float) -> Series:
    """By so much a minute."""
    return lambda value, _: value + by


def stands(*values: float) -> Series:
    """At one value, or at several in turn."""
    return lambda _, minute: values[minute % len(values)]


def still(value: float, _: int) -> float:
    """Where it was."""
    return value


def now(_: float, minute: int) -> float:
    """The time in seconds, or a number that grows as steadily."""
    return 60 * minute


def gone(_: float, __: int) -> None:
    """Nobody tells it."""


class Case(NamedTuple):
    """What a fault looks like in the figures.

    Attributes:
        alerts: What is told of it, and how often: an objective for each of its windows.
        lasts_min: Minutes.
        ill: Series, by name with labels, while it lasts.
        over_min: Minutes after it, when it is told no more.
    """

    alerts: dict[str, int]
    lasts_min: int
    ill: Mapping[str, Series]
    over_min: int = 17  # most rules look back a quarter of an hour

    @property
    def end_min(self) -> int:
        """The first minute without the fault."""
        return BEFORE_MIN + self.lasts_min

    def values(self, name: str) -> str:
        """Of a series, a minute apart, as promtool reads them."""
        well = HEALTHY.get(name, stands(0))
        value, told = 0.0, []
        for minute in range(self.end_min + self.over_min + 1):
            is_ill = BEFORE_MIN <= minute < self.end_min
            found = (self.ill.get(name, well) if is_ill else well)(value, minute)
            value = value if found is None else found
            told.append("stale" if found is None else f"{found:g}")
        return " ".join(told)


HEALTHY: Final[dict[str, Series]] = {
    'up{job="freshrank-serve",instance="service-1"}': stands(1),
    'freshrank_http_requests_total{route="/v1/rank",code="200"}': rises(6000),
    'freshrank_http_request_duration_seconds_count{route="/v1/rank"}': rises(6000),
    'freshrank_http_request_duration_seconds_bucket{route="/v1/rank",le="0.025"}': rises(5990),
    'freshrank_freshness_event_to_servable_seconds_count{stage="total",kind="action"}': rises(60),
    "freshrank_freshness_event_to_servable_seconds_bucket"
    '{stage="total",kind="action",le="30.0"}': rises(60),
    'freshrank_http_rejected_total{reason="shed"}': stands(0),
    'freshrank_events_received_total{kind="feedback"}': rises(60),
    'freshrank_events_rejected_total{kind="feedback",reason="schema"}': rises(1),
    'freshrank_joiner_examples_total{outcome="matched"}': rises(60),
    'freshrank_joiner_examples_total{outcome="unmatched"}': rises(2),
    'freshrank_dead_letters_total{topic="actions"}': still,
    'freshrank_consumer_lag_records{topic="actions",partition="0"}': stands(
        *(0, 5000, 0, 12, 3, 0, 7, 1200)
    ),
    'freshrank_worker_retries_total{job="freshrank-train",worker="trainer"}': still,
    'freshrank_trainer_leading{instance="a"}': stands(1),
    'freshrank_trainer_leading{instance="b"}': stands(0),
    "freshrank_trainer_paused": stands(0),
    "freshrank_trainer_examples_total": rises(200),
    "freshrank_trainer_sync_seq": now,
    'freshrank_trainer_publications_total{result="failed"}': still,
    'freshrank_trainer_calibration_ratio{task="click",source="served"}': stands(1.05),
    'freshrank_trainer_progressive_auc{task="click",source="served"}': stands(0.75),
    "freshrank_sync_held_back": stands(0),
    'freshrank_checkpoints_total{result="failed"}': still,
    "freshrank_checkpoint_last_success_timestamp_seconds": now,
    'freshrank_sync_last_success_timestamp_seconds{kind="sparse"}': now,
    'freshrank_sync_batches_total{kind="delta",result="applied"}': rises(60),
    'freshrank_sync_batches_total{kind="delta",result="gap"}': still,
    'freshrank_serving_sync_epoch{instance="service-1"}': stands(4),
    'freshrank_serving_sync_epoch{instance="service-2"}': stands(4),
    "freshrank_serving_sync_seq": now,
    'freshrank_serving_feature_state_up{instance="service-1"}': stands(1),
    'freshrank_store_evictions_total{slot="item_id",reason="capacity"}': still,
}
NO_NEWS: Final = dict.fromkeys(
    (
        "freshrank_trainer_examples_total",
        "freshrank_trainer_sync_seq",
        "freshrank_serving_sync_seq",
        'freshrank_sync_last_success_timestamp_seconds{kind="sparse"}',
        "freshrank_checkpoint_last_success_timestamp_seconds",
    ),
    still,
)

CASES: Final = [
    Case({}, 20, {}),
    Case({}, 40, NO_NEWS),  # an idle stream is well
    Case(
        {"RankAvailability": 3, "RankLatency": 3, "Freshness": 3},
        30,
        {
            'freshrank_http_requests_total{route="/v1/rank",code="503"}': rises(200),
            'freshrank_http_request_duration_seconds_bucket{route="/v1/rank",le="0.025"}': (
                rises(4000)
            ),
            "freshrank_freshness_event_to_servable_seconds_bucket"
            '{stage="total",kind="action",le="30.0"}': rises(40),
        },
        365,  # the longest alert of an objective goes by the last six hours
    ),
    Case({"ProcessDown": 1}, 3, {'up{job="freshrank-serve",instance="service-1"}': stands(0)}),
    Case({"NoTrainerLearns": 1}, 3, {'freshrank_trainer_leading{instance="a"}': stands(0)}),
    Case({"NoTrainerLearns": 1}, 3, {'freshrank_trainer_leading{instance="b"}': stands(1)}),
    Case(
        {"NoTrainerLearns": 1},
        3,
        dict.fromkeys(
            [f'freshrank_trainer_leading{{instance="{instance}"}}' for instance in "ab"], gone
        ),
    ),
    Case(
        {"StepsFail": 1},
        10,
        {'freshrank_worker_retries_total{job="freshrank-train",worker="trainer"}': rises(10)},
    ),
    Case({"CheckpointsFail": 1}, 10, {'freshrank_checkpoints_total{result="failed"}': rises(1)}),
    Case({"CheckpointsFail": 1}, 10, {'freshrank_checkpoints_total{result="damaged"}': rises(1)}),
    Case(
        {"CheckpointsFail": 1}, 25, {"freshrank_checkpoint_last_success_timestamp_seconds": still}
    ),
    Case(
        {"LagGrows": 1},
        20,
        {'freshrank_consumer_lag_records{topic="actions",partition="0"}': rises(5000)},
    ),
    Case(
        {"Unmatched": 1},
        45,
        {'freshrank_joiner_examples_total{outcome="unmatched"}': rises(30)},
        31,
    ),
    Case({"DeadLetters": 1}, 1, {'freshrank_dead_letters_total{topic="actions"}': rises(1)}, 61),
    Case(
        {"EventsRejected": 1},
        15,
        {'freshrank_events_rejected_total{kind="feedback",reason="schema"}': rises(30)},
    ),
    Case(
        {"NoTraffic": 1},
        20,
        {
            'freshrank_events_received_total{kind="feedback"}': still,
            'freshrank_events_rejected_total{kind="feedback",reason="schema"}': still,
        },
    ),
    Case({"VersionHeldBack": 1}, 7, {"freshrank_sync_held_back": stands(1)}),
    Case(
        {"PublicationsFail": 1},
        10,
        {'freshrank_trainer_publications_total{result="failed"}': rises(3)},
    ),
    Case(
        {"SyncStale": 1},
        5,
        {
            'freshrank_sync_last_success_timestamp_seconds{kind="sparse"}': still,
            "freshrank_serving_sync_seq": still,
        },
    ),
    Case({"EpochsDiffer": 1}, 4, {'freshrank_serving_sync_epoch{instance="service-2"}': stands(3)}),
    Case(
        {"FramesRefused": 1},
        10,
        {'freshrank_sync_batches_total{kind="delta",result="gap"}': rises(5)},
    ),
    Case(
        {"FeatureStateAway": 1},
        3,
        {'freshrank_serving_feature_state_up{instance="service-1"}': stands(0)},
    ),
    Case({"RequestsRejected": 1}, 10, {'freshrank_http_rejected_total{reason="shed"}': rises(300)}),
    Case({"TrainerPaused": 1}, 62, {"freshrank_trainer_paused": stands(1)}),
    Case(
        {"Calibration": 1},
        35,
        {'freshrank_trainer_calibration_ratio{task="click",source="served"}': stands(3)},
    ),
    Case(
        {"Calibration": 1},
        35,
        {'freshrank_trainer_calibration_ratio{task="click",source="served"}': stands(0.2)},
    ),
    Case(
        {"QualityDrops": 1},
        35,
        {'freshrank_trainer_progressive_auc{task="click",source="served"}': stands(0.5)},
    ),
    Case(
        {"BudgetFull": 1},
        35,
        {'freshrank_store_evictions_total{slot="item_id",reason="capacity"}': rises(50)},
    ),
]


def test_every_alert_is_seen_firing_and_resolving() -> None:
    assert {name for case in CASES for name in case.alerts} == {one.name for one in ALERTS}


def test_each_fault_is_told_while_it_lasts_and_nothing_else(tmp_path: Path) -> None:
    """One run of promtool for all: starting it takes longer than a case."""
    for name, document in RULES.items():
        (tmp_path / name).write_text(as_yaml(document))
    tests = [
        {
            "name": f"{number} {', '.join(case.alerts) or 'all is well'}",
            "interval": "1m",
            "input_series": [
                {"series": name, "values": case.values(name)} for name in {**HEALTHY, **case.ill}
            ],
            "promql_expr_test": [
                firing_at(BEFORE_MIN - 1, {}),
                firing_at(case.end_min - 1, case.alerts),
                firing_at(case.end_min + case.over_min, {}),
            ],
        }
        for number, case in enumerate(CASES)
    ]
    document = {"rule_files": list(RULES), "evaluation_interval": "1m", "tests": tests}
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps(document))  # JSON is YAML
    promtool("test", "rules", str(path))


def firing_at(minute: int, alerts: dict[str, int]) -> dict[str, Any]:
    """That at this minute these are told, so often, and no others."""
    told = [{"labels": f'{{alertname="{name}"}}', "value": n} for name, n in alerts.items()]
    return {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": told,
    }
