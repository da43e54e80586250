"""A service without descriptors to spare lets nobody in, and goes on once there are some."""

import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from freshrank.dev.servers import free_ports
from tests.integration.transport.log_checks import eventually
from tests.roles import Api, role

CONFIG = """
features:
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks:
  - {{name: click, event: click, negative: {{from: shown}}}}
service: {{data_dir: {data}}}
join: {{window: 1s, max_out_of_order: 100ms}}
sync: {{sparse_every: 100ms}}
checkpoint: {{every: 200ms}}
"""


class Serving:
    """A running `freshrank serve` that learns.

    Args:
        process: The process.
        port: Where it listens.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.port = port
        self.api = Api(port)
        self._proc = Path(f"/proc/{process.pid}")
        self._n_requests = 0

    @property
    def n_descriptors(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    @contextmanager
    def limited(self, kind: int, most: int) -> Iterator[None]:
        """It has no more than this of something while the context lasts."""
        soft, hard = resource.prlimit(self.process.pid, kind)
        resource.prlimit(self.process.pid, kind, (most, hard))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, kind, (soft, hard))

    def rank(self) -> int:
        """The status of a ranking."""
        return self.api.ask("/v1/rank", {"user": "u", "candidates": [{"item": "i"}]}).status_code

    def learns(self) -> None:
        """What is shown and clicked now becomes servable."""
        self._n_requests += 1
        about = {"request_id": f"r{self._n_requests}", "item": "i1", "event": "click"}
        shown = {"kind": "impression", "request_id": about["request_id"], "items": [{"item": "i1"}]}
        answer = self.api.ask("/v1/events", {"events": [shown, {"kind": "feedback", **about}]})
        assert answer.status_code == 202, answer.text
        receipt = answer.json()["receipt"]
        told = self.api.ask(f"/v1/events/{receipt}?wait=25s").json()
        assert told["state"] == "servable", told


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    config, said = tmp_path / "freshrank.yaml", tmp_path / "said"
    config.write_text(CONFIG.format(data=tmp_path / "data"))
    [port] = free_ports(1)
    with role("serve", "-c", str(config), "--port", str(port), log=said) as process:
        one = Serving(process, port)
        with closing(one.api):
            one.api.until_ready(process, said)
            one.learns()
            yield one
            process.kill()  # it would wait until whoever asked for readiness asks again


def test_without_descriptors_nobody_new_is_let_in_until_there_are_some(serving: Serving) -> None:
    assert serving.rank() == 200  # over a connection that stays
    most = serving.n_descriptors + 10
    with ExitStack() as crowd, serving.limited(resource.RLIMIT_NOFILE, most):
        for _ in range(60):
            crowd.enter_context(socket.create_connection(("127.0.0.1", serving.port)))
        eventually(lambda: serving.n_descriptors >= most)
        assert serving.rank() == 200
        crowd.close()
        with closing(Api(serving.port)) as newcomer:
            eventually(lambda: newcomer.ask("/health/live").status_code == 200)
    serving.learns()
