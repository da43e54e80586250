"""An operator goes back while 200 requests a second come: none fails, the version flips once."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from freshrank.dev.servers import free_ports
from tests.integration.transport.log_checks import eventually
from tests.programs import FRESHRANK, as_json
from tests.proofs import record
from tests.roles import Api, role
from tests.unit.service.support import until

CONFIG = """
features:
  - {{name: user_id, type: id, scope: user, dim: 4}}
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks: [{{name: click, event: click}}]
service: {{data_dir: {directory}}}
join: {{window: 2s}}
sync: {{sparse_every: 100ms, dense_every: 100ms}}
checkpoint: {{every: 500ms}}
"""
ITEMS = [f"i{n}" for n in range(20)]
N_THREADS, RATE_HZ = 16, 200
AROUND_S = 2.0  # of load before the roll-back, and after it
# Longer than a window and its lateness, whose end may bring negatives.
STILL_S = 4.0


@dataclass
class Load:
    """Rank requests, of which one is due every 1 / `RATE_HZ` seconds; answers by thread.

    An open loop: what a full machine asks too late it asks all the same, at once.
    """

    port: int
    began_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[list[tuple[int, str]]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self.began_s = time.monotonic()
        for number in range(N_THREADS):
            self.answers.append([])
            self.threads.append(threading.Thread(target=self._ask, args=(number,)))
            self.threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def until_answered(self, seconds: float) -> None:
        """Until all that is due in so many seconds from now is answered, and all before it."""
        n_due = int(RATE_HZ * (time.monotonic() - self.began_s + seconds)) // N_THREADS + 1
        until(lambda: min(map(len, self.answers)) >= n_due, timeout_s=120.0)

    def _ask(self, number: int) -> None:
        answers = self.answers[number]
        with closing(Api(self.port)) as api:
            while not self.stop.is_set():
                due_s = self.began_s + (number + N_THREADS * len(answers)) / RATE_HZ
                self.stop.wait(max(0.0, due_s - time.monotonic()))
                answer = rank(api)
                version = answer.json()["model"]["version"] if answer.is_success else ""
                answers.append((answer.status_code, version))


def rank(api: Api) -> Any:
    body = {"user": "u", "candidates": [{"item": i} for i in ITEMS], "log_impression": False}
    return api.ask("/v1/rank", body)


def teach(api: Api, name: str, clicked: str) -> None:
    """Show all items to ten users, each of whom clicks one; wait until that is served."""
    receipt = ""
    for n in range(10):
        request = {
            "request_id": f"{name}-{n}",
            "user": f"u{n}",
            "candidates": [{"item": i} for i in ITEMS],
        }
        assert api.ask("/v1/rank", request).status_code == 200
        click = {"request_id": f"{name}-{n}", "user": f"u{n}", "item": clicked, "event": "click"}
        receipt = str(api.ask("/v1/feedback", click).json()["receipt"])
    assert api.ask(f"/v1/events/{receipt}?wait=30s").json()["state"] == "servable"


def model(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.ask("/v1/models/main").json()
    return found


def settled(api: Api) -> list[dict[str, Any]]:
    """The answer once nothing more is learned or published."""
    since_s, version = time.monotonic(), ""

    def is_still() -> bool:
        nonlocal since_s, version
        if (now := model(api)["version"]) != version:
            since_s, version = time.monotonic(), now
        return time.monotonic() - since_s > STILL_S

    eventually(is_still)
    items: list[dict[str, Any]] = rank(api).json()["items"]
    return items


@dataclass(frozen=True)
class Shop:
    """A service that learns."""

    api: Api
    port: int
    config: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    path, log = tmp_path / "freshrank.yaml", tmp_path / "serve.log"
    path.write_text(CONFIG.format(directory=tmp_path / "data"))
    [port] = free_ports(1)
    with ExitStack() as stack:
        process = stack.enter_context(role("serve", "-c", str(path), "--port", str(port), log=log))
        api = stack.enter_context(closing(Api(port)))
        api.until_ready(process, log)
        yield Shop(api, port, path)


@pytest.mark.timeout(300)  # a full machine takes that long for what is due
def test_rolled_back_under_load_every_request_is_answered(shop: Shop) -> None:
    teach(shop.api, "good", "i1")
    good = settled(shop.api)
    learned = shop.api.ask("/v1/stats").json()["accounting"]["rows_learned"]
    snapshots = ("snapshots", "list", "-c", str(shop.config))
    eventually(lambda: [one["rows_learned"] for one in as_json(*snapshots)][-1:] == [learned])
    kept = as_json("snapshots", "keep", "good", "-c", str(shop.config))
    assert kept["name"] == "kept-good"
    for n in range(3):
        teach(shop.api, f"poison-{n}", "i2")
    bad = settled(shop.api)
    assert bad != good
    taught = shop.api.ask("/v1/stats").json()["accounting"]["rows_learned"] - learned
    dry = ("rollback", "--to", "kept-good", "--pause", "--dry-run", "--url", shop.url)
    assert as_json(*dry)["rows_taken_back"] == taught > 0
    assert settled(shop.api) == bad
    assert shop.api.ask("/v1/stats").json()["trainer"]["paused"] is False

    with Load(shop.port) as load:
        load.until_answered(AROUND_S)
        done = as_json(
            *("rollback", "--to", "kept-good", "--pause", "--reason", "poisoned"),
            *("--url", shop.url),
        )
        # Every request that was due at that rate until then has been answered: none was left out.
        due_s = time.monotonic() - load.began_s + AROUND_S
        load.until_answered(AROUND_S)

    took_s, n_answers = time.monotonic() - load.began_s, sum(map(len, load.answers))
    assert n_answers >= RATE_HZ * due_s
    assert done["now"]["epoch"] == done["from"]["epoch"] + 1
    for answers in load.answers:
        assert {status for status, _ in answers} == {200}
        versions = [version for version, _ in groupby(version for _, version in answers)]
        assert versions == [done["from"]["version"], done["now"]["version"]]
    record(
        "roll-back under load: no request fails, the version flips once",
        due_per_s=RATE_HZ,
        answered=n_answers,
        answered_per_s=round(n_answers / took_s, 1),
        errors=0,
        served_after_s=done["seconds"],
    )
    assert settled(shop.api) == good
    assert shop.api.ask("/v1/stats").json()["trainer"]["paused"] is True
    metrics = shop.api.ask("/metrics").text
    assert "\nfreshrank_trainer_rollbacks_total 1.0\n" in metrics
    assert f"\nfreshrank_serving_sync_epoch {float(done['now']['epoch'])}\n" in metrics
    names = [one["name"] for one in as_json(*snapshots)]
    assert names[0] == "kept-good"


def test_a_roll_back_that_is_refused_says_where_to_look(shop: Shop) -> None:
    refused = subprocess.run(
        [FRESHRANK, "rollback", "--to", "nowhere", "--wait", "1", "--url", shop.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 3
    assert "freshrank dlq list --topic control" in refused.stderr
    letters = as_json("dlq", "list", "--topic", "control", "-c", str(shop.config))
    assert letters["reason"] == "unknown-checkpoint"
