"""What the README's curls show is learning: without it nothing changes, and nothing is lost."""

import json
import time
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ended

CURLS = files("freshrank").joinpath("curls.txt").read_text()
DEADLINE_S = 20.0


def paste(text: str, directory: Path) -> list[Any]:
    """Run a block in a shell; each curl answers with one line of JSON."""
    run = ended("bash", "-euo", "pipefail", "-c", text, cwd=directory)
    decoder = json.JSONDecoder()
    answers, rest = [], run.stdout.strip()
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].lstrip()
    return answers


def post(url: str, body: object | None = None) -> Any:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:  # noqa: S310
        return json.load(answer)


@pytest.fixture
def paused(demo: str) -> Iterator[str]:
    """The demo with its trainer paused, once the last publication under way has been applied."""
    post(f"{demo}/v1/admin/trainer/pause")
    deadline = time.monotonic() + DEADLINE_S
    while not get(f"{demo}/v1/stats")["statistics"]["paused"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield demo
    post(f"{demo}/v1/admin/trainer/resume")


def test_nothing_changes_while_the_trainer_is_paused(paused: str, tmp_path: Path) -> None:
    text = CURLS.replace("http://127.0.0.1:8000", paused).replace("my-first-item", "unlearned-item")
    before, events, after = paste(text.replace("wait=5", "wait=2"), tmp_path)

    assert events["accepted"] == 6
    assert after["freshness"]["after_satisfied"] is False
    assert after["items"] == before["items"]
    assert after["model"] == before["model"]


def test_what_was_sent_while_paused_is_learned_after_resuming(demo: str) -> None:
    post(f"{demo}/v1/admin/trainer/pause")
    body = {"user": "pat", "candidates": [{"item": "late-learned"}], "log_impression": True}
    answer = post(f"{demo}/v1/rank", body)
    feedback = {"request_id": answer["request_id"], "item": "late-learned", "event": "click"}
    receipt = post(f"{demo}/v1/feedback", feedback)["receipt"]
    post(f"{demo}/v1/admin/trainer/resume")

    state = get(f"{demo}/v1/events/{receipt}?wait=20s")

    assert state["state"] == "servable"
    assert [outcome["outcome"] for outcome in state["outcomes"]] == ["trained"]
