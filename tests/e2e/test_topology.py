"""docker-compose.yml as processes on loopback: its commands and its settings, without Docker."""

import json
import re
import shlex
import signal
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.dev.servers import Server, free_ports
from freshrank.logs import open_log
from freshrank.messages import Impression, decode
from freshrank.settings import Settings
from freshrank.transport.base import IMPRESSIONS
from tests.integration.transport.log_checks import eventually, read_all
from tests.programs import FRESHRANK, ended
from tests.promtool import promtool
from tests.roles import Api, role

ROOT: Final = Path(__file__).parents[2]
CONFIG: Final = ROOT / "deploy" / "freshrank.yaml"
COMPOSE: Final[dict[str, Any]] = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
# What the composition runs of ours, by image target.
SERVICES: Final = ("service-1", "service-2")
SERVE: Final = ("topics", "joiner", *SERVICES)
TRAIN: Final = ("trainer", "trainer-standby")
MOUNTED: Final = "/etc/freshrank/freshrank.yaml"
STOP_S: Final = 40.0


def settings_of_compose() -> Settings:
    return config.load(CONFIG, environ={})


@dataclass
class Topology:
    """The composition's roles as processes."""

    directory: Path
    environ: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    apis: list[Api] = field(default_factory=list)

    def command(self, name: str) -> list[str]:
        command = COMPOSE[name]["command"]
        return [str(CONFIG) if argument == MOUNTED else argument for argument in command]

    def settings(self) -> Settings:
        return config.load(CONFIG, environ=self.environ)

    def metrics(self, name: str) -> str:
        """What a joiner or trainer says, on the port that it names in its log."""
        assert self.processes[name].poll() is None, self.logs()
        [url] = re.findall(r'metrics on ([^\s"]+)', (self.directory / f"{name}.log").read_text())
        return httpx.get(url, timeout=30.0).raise_for_status().text

    def logs(self) -> str:
        return "\n".join(
            f"{p.name}: {p.read_text()[-2_000:]}" for p in self.directory.glob("*.log")
        )


@pytest.fixture
def topology(
    kafka_server: Server, redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Topology]:
    """Everything running and ready; only addresses and folders are the machine's own."""
    prefix = tmp_path.name[-40:]
    environ = {
        "FRESHRANK__SERVICE__HOST": "127.0.0.1",
        "FRESHRANK__SERVICE__DATA_DIR": str(tmp_path / "data"),
        "FRESHRANK__LOG__BROKERS": f"['{kafka_server.address}']",
        "FRESHRANK__LOG__PREFIX": f"{prefix}.",
        "FRESHRANK__STATE__URL": f"redis://{redis_server.address}/0",
        "FRESHRANK__STATE__PREFIX": prefix,
        "FRESHRANK__SYNC__SPARSE_EVERY": "200ms",
        "FRESHRANK__SYNC__CHANNEL__URL": f"redis://{redis_server.address}/0",
        "FRESHRANK__SYNC__CHANNEL__PREFIX": f"{prefix}.p",
        "FRESHRANK__METRICS__HOST": "127.0.0.1",
        "FRESHRANK__METRICS__PORT": "0",
        "FRESHRANK__LOGGING__LEVEL": "debug",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    running = Topology(tmp_path, environ)
    with ExitStack() as stack:
        ended(FRESHRANK, *running.command("topics"))
        for name in ("trainer", "trainer-standby", "joiner", "service-1", "service-2"):
            log = tmp_path / f"{name}.log"
            command = running.command(name)
            if name.startswith("service"):
                [port] = free_ports(1)
                command += ["--port", str(port)]
                running.apis.append(stack.enter_context(closing(Api(port))))
            running.processes[name] = stack.enter_context(role(*command, log=log))
        for number, api in enumerate(running.apis, start=1):
            name = f"service-{number}"
            api.until_ready(running.processes[name], tmp_path / f"{name}.log")
        yield running


def assert_all_is_told(topology: Topology) -> None:
    """Of the click, by every process: where it was joined, who learned it, and what they lack."""
    eventually(lambda: lags(topology) == [0, 0, 0, 0])  # at last: ticks come now and then
    texts = {name: topology.metrics(name) for name in ("joiner", *TRAIN)}
    for text in texts.values():
        assert promtool("check", "metrics", given=text) == ""
    joined = values(texts["joiner"])
    assert sum(joined["freshrank_joiner_examples_total", "matched"]) == 1
    assert sum(joined["freshrank_freshness_event_to_servable_seconds_count", "join"]) >= 1
    trainers = [values(texts[name]) for name in TRAIN]
    leading = [one["freshrank_trainer_leading", ""] for one in trainers]
    assert sorted(leading) == [[0], [1]]
    leader, standby = sorted(trainers, key=lambda one: one["freshrank_trainer_leading", ""])[::-1]
    assert leader["freshrank_trainer_examples_total", ""][0] >= 1
    assert len(leader["freshrank_consumer_lag_records", "examples"]) == 2
    assert ("freshrank_trainer_examples_total", "") not in standby


def assert_followed(topology: Topology, request_id: str) -> None:
    """Every process that had to do with the request says so, by its id, and not whose it was."""
    said = set()
    for path in topology.directory.glob("*.log"):
        text = path.read_text()
        for line in text.splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("request_id") == request_id:
                said.add((told["role"], told["event"]))
        assert '"u1"' not in text
    assert said == {
        ("serve", "request=ranked"),
        ("serve", "event=accepted"),
        ("join", "request=joined"),
        ("train", "request=learned"),
    }


def lags(topology: Topology) -> list[float]:
    """Of both partitions of both inputs."""
    joined = values(topology.metrics("joiner"))
    name = "freshrank_consumer_lag_records"
    return joined.get((name, "impressions"), []) + joined.get((name, "actions"), [])


def values(text: str) -> dict[tuple[str, str], list[float]]:
    """(name, one of its label values, or "" where it has none) -> value of each series."""
    found: dict[tuple[str, str], list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label in set(sample.labels.values()) or {""}:
                found.setdefault((sample.name, label), []).append(sample.value)
    return found


def score(api: Api, item: str) -> float:
    body = {"user": "u1", "candidates": [{"item": item}], "log_impression": False}
    return float(api.ask("/v1/rank", body).json()["items"][0]["score"])


def test_a_click_at_one_service_changes_the_scores_of_both(topology: Topology) -> None:
    first, second = topology.apis
    before = [score(api, "i1") for api in topology.apis]
    ranking = {
        "request_id": "r1",
        "user": "u1",
        "candidates": [{"item": "i1", "features": {"category": "jazz"}}, {"item": "i2"}],
    }
    answer = first.ask("/v1/rank", ranking)
    assert (answer.status_code, answer.json()["degraded"]) == (200, ["untrained"])
    click = {"request_id": "r1", "user": "u1", "item": "i1", "event": "click"}
    receipt = first.ask("/v1/feedback", click).json()["receipt"]
    for api in (second, first):
        status = api.ask(f"/v1/events/{receipt}?wait=30s").json()
        assert status["state"] == "servable", topology.logs()
        assert [one["outcome"] for one in status["outcomes"]] == ["trained"]
    eventually(lambda: abs(score(first, "i1") - score(second, "i1")) < 1e-5)
    for api, earlier in zip(topology.apis, before, strict=True):
        assert score(api, "i1") > earlier + 1e-4
    # What the joiner wrote into Redis, the other service read for its ranking.
    again = second.ask("/v1/rank", {**ranking, "request_id": "r2"})
    assert again.json()["degraded"] == []
    assert again.json()["items"][0]["known"]
    with closing(open_log(topology.settings(), SystemClock())) as log:
        shown = [
            message
            for partition in range(log.n_partitions(IMPRESSIONS))
            for record in read_all(log, IMPRESSIONS, partition)
            if isinstance(message := decode(record.value), Impression)
        ]
    served = {one.request_id: one for one in shown}
    assert served["r1"].shared["recent_items"] == []
    assert served["r2"].shared["recent_items"] == ["i1"]
    for api in topology.apis:  # as Prometheus scrapes them
        assert "freshrank_serving_feature_state_up 1.0" in api.ask("/metrics").text
    assert_all_is_told(topology)
    assert_followed(topology, "r1")
    for process in topology.processes.values():
        process.send_signal(signal.SIGTERM)
    codes = {name: process.wait(STOP_S) for name, process in topology.processes.items()}
    assert codes == dict.fromkeys(topology.processes, 0), topology.logs()


def test_the_composition_names_what_there_is() -> None:
    settings = settings_of_compose()
    beside = {"kafka", "redis", "redis-parameters", "prometheus", "grafana"}
    assert set(COMPOSE) == {*SERVE, *TRAIN, *beside}
    assert settings.log.brokers == ["kafka:9092"]
    assert COMPOSE["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://kafka:9092"
    assert settings.state.url == "redis://redis:6379/0"
    assert settings.sync.channel.url == "redis://redis-parameters:6379/0"
    assert COMPOSE["redis-parameters"]["command"][-1] == "noeviction"
    for name in (*TRAIN, *SERVICES):
        assert COMPOSE[name]["depends_on"]["redis-parameters"] == {"condition": "service_healthy"}
    for name in ("joiner", *SERVICES):  # those that write and read feature state
        assert COMPOSE[name]["depends_on"]["redis"] == {"condition": "service_healthy"}
    published = {name: COMPOSE[name]["ports"] for name in ("prometheus", "grafana")}
    assert published == {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}
    for name in ("kafka", "redis", "prometheus", "grafana"):  # each keeps what it has
        assert any(volume.startswith(f"{name}:/") for volume in COMPOSE[name]["volumes"])
    data_dir = str(settings.service.data_dir)
    for name in (*SERVE, *TRAIN):
        one = COMPOSE[name]
        assert one["build"]["target"] == ("train" if name in TRAIN else "serve")
        assert f"data:{data_dir}" in one["volumes"]
        assert f"./deploy/freshrank.yaml:{MOUNTED}:ro" in one["volumes"]
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
    for name in ("joiner", *TRAIN, "service-1", "service-2"):
        assert COMPOSE[name]["depends_on"]["topics"] == {
            "condition": "service_completed_successfully"
        }
    assert [COMPOSE[name]["command"][0] for name in (*SERVE, *TRAIN)] == [
        *("topics", "join", "serve", "serve", "train", "train"),
    ]
    ports = [COMPOSE[name]["ports"] for name in ("service-1", "service-2")]
    assert ports == [[f"127.0.0.1:{port}:{settings.service.port}"] for port in (8001, 8002)]
    scraped = YAML(typ="safe").load(ROOT / "deploy/prometheus/prometheus.yml")["scrape_configs"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped}
    assert jobs == {
        "freshrank-serve": [f"{name}:{settings.service.port}" for name in SERVICES],
        "freshrank-join": [f"joiner:{settings.metrics.port}"],
        "freshrank-train": [f"{name}:{settings.metrics.port}" for name in TRAIN],
    }
    for name in ("joiner", *TRAIN):
        probe = COMPOSE[name]["healthcheck"]["test"][-1]
        assert f"http://127.0.0.1:{settings.metrics.port}/health/live" in probe


def test_every_part_is_pinned_bounded_and_watched() -> None:
    ours = (*SERVE, *TRAIN)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    pom = (ROOT / "deploy/kafka/pom.xml").read_text()
    assert f"<version>{COMPOSE['kafka']['image'].partition(':')[2]}</version>" in pom
    for name, one in COMPOSE.items():
        tag = one["image"].rpartition(":")[2]
        assert tag == version if name in ours else tag[0] in "v0123456789"
        assert one["mem_limit"]
        assert one["cpus"]
        assert one["restart"] == ("no" if name == "topics" else "unless-stopped")
        # What has no port is watched by its end.
        assert ("healthcheck" in one) == (name != "topics")
        for port in one.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's steps, each on one line."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def stages() -> Mapping[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split()[-1]] = []
        found[rest.split()[-1] if word == "FROM" else list(found)[-1]].append((word, rest))
    return found


def test_the_images_are_of_one_wheel_run_as_nobody_and_only_one_has_torch() -> None:
    built = stages()
    assert set(built) == {"build", "base", "train", "serve"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for target in ("train", "serve"):
        steps = built[target]
        assert steps[0] == ("FROM", f"base AS {target}")
        [install] = [rest for word, rest in steps if word == "RUN"]
        names = install.rpartition("[")[2].rpartition("]")[0].split(",")
        packages = {package for name in names for package in extras[name]}
        assert any(package.startswith("torch") for package in packages) == (target == "train")
        for needed in ("kafka-python", "redis", "pyarrow"):
            assert any(package.startswith(needed) for package in packages)
        after = [word for word, _ in steps[steps.index(("RUN", install)) :]]
        assert ("USER", "10001:10001") in steps
        assert after.index("USER") < after.index("CMD")
    # All that the wheel is made of is sent to be built, and nothing else.
    ignored = (ROOT / ".dockerignore").read_text().split()
    packages_of_wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "scikit-build"
    ]["wheel"]["packages"]
    assert {f"!{name}" for name in (*packages_of_wheel, "pyproject.toml")} <= set(ignored)
    assert ignored[0] == "*"
    # Every shell step is one that a shell understands.
    for word, rest in instructions():
        if word == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0
            assert shlex.split(rest)


def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", str(ROOT / "deploy" / "prometheus" / "prometheus.yml"))
