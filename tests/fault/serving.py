"""A running `freshrank serve` that learns, on a machine that lacks something."""

import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from freshrank.dev.servers import free_ports
from tests.roles import Api, role

SHOP = """
features:
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks:
  - {{name: click, event: click, negative: {{from: shown}}}}
service: {{data_dir: {data}}}
checkpoint: {{every: 200ms}}
"""
CONFIG = (
    SHOP
    + """
join: {{window: 1s, max_out_of_order: 100ms}}
sync: {{sparse_every: 100ms}}
"""
)


class Serving:
    """A running `freshrank serve` that learns.

    Args:
        process: The process.
        port: Where it listens.
        said: What it prints.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, said: Path) -> None:
        self.process = process
        self.port = port
        self.said = said
        self.api = Api(port)
        self._proc = Path(f"/proc/{process.pid}")
        self._n_requests = 0
        self.request_id = ""  # of what was sent last

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

    def send(self, *items: str) -> str:
        """Show these items and click the first; the receipt."""
        self._n_requests += 1
        self.request_id = f"{self.process.pid}-{self._n_requests}"
        about = {"request_id": self.request_id, "item": items[0], "event": "click"}
        shown = {
            "kind": "impression",
            "request_id": about["request_id"],
            "items": [{"item": item} for item in items],
        }
        answer = self.api.ask("/v1/events", {"events": [shown, {"kind": "feedback", **about}]})
        assert answer.status_code == 202, answer.text
        receipt: str = answer.json()["receipt"]
        return receipt

    def became(self, receipt: str) -> dict[str, Any]:
        """What became of it, once it is servable."""
        told: dict[str, Any] = self.api.ask(f"/v1/events/{receipt}?wait=25s").json()
        assert told["state"] == "servable", told
        return told

    def learns(self) -> None:
        """What is shown and clicked now becomes servable, as it was learned."""
        [outcome] = self.became(self.send("i1"))["outcomes"]
        assert outcome["outcome"] == "trained", outcome


@contextmanager
def serving(
    directory: Path, *, config: str = CONFIG, environ: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    """One that is ready and has learned; the data of the one before in this directory is its own.

    Args:
        directory: For its files.
        config: With a place for its data directory.
        environ: Beside the environment of this process.
    """
    path, said = directory / "freshrank.yaml", directory / "said"
    path.write_text(config.format(data=directory / "data"))
    [port] = free_ports(1)
    with role("serve", "-c", str(path), "--port", str(port), log=said, environ=environ) as process:
        one = Serving(process, port, said)
        with closing(one.api):
            one.api.until_ready(process, said)
            one.became(one.send("i1"))  # of what a new epoch's base brings no outcome is told
            yield one
            process.kill()  # it would wait until whoever asked for readiness asks again
