"""One process learns, another only ranks: what the first learned from a click reaches both."""

import functools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from redis import Redis

from freshrank.dev.redis import redis
from freshrank.dev.servers import Server, free_ports
from tests.integration.transport.log_checks import eventually
from tests.roles import Api, role
from tests.servers import started

CONFIG = """
features:
  - {{name: user_id, type: id, scope: user, dim: 4}}
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks: [{{name: click, event: click}}]
service: {{data_dir: {directory}}}
sync:
  sparse_every: 100ms
  channel: {{kind: redis, url: 'redis://{address}/0', prefix: e2e, retention: 64MiB}}
"""


class Pair:
    """Two services that share nothing but a Redis."""

    def __init__(self, server: Server, learning: Api, ranking: Api) -> None:
        self.server = server
        self.apis = (learning, ranking)
        self.n_clicks = 0

    def scores(self) -> list[float]:
        body = {"user": "u1", "candidates": [{"item": "i1"}], "log_impression": False}
        answers = [api.ask("/v1/rank", body) for api in self.apis]
        assert [answer.status_code for answer in answers] == [200, 200]
        return [float(answer.json()["items"][0]["score"]) for answer in answers]

    def click(self) -> str:
        """Rank at the one that learns, click; the receipt."""
        self.n_clicks += 1
        request_id, learning = f"r{self.n_clicks}", self.apis[0]
        ranking = {"request_id": request_id, "user": "u1", "candidates": [{"item": "i1"}]}
        assert learning.ask("/v1/rank", ranking).status_code == 200
        click = {"request_id": request_id, "user": "u1", "item": "i1", "event": "click"}
        return str(learning.ask("/v1/feedback", click).json()["receipt"])

    def assert_click_reaches_both(self) -> None:
        before = self.scores()
        receipt = self.click()
        status = self.apis[0].ask(f"/v1/events/{receipt}?wait=30s").json()
        assert status["state"] == "servable"
        eventually(lambda: min(a - b for a, b in zip(self.scores(), before, strict=True)) > 1e-4)
        eventually(lambda: abs(self.scores()[0] - self.scores()[1]) < 1e-6)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        [port] = free_ports(1)
        servers = started(functools.partial(redis, port=port), tmp_path / "redis")
        server = next(servers)
        stack.callback(next, servers, None)
        apis = []
        for name, options in (("learning", []), ("ranking", ["--no-learn"])):
            path, log = tmp_path / f"{name}.yaml", tmp_path / f"{name}.log"
            path.write_text(CONFIG.format(directory=tmp_path / name, address=server.address))
            [port] = free_ports(1)
            command = ("serve", "-c", str(path), "--port", str(port), *options)
            process = stack.enter_context(role(*command, log=log))
            apis.append(stack.enter_context(closing(Api(port))))
            apis[-1].until_ready(process, log)
            stack.callback(apis[-1].end, process)
        yield Pair(server, *apis)


def test_a_click_reaches_a_service_of_another_process(pair: Pair) -> None:
    pair.assert_click_reaches_both()

    os.kill(pair.server.process.pid, signal.SIGSTOP)
    try:
        before = pair.scores()
        pair.click()
        for _ in range(20):
            began_s = time.monotonic()
            assert pair.scores() == before
            assert time.monotonic() - began_s < 0.5
    finally:
        os.kill(pair.server.process.pid, signal.SIGCONT)
    eventually(lambda: min(a - b for a, b in zip(pair.scores(), before, strict=True)) > 1e-4)

    host, port = pair.server.address.split(":")
    with Redis(host, int(port)) as client:
        client.flushall()
    pair.assert_click_reaches_both()
    for api in pair.apis:
        assert api.ask("/health/ready").status_code == 200
