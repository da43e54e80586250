"""A user is forgotten by the whole loop while it runs, and old records bring nothing back.

Once in one process, and once with Kafka and Redis between processes of their own, where two
services serve: what is proved is proved of both.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pytest

from freshrank import config
from freshrank.dev.servers import Server, free_ports, stop
from freshrank.features import FeatureEncoder
from freshrank.state_layout import StateLayout
from tests.integration.transport.log_checks import eventually
from tests.programs import FRESHRANK, as_json, ended
from tests.roles import START_TIMEOUT_S, Api, role
from tests.unit.service.support import until
from trainer.checkpoint import read
from trainer.checkpoint_store import CheckpointStore

CONFIG: Final = """
features:
  - {{name: user_id, type: id, scope: user, dim: 4, admission: {{min_count: 2}}}}
  - {{name: item_id, type: id, scope: item, dim: 4}}
  - {{name: last_clicks, type: recent, event: click, max_len: 5}}
  - {{name: clicked, type: seen, event: click, value: did}}
tasks: [{{name: click, event: click}}]
service: {{data_dir: {directory}}}
join: {{window: 1s, max_out_of_order: 200ms, allowed_lateness: 1s}}
sync: {{sparse_every: 100ms, dense_every: 1s}}
checkpoint: {{every: 500ms}}
"""
ITEMS: Final = [f"i{n}" for n in range(5)]
ANN: Final = "ann of the first floor"
NOTHING: Final = {"row": False, "recent": 0, "features": 0}


@dataclass
class Deployment:
    """One that runs, how to ask it, and how to start its trainer again.

    `others` are the replicas beside the service at `port`, by their ports.
    """

    api: Api
    port: int
    config: Path
    restart: Callable[[Callable[[], None]], None]
    others: dict[int, Api] = field(default_factory=dict)

    def known(self) -> list[dict[str, Any]]:
        """What each service knows of the user."""
        path = f"/v1/admin/keys/user_id/{quote(ANN)}?dry_run=true"
        return [api.delete(path).json()["known"] for api in (self.api, *self.others.values())]

    def is_known(self, *, recent: int) -> bool:
        """Whether every service has a row of the user and so many items in her list."""
        return all(known["row"] and known["recent"] == recent for known in self.known())

    def click(self, user: str, name: str) -> None:
        """Show all items to a user, who clicks one; return once that is served."""
        request = {
            "request_id": name,
            "user": user,
            "candidates": [{"item": item} for item in ITEMS],
        }
        assert self.api.ask("/v1/rank", request).status_code == 200
        click = {"request_id": name, "user": user, "item": "i1", "event": "click"}
        receipt = self.api.ask("/v1/feedback", click).json()["receipt"]
        answer = self.api.ask(f"/v1/events/{receipt}?wait=30s").json()
        assert answer["state"] == "servable", answer

    def rows(self) -> dict[str, bool]:
        """Whether each checkpoint has a row of the user."""
        settings = config.load(self.config, environ={})
        assert "user_id" in {slot.name for slot in FeatureEncoder(settings).slots}
        token = StateLayout(settings).tokens("user_id", [ANN])
        store = CheckpointStore(settings.service.data_dir / "trainer", keep=3)
        found = {path.name: read(path).tables["user_id"] for path in store.all()}
        return {name: bool(table.contains(np.array(token))[0]) for name, table in found.items()}

    @property
    def checkpoints(self) -> Path:
        return config.load(self.config, environ={}).service.data_dir / "trainer"


def serving(stack: ExitStack, path: Path, log: Path, *options: str) -> tuple[Api, int, Any]:
    [port] = free_ports(1)
    process = stack.enter_context(
        role("serve", "-c", str(path), "--port", str(port), *options, log=log)
    )
    api = stack.enter_context(closing(Api(port)))
    api.until_ready(process, log)
    return api, port, process


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Deployment]:
    path, log = tmp_path / "freshrank.yaml", tmp_path / "serve.log"
    path.write_text(CONFIG.format(directory=tmp_path / "data"))
    with ExitStack() as stack:
        api, port, process = serving(stack, path, log)

        def restart(meanwhile: Callable[[], None]) -> None:
            nonlocal process
            stop(process)
            meanwhile()
            running.api, running.port, process = serving(stack, path, log)

        running = Deployment(api, port, path, restart)
        yield running


@pytest.fixture
def distributed(kafka_server: Server, redis_server: Server, tmp_path: Path) -> Iterator[Deployment]:
    path, prefix = tmp_path / "freshrank.yaml", tmp_path.name[-40:]
    redis = f"{{kind: redis, url: 'redis://{redis_server.address}/0', prefix: {prefix}}}"
    kafka = f"kind: kafka, brokers: ['{kafka_server.address}'], prefix: {prefix}., partitions: 2"
    text = CONFIG.format(directory=tmp_path / "data")
    text = text.replace("sync: {", f"sync: {{channel: {redis}, ")
    path.write_text(f"{text}log: {{{kafka}, replication: 1}}\nstate: {redis}\n")
    ended(FRESHRANK, "topics", "create", "-c", path)
    with ExitStack() as stack:
        train = ("train", "-c", str(path))
        trainer = stack.enter_context(role(*train, log=tmp_path / "train.log"))
        stack.enter_context(role("join", "-c", str(path), log=tmp_path / "join.log"))
        api, port, _ = serving(stack, path, tmp_path / "serve.log")
        other, other_port, _ = serving(stack, path, tmp_path / "other.log")

        def restart(meanwhile: Callable[[], None]) -> None:
            nonlocal trainer
            stop(trainer)
            epoch = running.api.ask("/v1/models/main").json()["epoch"]
            meanwhile()
            trainer = stack.enter_context(role(*train, log=tmp_path / "train.log"))
            until(
                lambda: running.api.ask("/v1/models/main").json()["epoch"] > epoch,
                timeout_s=START_TIMEOUT_S,
            )

        running = Deployment(api, port, path, restart, {other_port: other})
        yield running


def forget_and_prove(running: Deployment) -> None:
    for n in range(3):
        running.click(ANN, f"old-{n}")
        running.click(f"u{n}", f"other-{n}")
    eventually(lambda: running.is_known(recent=3))
    eventually(lambda: any(running.rows().values()))
    kept = as_json("snapshots", "keep", "before", "-c", str(running.config))["name"]
    assert running.rows()[kept]

    url, *others = [f"http://127.0.0.1:{port}" for port in (running.port, *running.others)]
    replicas = [f"--service={other}" for other in others]
    answer = as_json("forget", "user_id", ANN, "--url", url, *replicas)

    known = {"row": True, "recent": 3, "features": 0}
    assert (answer["known"], answer["services"]) == (known, dict.fromkeys([url, *others], known))
    assert running.known() == [NOTHING] * (1 + len(others))  # the moment it returns
    eventually(lambda: not any(running.rows().values()) and len(running.rows()) >= 2)
    assert kept in running.rows()

    # A new trainer learns all that the topics have, from the start.
    running.restart(lambda: shutil.rmtree(running.checkpoints))
    running.click("u9", "later")
    assert running.known() == [NOTHING] * (1 + len(others))

    # The count begins at nothing: a row comes with the second request.
    running.click(ANN, "new-1")
    assert not any(known["row"] for known in running.known())
    running.click(ANN, "new-2")
    eventually(lambda: running.is_known(recent=2))


def test_a_forgotten_user_stays_out_of_the_loop_in_one_process(embedded: Deployment) -> None:
    forget_and_prove(embedded)


def test_a_forgotten_user_stays_out_of_the_loop_on_kafka_and_redis(
    distributed: Deployment,
) -> None:
    forget_and_prove(distributed)
