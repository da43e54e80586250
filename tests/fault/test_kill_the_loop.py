"""kill -9 at random points over a recorded log changes no bit of parameters or feature state.

`make prove` runs it with more kills.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freshrank.clock import SystemClock
from freshrank.messages import Action, Impression, decode
from freshrank.transport.base import ACTIONS, ENTITIES, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.proofs import record, scale

FRESHRANK = Path(sys.executable).with_name("freshrank")
LEARNER = Path(__file__).with_name("learner_process.py")
LIVE = """features:
  - {name: rate, type: rate, event: click, half_life: 2s}
  - {name: clicks, type: count, event: click, of: user_id, by: device, half_life: 3s}
  - {name: seen, type: seen, event: click, value: ago}
  - {name: age, type: seen, event: click, value: age}
"""
N_KILLS = scale("kills", 20)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose log holds what an audience did, and nothing learned from it."""
    source = tmp_path_factory.mktemp("demo")
    command = [str(FRESHRANK), "demo", "--headless", "--seconds", "6", "--json"]
    command += ["--data-dir", str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    target = tmp_path_factory.mktemp("recorded")
    n_recorded = 0
    played = LocalLog(source / "log", clock=SystemClock())
    log = LocalLog(target / "log", clock=SystemClock())
    for topic in (ENTITIES, IMPRESSIONS, ACTIONS):
        records = played.read(topic, 0, 0, n_max=1_000_000, bytes_max=1 << 30)
        assert len(records) == played.end_offset(topic, 0)
        # Ticks are the joiner's own: a joiner that starts afresh appends its own again.
        kept = [r for r in records if isinstance(decode(r.value), Impression | Action)]
        n_recorded += len(kept)
        if topic == ENTITIES:
            kept = records
        log.append(topic, [NewRecord(r.key, r.value) for r in kept], partition=0)
    played.close()
    log.close()
    (target / "recorded.json").write_text(json.dumps(n_recorded))
    text = (source / "freshrank.yaml").read_text()
    text += "\ntrainer: {batching: fixed, batch_max: 64}\n"
    text = text.replace("checkpoint: {every: 20s, keep: 3}", "checkpoint: {every: 100ms, keep: 3}")
    (target / "freshrank.yaml").write_text(text.replace("features:\n", LIVE, 1))
    return target


def start(directory: Path) -> subprocess.Popen[str]:
    files = (LEARNER, directory / "freshrank.yaml", directory, directory / "result.json")
    command = [sys.executable, *map(str, files)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )


def finish(directory: Path) -> dict[str, Any]:
    learner = start(directory)
    _, errors = learner.communicate(timeout=150)
    assert learner.returncode == 0, errors
    result = json.loads((directory / "result.json").read_text())
    assert isinstance(result, dict)
    return result


def kill_at(directory: Path, n_examples: int) -> bool:
    """Run until so many examples are learned, then SIGKILL; False when it had finished."""
    learner = start(directory)
    assert learner.stdout is not None
    for line in learner.stdout:
        if int(line) >= n_examples:
            learner.send_signal(signal.SIGKILL)
            break
    learner.communicate(timeout=150)
    return learner.returncode == -signal.SIGKILL


@pytest.mark.timeout(60 + 15 * N_KILLS)
def test_parameters_after_kills_equal_an_undisturbed_run(
    recorded: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("FRESHRANK_SEED", "7"))
    rng = random.Random(seed)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    shutil.copytree(recorded, undisturbed)
    shutil.copytree(recorded, disturbed)
    expected = finish(undisturbed)
    assert expected["accounting_problems"] == []
    n_examples = expected["totals"]["examples_learned"]
    assert n_examples > 2_000

    points = sorted(rng.randrange(n_examples - 64) for _ in range(N_KILLS))
    n_killed = sum(kill_at(disturbed, point) for point in points)
    result = finish(disturbed)

    assert n_killed == N_KILLS
    assert result["totals"] == expected["totals"]
    assert result["accounting_problems"] == []
    assert result["tables"] == expected["tables"]
    assert result["dense"] == expected["dense"]
    assert len(expected["features"]) == 6
    assert result["features"] == expected["features"]
    record(
        "parameters and feature state after kill -9 of joiner and trainer equal an undisturbed "
        "run's, bit for bit",
        kills=n_killed,
        examples=n_examples,
        lost_or_doubled=0,
        seed=seed,
    )
