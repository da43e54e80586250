"""The roles of a deployment, each a process: `freshrank serve`, `join` and `train`."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from freshrank.dev.servers import stop
from tests.programs import FRESHRANK

# Four interpreters that start together on two busy cores.
START_TIMEOUT_S: Final = 60.0


@contextmanager
def role(
    *arguments: str, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A running `freshrank` with these arguments; what it prints goes to `log`.

    Args:
        arguments: Of the command.
        log: Is appended to.
        environ: Beside the environment of this process.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [FRESHRANK, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


class Api:
    """A service's HTTP interface, asked with an API key if there is one; safe for threads."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=30.0,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def ask(self, path: str, body: Any = None) -> httpx.Response:
        """GET, or POST when there is a body."""
        return self._client.get(path) if body is None else self._client.post(path, json=body)

    def delete(self, path: str) -> httpx.Response:
        """DELETE."""
        return self._client.delete(path)

    def until_ready(
        self, process: subprocess.Popen[bytes], log: Path, *, within_s: float = START_TIMEOUT_S
    ) -> None:
        """Return once it is ready."""
        deadline_s = time.monotonic() + within_s
        pause = threading.Event()
        while time.monotonic() < deadline_s and process.poll() is None:
            try:
                if self.ask("/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            pause.wait(0.05)
        raise AssertionError(f"not ready, exit code {process.poll()}: {log.read_text()[-4_000:]}")

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End the service as an orchestrator does, which goes on to ask whether it is ready."""
        process.terminate()
        with contextlib.suppress(httpx.TransportError):
            while process.poll() is None:
                self.ask("/health/ready")
                threading.Event().wait(0.05)
        process.wait(START_TIMEOUT_S)

    def close(self) -> None:
        """End the connections."""
        self._client.close()
