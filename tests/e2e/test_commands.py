"""`serve`, `rank` and `demo` as processes: what they refuse, and that they end cleanly."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from freshrank.client import call
from freshrank.errors import DataError
from tests.programs import FRESHRANK

CONFIG = """
features:
  - {name: item_id, type: id, scope: item, dim: 4}
tasks:
  - {name: click, event: click, negative: {from: shown}}
join: {window: 1s, max_out_of_order: 100ms}
sync: {sparse_every: 100ms}
"""


def run(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FRESHRANK, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "freshrank.yaml").write_text(CONFIG)
    return tmp_path


@contextmanager
def serving(directory: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running `freshrank serve` and its address."""
    process = subprocess.Popen(
        [FRESHRANK, "serve", "--port", "0", *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "http://" in line, process.communicate()[1]
        yield line.split()[-1], process
    finally:
        process.kill()
        process.communicate()


def learn_one_click(base: str, request: str = "r1") -> None:
    """An impression and its click, until they are servable."""
    impression = {"kind": "impression", "request_id": request, "items": [{"item": "i1"}]}
    click = {"kind": "feedback", "request_id": request, "item": "i1", "event": "click"}
    receipt = call(base, "/v1/events", {"events": [impression, click]})["receipt"]
    assert call(base, f"/v1/events/{receipt}?wait=30s")["state"] == "servable"


def test_serve_learns_stops_on_sigterm_and_goes_on_where_it_was(directory: Path) -> None:
    with serving(directory) as (base, process):
        learn_one_click(base)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "saved a checkpoint and stopped" in errors

    with serving(directory) as (base, process):
        answer = run(
            "rank", "--user", "u", "--url", base, "--json", "i1", "i2", directory=directory
        )
        known = {item["item"]: item["known"] for item in json.loads(answer.stdout)["items"]}
    assert known == {"i1": True, "i2": False}


def test_a_second_process_on_the_same_data_is_refused(directory: Path) -> None:
    with serving(directory):
        second = run("serve", "--port", "0", directory=directory)
    assert second.returncode == 3
    assert "already open for writing" in second.stderr


def test_a_taken_port_is_named_with_the_way_out(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for command in (["serve"], ["demo", "--headless"]):
            refused = run(*command, "--port", port, directory=directory)
            assert refused.returncode == 3
            assert f"port {port} on 127.0.0.1 is taken" in refused.stderr
            assert "--port" in refused.stderr


def test_rank_as_a_table_names_its_version(directory: Path) -> None:
    with serving(directory) as (base, _):
        learn_one_click(base)
        shown = run("rank", "--user", "u", "--url", base, "i1", "i2", directory=directory)
    assert shown.returncode == 0, shown.stderr
    assert "version d" in shown.stdout
    assert shown.stdout.index("i1") < shown.stdout.index("i2")


def test_rank_without_a_service_says_how_to_start_one(directory: Path) -> None:
    refused = run("rank", "--user", "u", "--url", "http://127.0.0.1:9", "i1", directory=directory)
    assert refused.returncode == 3
    assert "freshrank serve" in refused.stderr


def start_demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """A demo that keeps its temporary files in `directory`."""
    return subprocess.Popen(
        [FRESHRANK, "demo", "--port", "0", *arguments],
        cwd=directory,
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_demo_ends_cleanly_when_interrupted_while_it_warms_up(tmp_path: Path) -> None:
    process = start_demo(tmp_path, "--seconds", "300")
    assert process.stdout is not None
    assert "audience arrives" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "curl" not in shown
    assert list(tmp_path.glob("freshrank-demo-*")) == []


def test_demo_interrupted_before_it_is_ready_leaves_nothing(tmp_path: Path) -> None:
    process = start_demo(tmp_path, "--seconds", "300")
    while not list(tmp_path.glob("freshrank-demo-*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert list(tmp_path.glob("freshrank-demo-*")) == []


def test_demo_refuses_a_directory_with_another_configuration(directory: Path) -> None:
    refused = run("demo", "--headless", "--data-dir", ".", directory=directory)
    assert refused.returncode == 2
    assert "is not of the demo" in refused.stderr
    assert "--data-dir" in refused.stderr
    assert [path.name for path in directory.iterdir()] == ["freshrank.yaml"]


@pytest.mark.parametrize("name", ["freshrank.yaml", "freshrank.yaml/below"])
def test_demo_names_a_data_directory_that_cannot_be_made(directory: Path, name: str) -> None:
    refused = run("demo", "--headless", "--data-dir", name, directory=directory)
    assert refused.returncode == 3
    assert "Traceback" not in refused.stderr
    assert name in refused.stderr


def test_serve_goes_on_with_what_the_demo_left(tmp_path: Path) -> None:
    name = "what was: left #1"
    left = run(
        *("demo", "--headless", "--seconds", "2", "--json", "--data-dir", name), directory=tmp_path
    )
    assert left.returncode == 0, left.stderr
    with serving(tmp_path, "-c", f"{name}/freshrank.yaml", "--no-learn") as (base, _):
        deadline = time.monotonic() + 30
        while not call(base, "/v1/stats")["rows"] and time.monotonic() < deadline:
            time.sleep(0.05)
        rows = call(base, "/v1/stats")["rows"]
    assert isinstance(rows, int)
    assert rows > 100


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("dim: 4", "dim: 8", "schema"),
        ("name: click,", "name: tap,", "begin with a new data directory"),
        ("\njoin:", "\nlog: {partitions: 3}\njoin:", "1 partitions, not 3"),
    ],
)
def test_serve_names_what_differs_from_the_configuration_of_its_data(
    directory: Path, before: str, after: str, text: str
) -> None:
    with serving(directory) as (base, process):
        learn_one_click(base)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    (directory / "freshrank.yaml").write_text(CONFIG.replace(before, after))
    refused = run("serve", "--port", "0", directory=directory)
    assert refused.returncode in (1, 3)
    assert text in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def status(base: str, path: str, body: dict[str, Any]) -> int:
    """The status of an answer that may be a refusal."""
    try:
        call(base, path, body)
    except DataError as error:
        if not isinstance(error.__cause__, urllib.error.HTTPError):
            raise
        return error.__cause__.code
    return 200


def fill(path: Path) -> None:
    """Leave no room on the disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4_096))


def test_a_full_disk_refuses_events_keeps_ranking_and_is_left_by_itself(
    directory: Path, small_disk: Path
) -> None:
    text = CONFIG.replace("\njoin:", f"\nservice: {{data_dir: {small_disk}}}\njoin:")
    (directory / "freshrank.yaml").write_text(text + "checkpoint: {every: 200ms}\n")
    with serving(directory) as (base, process):
        learn_one_click(base)
        filler = small_disk / "filler"
        fill(filler)
        click = {
            "kind": "feedback",
            "request_id": "r2",
            "item": "i1",
            "event": "click",
            "user": "u" * 250,
        }
        # The last page of each file still has room.
        assert 503 in [status(base, "/v1/events", {"events": [click]}) for _ in range(100)]
        time.sleep(1.0)  # checkpoints and publications meet the full disk too
        body = {"user": "u", "candidates": [{"item": "i1"}], "log_impression": False}
        assert call(base, "/v1/rank", body)["items"]
        filler.unlink()
        learn_one_click(base, "r3")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
