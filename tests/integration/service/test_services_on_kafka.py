"""Two `freshrank serve` on one Kafka, as processes: alike, bounded, and gone without a trace."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from ruamel.yaml import YAML

from freshrank.dev.servers import Server, free_ports
from freshrank.messages import Action, Entity, decode, encode, entity_key
from freshrank.transport.base import ACTIONS, ENTITIES, NewRecord, TopicPartition
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_transactions import Transactions
from tests.integration.transport.log_checks import eventually, read_all
from tests.programs import FRESHRANK
from tests.proofs import record, scale
from tests.roles import Api, role
from tests.servers import NewCluster
from tests.unit.service.support import NOW_MS, World, make_settings

N_PARTITIONS: Final = 3
IN_FLIGHT: Final = 4 << 20
STANDSTILL_S: Final = scale("standstill", 4)
STOP_S: Final = 40.0  # a probe's period, the grace of requests, and closing
FEATURES: Final = [
    {"name": "user_id", "type": "id", "scope": "user", "dim": 4},
    {"name": "item_id", "type": "id", "scope": "item", "dim": 4},
    {"name": "price", "type": "dense", "scope": "item"},
]


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster(N_PARTITIONS)


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Path:
    """A configuration on Kafka, and a base in its parameter channel."""
    document = {
        "service": {"data_dir": str(tmp_path / "data")},
        "features": FEATURES,
        "tasks": [{"name": "click", "event": "click"}],
        "log": {
            "kind": "kafka",
            "brokers": list(cluster.brokers),
            "prefix": cluster.prefix,
            "partitions": N_PARTITIONS,
            "in_flight": IN_FLIGHT,
        },
    }
    with (tmp_path / "freshrank.yaml").open("w") as file:
        YAML().dump(document, file)
    settings = make_settings(features=FEATURES, tasks=document["tasks"])
    with closing(World(tmp_path / "data", settings=settings)) as world:
        world.base()
    return tmp_path / "freshrank.yaml"


class Serving:
    """Starts services of one configuration."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._stack = ExitStack()

    def start(self) -> tuple[Api, subprocess.Popen[bytes]]:
        """One that is ready."""
        [port] = free_ports(1)
        log = self._config.with_name(f"serve-{port}.log")
        arguments = ("serve", "-c", str(self._config), "--port", str(port))
        process = self._stack.enter_context(role(*arguments, log=log))
        api = self._stack.enter_context(closing(Api(port)))
        api.until_ready(process, log)
        self._stack.callback(api.end, process)
        return api, process

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def serving(config: Path) -> Iterator[Serving]:
    with closing(Serving(config)) as serving:
        yield serving


def feedback(event_id: str) -> dict[str, Any]:
    one = {"kind": "feedback", "event_id": event_id, "request_id": event_id, "item": "i"}
    return {"events": [{**one, "event": "click"}]}


def ranking(*items: str) -> dict[str, Any]:
    return {"user": "u1", "candidates": [{"item": item} for item in items]}


def accepted_ids(cluster: Cluster) -> list[str]:
    """Events in the log."""
    with closing(KafkaLog(cluster, n_partitions=N_PARTITIONS)) as log:
        messages = [
            decode(record.value)
            for p in range(N_PARTITIONS)
            for record in read_all(log, ACTIONS, p)
        ]
    return [one.event_id for one in messages if isinstance(one, Action)]


def degraded(answer: httpx.Response) -> list[str]:
    """What the answer had to do without, beside the trainer, which no test here starts."""
    return [one for one in answer.json()["degraded"] if one != "trainer_away"]


def rss_bytes(process: subprocess.Popen[bytes]) -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_each_service_sees_the_entities_of_all_whatever_gaps_the_topic_has(
    serving: Serving, cluster: Cluster
) -> None:
    items = [f"i{i}" for i in range(12)]
    transaction: dict[TopicPartition, list[NewRecord]] = {}
    with closing(KafkaLog(cluster, n_partitions=N_PARTITIONS)) as log:
        for item in items:
            key = entity_key("item", item)
            entity = Entity(
                event_id=item,
                ts_ms=NOW_MS,
                received_at_ms=NOW_MS,
                scope="item",
                id=item,
                features={"price": 1.0},
            )
            place = TopicPartition(ENTITIES, log.partition_of(ENTITIES, key))
            transaction.setdefault(place, []).append(NewRecord(key, encode(entity)))
    assert len(transaction) == N_PARTITIONS
    with closing(Transactions(cluster, "prices")) as transactions:  # ends in marks, not in records
        transactions.commit(transaction, group="prices", offsets={})
    (first, _), (second, _) = serving.start(), serving.start()
    news = [f"new{i}" for i in range(12)]
    for sender, reader in ((first, second), (second, first)):
        assert reader.ask("/v1/rank", ranking(*items)).json()["missing"]["features"] == []
        assert reader.ask("/v1/rank", ranking(*news)).json()["missing"]["features"] == ["price"]
        events = [{"kind": "item", "item": item, "features": {"price": 2.0}} for item in news]
        receipt = sender.ask("/v1/events", {"events": events}).json()["receipt"]
        told = reader.ask(f"/v1/events/{receipt}?wait=20s").json()
        assert told["state"] == "servable"
        assert reader.ask("/v1/rank", ranking(*news)).json()["missing"]["features"] == []
        news = [f"newer{i}" for i in range(12)]


@pytest.mark.timeout(120 + 2 * STANDSTILL_S)
def test_while_the_broker_stands_still_it_ranks_and_refuses_events_and_stays_small(
    serving: Serving, cluster: Cluster, kafka_server: Server
) -> None:
    api, process = serving.start()
    assert degraded(api.ask("/v1/rank", ranking("a"))) == []
    answers: dict[str, httpx.Response] = {}
    is_over = threading.Event()

    def post(worker: int) -> None:
        for number in count():
            if is_over.wait(0.2):
                return
            event_id = f"{worker}-{number}"
            answers[event_id] = api.ask("/v1/events", feedback(event_id))

    def taken() -> set[str]:
        return {name for name, one in answers.copy().items() if one.status_code == 202}

    with ThreadPoolExecutor(40) as pool:
        workers = [pool.submit(post, worker) for worker in range(40)]
        try:
            eventually(lambda: len(taken()) >= 40)
            before_bytes, slowest_s, grown_bytes = rss_bytes(process), 0.0, 0
            kafka_server.process.send_signal(signal.SIGSTOP)
            try:
                end_s = time.monotonic() + STANDSTILL_S
                while (began_s := time.monotonic()) < end_s:
                    answer = api.ask("/v1/rank", ranking("a"))
                    slowest_s = max(slowest_s, time.monotonic() - began_s)
                    # Nobody learns what was taken before, which is known for a second more.
                    reasons = [one for one in degraded(answer) if one != "stale_sparse"]
                    assert (answer.status_code, reasons) == (200, ["broker"])
                    grown_bytes = max(grown_bytes, rss_bytes(process) - before_bytes)
            finally:
                kafka_server.process.send_signal(signal.SIGCONT)
            n_before = len(taken())
            eventually(lambda: len(taken()) >= n_before + 40)
        finally:
            is_over.set()
    for one in workers:
        one.result()
    refused = [one for one in answers.values() if one.status_code != 202]
    assert {(one.status_code, one.headers["Retry-After"]) for one in refused} == {(503, "1")}
    # Kafka's client would give up after 10 s; a ranking goes on without it after half a second.
    assert slowest_s < cluster.timeout_ms / 4_000
    assert grown_bytes < IN_FLIGHT + (64 << 20)
    lost = taken() - set(accepted_ids(cluster))
    assert lost == set()
    record(
        "a service whose broker stands still ranks, answers 503, and loses nothing that it took",
        seconds=STANDSTILL_S,
        taken=len(taken()),
        refused=len(refused),
        lost=len(lost),
        grown_mib=round(grown_bytes / (1 << 20), 1),
        slowest_rank_seconds=round(slowest_s, 2),
    )


def test_it_says_that_it_stops_before_it_stops_and_loses_no_request(
    serving: Serving, cluster: Cluster
) -> None:
    api, process = serving.start()
    is_told, is_over = threading.Event(), threading.Event()
    accepted: list[str] = []
    failed: list[object] = []

    def post(worker: int) -> None:
        number = 0
        while not is_over.is_set():
            event_id = f"{worker}-{number}"
            answer = api.ask("/v1/events", feedback(event_id))
            (accepted if answer.status_code == 202 else failed).append(event_id)
            number += 1
            if is_told.is_set():
                return  # as a balancer that has read 503

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(post, worker) for worker in range(4)]
        eventually(lambda: len(accepted) > 20)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: api.ask("/health/ready").status_code == 503)
        is_told.set()
        try:
            for worker in workers:
                worker.result()
        except httpx.TransportError as error:
            failed.append(error)
        finally:
            is_over.set()
    assert process.wait(STOP_S) == 0
    assert failed == []
    assert sorted(accepted_ids(cluster)) == sorted(accepted)


def test_a_second_signal_ends_it_at_once(serving: Serving) -> None:
    _, process = serving.start()  # the probe that found it ready is waited for
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(2.0) == -signal.SIGTERM


def test_learning_there_is_refused_with_the_roles_that_do(config: Path) -> None:
    command = [FRESHRANK, "serve", "-c", str(config), "--learn"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "start `freshrank join` and `freshrank train`" in refused.stderr
