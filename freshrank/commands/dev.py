"""`freshrank dev`: a real Kafka or Redis on this machine, until stopped."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from freshrank.commands.serving import stopped_by_signal
from freshrank.dev.kafka import kafka
from freshrank.dev.redis import redis
from freshrank.dev.servers import Server
from freshrank.errors import TransportError

_SERVERS: Final[dict[str, Callable[..., AbstractContextManager[Server]]]] = {
    "kafka": kafka,
    "redis": redis,
}
_LOOK_S: Final = 0.5


def run(name: str, *, data_dir: Path | None, port: int, as_json: bool) -> None:
    """Run the server `name`; the options are those of `freshrank.cli_groups`.

    Raises:
        MissingServerError: a program that it needs is not installed.
        TransportError: it did not start, or ended by itself.
    """
    with stopped_by_signal() as stop, contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freshrank-")))
        server = stack.enter_context(_SERVERS[name](data_dir, port=port))
        if as_json:
            fields = {"address": server.address, "pid": server.process.pid, "log": str(server.log)}
            print(json.dumps(fields), flush=True)
        else:
            print(f"{name} answers at {server.address}; Ctrl-C stops it", flush=True)
        while not stop.wait(_LOOK_S):
            if server.process.poll() is not None:
                raise TransportError(
                    f"{name} ended with {server.process.returncode}: see {server.log}",
                    code="server-ended",
                )
