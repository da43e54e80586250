"""The service with its log on Kafka: what it accepts is there, what it cannot take it refuses."""

import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from freshrank.commands.serving import address, listen, served
from freshrank.dev.servers import Server
from freshrank.embedded import Embedded
from freshrank.errors import ConfigError
from freshrank.messages import Action, decode
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from tests.integration.transport.log_checks import DEADLINE_S, eventually, read_all
from tests.servers import NewCluster


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster(1)


@pytest.fixture
def settings(cluster: Cluster, tmp_path: Path) -> Settings:
    log = {"kind": "kafka", "brokers": list(cluster.brokers), "prefix": cluster.prefix}
    return Settings.model_validate(
        {
            "service": {"data_dir": str(tmp_path)},
            "log": {**log, "in_flight": 1},  # one append at a time
            "features": [
                {"name": "user_id", "type": "id", "scope": "user"},
                {"name": "item_id", "type": "id", "scope": "item"},
            ],
            "tasks": [{"name": "click", "event": "click"}],
        }
    )


@pytest.fixture
def loop(settings: Settings) -> Iterator[Embedded]:
    loop = Embedded(settings, learn=False)
    loop.start()
    try:
        yield loop
    finally:
        loop.close()


@pytest.fixture
def client(loop: Embedded) -> Iterator[httpx.Client]:
    with (
        closing(listen("127.0.0.1", 0)) as listener,
        served(loop.app, listener),
        httpx.Client(base_url=address(listener), timeout=DEADLINE_S) as client,
    ):
        yield client


def click(item: str) -> dict[str, Any]:
    return {"request_id": "r1", "item": item, "user": "u1", "event": "click"}


def clicked(cluster: Cluster) -> list[str]:
    """Items of the actions in the log, in order."""
    with closing(KafkaLog(cluster)) as log:
        messages = [decode(record.value) for record in read_all(log, ACTIONS, 0)]
    return [one.item for one in messages if isinstance(one, Action)]


def test_an_accepted_event_is_in_the_log(client: httpx.Client, cluster: Cluster) -> None:
    answer = client.post("/v1/feedback", json=click("i1"))
    assert answer.status_code == 202
    receipt = answer.json()["receipt"]
    assert client.get(f"/v1/events/{receipt}").json()["state"] == "queued"
    assert clicked(cluster) == ["i1"]


def test_a_broker_that_stands_still_makes_it_refuse_and_nothing_accepted_is_lost(
    client: httpx.Client,
    loop: Embedded,
    cluster: Cluster,
    kafka_server: Server,
) -> None:
    log = loop.log
    assert isinstance(log, KafkaLog)
    client.post("/v1/feedback", json=click("before"))
    answers: list[int] = []

    def post() -> None:
        answers.append(client.post("/v1/feedback", json=click("meanwhile")).status_code)

    waiting = threading.Thread(target=post)
    kafka_server.process.send_signal(signal.SIGSTOP)
    try:
        waiting.start()
        eventually(lambda: log.unacknowledged_bytes > 0)
        refused = client.post("/v1/feedback", json=click("refused"))
    finally:
        kafka_server.process.send_signal(signal.SIGCONT)
    waiting.join(DEADLINE_S)
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["type"] == "/problems/broker-unavailable"
    assert answers == [202]
    assert client.post("/v1/feedback", json=click("after")).status_code == 202
    assert clicked(cluster) == ["before", "meanwhile", "after"]


def test_learning_from_kafka_is_refused_as_yet(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="--no-learn"):
        Embedded(settings, learn=True)
