"""A service that learns and has keys, as a process that only its test visits."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from freshrank.dev.servers import free_ports
from tests.roles import Api, role

# A key by what it may do.
_SCOPES: Final = {"all": ["rank", "events", "read", "admin"], "window": ["rank"]}
IN_FLIGHT: Final = 4
CONFIG: Final = """
features:
  - {name: user_id, type: id, scope: user, dim: 4}
  - {name: item_id, type: id, scope: item, dim: 4}
  - {name: price, type: dense, scope: item}
tasks: [{name: click, event: click}]
join: {window: 1s, max_out_of_order: 100ms}
sync: {sparse_every: 100ms, dense_every: 100ms}
"""


@dataclass(frozen=True)
class Shop:
    """The service.

    Attributes:
        port: Of it.
        api: With a key that may do all.
        window: With a key that may only rank.
    """

    port: int
    api: Api
    window: Api

    def rank(self, *items: str, user: str = "ann", **more: Any) -> dict[str, Any]:
        """The answer; `more` are fields of the request."""
        candidates = [{"item": item} for item in items]
        answer = self.api.ask("/v1/rank", {"user": user, "candidates": candidates, **more})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until_servable(self, receipt: str) -> dict[str, Any]:
        """What became of the events, once they are in the parameters."""
        status: dict[str, Any] = self.api.ask(f"/v1/events/{receipt}?wait=30s").json()
        assert status["state"] == "servable"
        return status


@contextmanager
def open_shop(directory: Path) -> Iterator[Shop]:
    """One that is ready, while the context lasts."""
    keys = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "scopes": scopes}
        for name, scopes in _SCOPES.items()
    ]
    parts = {
        "service": {"data_dir": str(directory / "data")},
        "auth": {"keys": keys},
        "limits": {"in_flight": IN_FLIGHT},
    }
    path, log = directory / "freshrank.yaml", directory / "serve.log"
    # JSON is YAML.
    path.write_text(CONFIG + "".join(f"{k}: {json.dumps(v)}\n" for k, v in parts.items()))
    [port] = free_ports(1)
    with ExitStack() as stack:
        process = stack.enter_context(role("serve", "-c", str(path), "--port", str(port), log=log))
        api, window = (stack.enter_context(closing(Api(port, key))) for key in _SCOPES)
        api.until_ready(process, log)
        yield Shop(port, api, window)
