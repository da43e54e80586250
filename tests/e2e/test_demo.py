"""The demo as a newcomer runs it: one command, a result that adds up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FRESHRANK = Path(sys.executable).with_name("freshrank")


@pytest.fixture(scope="module")
def outcome() -> dict[str, object]:
    run = subprocess.run(
        [FRESHRANK, "demo", "--headless", "--seconds", "8", "--json", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    result = json.loads(run.stdout)
    assert isinstance(result, dict)
    return result


def test_everything_received_is_accounted_for(outcome: dict[str, object]) -> None:
    assert outcome["accounting_problems"] == []


def test_the_loop_learned_from_actions_and_their_absence(outcome: dict[str, object]) -> None:
    accounting = outcome["accounting"]
    assert isinstance(accounting, dict)
    assert accounting["click.positive"] > 50
    assert accounting["click.negative"] > 500
    assert accounting["dwell.positive"] > 10
    assert accounting["duplicate"] > 0
    assert accounting["examples_learned"] > 1_000
    assert accounting["click.pending"] == 0


def test_freshness_and_the_filter_were_measured(outcome: dict[str, object]) -> None:
    p50, p99 = outcome["freshness_p50_seconds"], outcome["freshness_p99_seconds"]
    assert isinstance(p50, float)
    assert isinstance(p99, float)
    assert 0 < p50 <= p99
    assert isinstance(outcome["rows"], int)
    assert outcome["rows"] > 500
    assert isinstance(outcome["filtered"], int)
    assert outcome["filtered"] > 0
