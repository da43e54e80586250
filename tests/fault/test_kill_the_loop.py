"""kill -9 at random points over a recorded log changes no bit of parameters or feature state.

`make prove` runs it with more kills.
"""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from freshrank import config
from freshrank.backup.manifest import Manifest
from freshrank.backup.restore import restore
from freshrank.backup.take import take
from freshrank.clock import SystemClock
from freshrank.messages import Action, Impression, decode
from freshrank.settings import ServiceSettings
from freshrank.transport.base import ACTIONS, ENTITIES, EXAMPLES, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.fault.learner_process import learn
from tests.fault.processes import heard, told
from tests.programs import as_json
from tests.proofs import record, scale

END_TIMEOUT_S = 60.0  # of a process that has told its last
LIVE = """features:
  - {name: rate, type: rate, event: click, half_life: 2s}
  - {name: clicks, type: count, event: click, of: user_id, by: device, half_life: 3s}
  - {name: seen, type: seen, event: click, value: ago}
  - {name: age, type: seen, event: click, value: age}
"""
N_KILLS = scale("kills", 12)
N_BACKUPS = max(N_KILLS // 12, 1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose log holds what an audience did, and nothing learned from it."""
    source = tmp_path_factory.mktemp("demo")
    as_json("demo", "--headless", "--seconds", 6, "--data-dir", source)
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


@pytest.fixture(scope="module")
def undisturbed(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of it when nothing happens."""
    directory = tmp_path_factory.mktemp("undisturbed") / "data"
    shutil.copytree(recorded, directory)
    return finish(directory)


def finish(directory: Path) -> dict[str, Any]:
    process, here = heard(learn, directory)
    for _ in told(here):
        pass
    process.join(END_TIMEOUT_S)
    assert process.exitcode == 0
    result = json.loads((directory / "result.json").read_text())
    assert isinstance(result, dict)
    return result


def kill_at(directory: Path, n_examples: int) -> bool:
    """Run until so many examples are learned, then SIGKILL; False when it had finished."""
    process, here = heard(learn, directory)
    for n_learned in told(here):
        if n_learned >= n_examples:
            process.kill()  # while it is heard: it must not end of a pipe that nobody reads
            break
    process.join(END_TIMEOUT_S)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.timeout(60 + 15 * N_KILLS)
def test_parameters_after_kills_equal_an_undisturbed_run(
    recorded: Path,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    seed = int(os.environ.get("FRESHRANK_SEED", "7"))
    rng = random.Random(seed)
    disturbed, expected = tmp_path / "disturbed", undisturbed
    shutil.copytree(recorded, disturbed)
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


@pytest.mark.timeout(240 + 60 * N_BACKUPS)  # the fixtures are in it
def test_backups_of_a_loop_at_work_lead_to_the_same_bits(
    recorded: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    rng = random.Random(int(os.environ.get("FRESHRANK_SEED", "7")))
    shutil.copytree(recorded, tmp_path / "data")
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(tmp_path / "data")}
    settings = config.load(recorded / "freshrank.yaml", environ=environ)
    n_examples = undisturbed["totals"]["examples_learned"]
    points = sorted(rng.randrange(64, n_examples) for _ in range(N_BACKUPS))
    process, here = heard(learn, tmp_path / "data")
    taken: list[Manifest] = []
    for n_learned in told(here):
        if len(taken) < N_BACKUPS and n_learned >= points[len(taken)]:
            taken.append(take(settings, b"", tmp_path / f"backup-{len(taken)}"))
    process.join(END_TIMEOUT_S)
    assert process.exitcode == 0
    assert len(taken) == N_BACKUPS

    ends = []
    for n in range(N_BACKUPS):
        elsewhere = tmp_path / f"restored-{n}"
        place = ServiceSettings(data_dir=elsewhere)
        restore(
            settings.model_copy(update={"service": place}),
            tmp_path / f"backup-{n}",
            is_forced=False,
        )
        for name in ("recorded.json", "freshrank.yaml"):
            shutil.copy(recorded / name, elsewhere)
        ends.append(taken[n].log[f"{EXAMPLES}:0"][1])
        result = finish(elsewhere)
        names = ("totals", "tables", "dense", "features", "accounting_problems")
        assert {name: result[name] for name in names} == {name: undisturbed[name] for name in names}
    # The loop was at work: parts that were copied one after another were of different moments.
    assert ends[0] < undisturbed["records"][EXAMPLES]
