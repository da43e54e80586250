"""`/metrics` of a process that has no HTTP of its own, beside what it does, until it is stopped."""

import hashlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from freshrank import metrics_port
from freshrank.commands.serving import address, listen, metrics_served
from freshrank.config import loads
from freshrank.errors import TransportError
from freshrank.metrics import Reading, ReadingCollector
from freshrank.metrics_port import MetricsPort
from service.auth import Auth
from tests.programs import FRESHRANK
from tests.promtool import promtool

CONFIG = """
features:
  - {name: item_id, type: id, scope: item, dim: 4}
tasks:
  - {name: click, event: click}
metrics: {port: 0}
"""
DEADLINE_S = 60.0


def get(url: str, key: str | None = None) -> tuple[int, str]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_trainer_is_scraped_while_it_learns_and_ends_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "freshrank.yaml").write_text(CONFIG)
    process = subprocess.Popen(
        [FRESHRANK, "train", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = map(json.loads, process.stderr)
        told = next(line["event"] for line in lines if line["event"].startswith("metrics on "))
        url = told.split()[-1]
        assert url.startswith("http://127.0.0.1:")
        assert get(url.replace("/metrics", "/health/live")) == (200, '{"live":true}')
        status, text = get(url)
        assert status == 200
        # A connection that stays open holds nothing up.
        host, port = re.findall(r"//(.+):(\d+)/", url)[0]
        with socket.create_connection((host, int(port))):
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(output)["stream"] == 0
    assert promtool("check", "metrics", given=text) == ""
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["freshrank_trainer_leading"] == 1
    assert values["freshrank_consumer_lag_records"] == 0
    assert values["freshrank_joiner_rounds_total"] == 0
    assert values["process_cpu_seconds_total"] > 0


def test_a_taken_port_is_named_with_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = loads(CONFIG.replace("port: 0", f"port: {port}"), name="test.yaml", environ={})
        with (
            pytest.raises(TransportError, match=f"port {port} on 127.0.0.1 is taken.*metrics.port"),
            metrics_served(settings, list),
        ):
            pass


def test_without_a_port_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.replace("metrics: {port: 0}", "")
    with metrics_served(loads(text, name="test.yaml", environ={}), list):
        assert threading.active_count() == len(
            [one for one in threading.enumerate() if one.name != "metrics"]
        )
    assert capsys.readouterr().err == ""


class _Slow(ReadingCollector):
    """Readings that take as long as a test wants."""

    def __init__(self) -> None:
        super().__init__(lambda: [Reading("trainer_leading", 1.0)])
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()

    def collect(self) -> Iterator[Metric]:
        self.is_asked.set()
        self.may_answer.wait(DEADLINE_S)
        return super().collect()


@contextmanager
def port_of(*collectors: ReadingCollector, text: str = CONFIG) -> Iterator[str]:
    """An open port; its address."""
    registry = CollectorRegistry()
    for one in collectors:
        registry.register(one)
    auth = Auth(loads(text, name="test.yaml", environ={}))
    listener = listen("127.0.0.1", 0)
    port = MetricsPort(listener, registry, auth)
    try:
        yield address(listener)
    finally:
        port.close()


def test_keys_guard_the_figures_but_not_the_probe() -> None:
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("reads", "ranks")}
    keys = f"""auth:
  keys:
    - {{name: prometheus, sha256: {digests["reads"]}, scopes: [read]}}
    - {{name: web, sha256: {digests["ranks"]}, scopes: [rank]}}
"""
    leading = ReadingCollector(lambda: [Reading("trainer_leading", 1.0)])
    with port_of(leading, text=CONFIG + keys) as base:
        assert [get(f"{base}/metrics", key)[0] for key in (None, "wrong", "ranks")] == [
            401, 401, 403,
        ]  # fmt: skip
        status, text = get(f"{base}/metrics", "reads")
        assert (status, text.splitlines()[-1]) == (200, "freshrank_trainer_leading 1.0")
        assert get(f"{base}/health/live")[0] == 200
        assert get(f"{base}/")[0] == 404


def test_readings_that_fail_are_told_and_the_port_stays_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> list[Reading]:
        raise ValueError("a bug")

    with port_of(ReadingCollector(fail)) as base:
        assert get(f"{base}/metrics")[0] == 500
        assert get(f"{base}/health/live")[0] == 200
    assert "a bug" in caplog.text


def test_clients_that_say_nothing_lose_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port._Handler, "timeout", 0.2)
    with port_of() as base:
        host, port = re.findall(r"//(.+):(\d+)", base)[0]
        idle = [
            socket.create_connection((host, int(port))) for _ in range(metrics_port.AT_ONCE_MAX + 2)
        ]
        assert get(f"{base}/health/live")[0] == 200
        for one in idle:
            assert one.recv(1) == b""
            one.close()


def test_a_probe_is_answered_beside_a_scrape_and_closing_waits_for_neither() -> None:
    slow = _Slow()
    asker = None
    with port_of(slow) as base:
        answers: list[int] = []
        asker = threading.Thread(target=lambda: answers.append(get(f"{base}/metrics")[0]))
        asker.start()
        assert slow.is_asked.wait(DEADLINE_S)
        assert get(f"{base}/health/live")[0] == 200
        began_s = time.monotonic()
    assert time.monotonic() - began_s < DEADLINE_S / 2
    slow.may_answer.set()
    asker.join(DEADLINE_S)
    assert answers == [200]  # what was under way ends as well
