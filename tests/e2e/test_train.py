"""`freshrank train` as a process: history first, then the log, then `serve` goes on."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from freshrank.client import call
from tests.e2e.test_commands import run, serving
from tests.programs import FRESHRANK, as_json


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an audience did, learned, and its archive."""
    directory = tmp_path_factory.mktemp("demo")
    as_json("demo", "--headless", "--seconds", 4, "--data-dir", directory)
    config = directory / "freshrank.yaml"
    config.write_text(config.read_text() + f"\narchive: {{dir: {directory / 'archive'}}}\n")
    assert trained(directory) == {"history": 0, "stream": 0}  # the demo has learned it
    return directory


@pytest.fixture
def fresh(recorded: Path, tmp_path: Path) -> Path:
    """The same configuration, with nothing learned."""
    text = (recorded / "freshrank.yaml").read_text()
    text = text.replace(f'data_dir: "{recorded}"', "data_dir: data")
    text = text.replace(str(recorded / "archive"), str(tmp_path / "archive"))
    (tmp_path / "freshrank.yaml").write_text(text)
    return tmp_path


def trained(directory: Path, *arguments: str) -> dict[str, Any]:
    """The summary of a run until all is learned, without its duration."""
    done = run("train", "--until-lag", "0", "--json", *arguments, directory=directory)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("seconds") > 0
    return dict(found)


def test_history_is_learned_once_and_served_afterwards(recorded: Path, fresh: Path) -> None:
    archive = str(recorded / "archive")
    first = trained(fresh, "--history", archive)
    assert first["history"] > 1_000
    assert first["stream"] == 0
    assert trained(fresh, "--history", archive) == {"history": 0, "stream": 0}
    with serving(fresh) as (base, process):
        stats = call(base, "/v1/stats")
        assert stats["accounting"]["rows_learned"] == first["history"]
        second = run("train", directory=fresh)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert second.returncode == 3
    assert "already open for writing" in second.stderr


def test_train_joins_and_learns_the_log_and_archives_it(fresh: Path) -> None:
    with serving(fresh, "--no-learn") as (base, _):
        impression = {"kind": "impression", "request_id": "r", "items": [{"item": "i1"}]}
        click = {"kind": "feedback", "request_id": "r", "item": "i1", "event": "click"}
        assert call(base, "/v1/events", {"events": [impression, click]})["accepted"] == 2
    assert trained(fresh)["stream"] > 0
    assert len(list((fresh / "archive").glob("hour=*/part-*.parquet"))) == 1


def test_train_ends_with_a_checkpoint_when_interrupted(recorded: Path, fresh: Path) -> None:
    command = [FRESHRANK, "train", "--history", str(recorded / "archive")]
    process = subprocess.Popen(
        command, cwd=fresh, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = map(json.loads, process.stderr)
    assert next(line for line in lines if line["event"] == "trainer=learning")["role"] == "train"
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "saved a checkpoint" in shown
    assert list((fresh / "data" / "trainer").glob("checkpoint-*"))


def test_a_directory_that_is_no_archive_is_refused(fresh: Path) -> None:
    refused = run("train", "--history", "nowhere", directory=fresh)
    assert refused.returncode == 1
    assert "nowhere is no archive" in refused.stderr
    assert not list((fresh / "data").glob("trainer/checkpoint-*"))


def test_history_of_another_schema_names_both_hashes(recorded: Path, fresh: Path) -> None:
    text = (fresh / "freshrank.yaml").read_text()
    (fresh / "freshrank.yaml").write_text(text + "\nsalt: 99\n")
    refused = run("train", "--history", str(recorded / "archive"), directory=fresh)
    assert refused.returncode == 1
    assert "was written for schema" in refused.stderr


def test_an_archive_is_replayed_to_the_same_parameters_twice(recorded: Path) -> None:
    archive = str(recorded / "archive")
    runs = [run("replay", archive, "--json", directory=recorded) for _ in range(2)]
    first, second = (json.loads(done.stdout) for done in runs)
    assert first["parameters"] == second["parameters"]
    assert first["examples"] > 1_000
    assert [model["name"] for model in first["models"]] == ["freshrank", "as served"]
    rest = run("replay", archive, "--checkpoint", "trainer", "--json", directory=recorded)
    assert json.loads(rest.stdout)["examples"] == 0  # the demo has learned all of it


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("archive", "--from", "10"), "write an hour"),
        (("archive", "--seeds", "2"), "so an archive"),
        (("freshrank.yaml", "--allow-gaps"), "is no directory"),
    ],
)
def test_options_that_do_not_fit_an_archive_are_refused(
    recorded: Path, arguments: tuple[str, ...], told: str
) -> None:
    refused = run("replay", *arguments, directory=recorded)
    assert refused.returncode == 2
    assert told in refused.stderr
