"""`serve`, `rank` and `demo` as processes: what they refuse, and that they end cleanly."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FRESHRANK = str(Path(sys.executable).with_name("freshrank"))
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


def post(url: str, body: object) -> dict[str, object]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        result = json.load(answer)
    assert isinstance(result, dict)
    return result


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
        result = json.load(answer)
    assert isinstance(result, dict)
    return result


def learn_one_click(base: str) -> None:
    """An impression and its click, until they are servable."""
    impression = {"kind": "impression", "request_id": "r1", "items": [{"item": "i1"}]}
    click = {"kind": "feedback", "request_id": "r1", "item": "i1", "event": "click"}
    receipt = post(f"{base}/v1/events", {"events": [impression, click]})["receipt"]
    assert get(f"{base}/v1/events/{receipt}?wait=30s")["state"] == "servable"


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


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_listening_beyond_loopback_needs_keys(directory: Path, command: str) -> None:
    refused = run(command, "--host", "0.0.0.0", "--port", "0", directory=directory)  # noqa: S104
    assert refused.returncode == 2
    assert "refusing to listen on 0.0.0.0 without auth.keys" in refused.stderr


def test_serve_shows_every_mistake_of_the_configuration_and_binds_nothing(directory: Path) -> None:
    text = CONFIG.replace("window: 1s", "window: soon").replace("dim: 4", "dim: none")
    (directory / "freshrank.yaml").write_text(text)
    refused = run("serve", directory=directory)
    assert refused.returncode == 2
    assert [line.split(": ")[0] for line in refused.stderr.splitlines() if ": error: " in line] == [
        "freshrank.yaml:3:49",
        "freshrank.yaml:6:16",
    ]
    assert refused.stdout == ""


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
