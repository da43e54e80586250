"""`/metrics` of a process that has no HTTP of its own: `freshrank join` and `freshrank train`."""

import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from service.auth import Auth
from service.problems import ProblemError

logger = logging.getLogger(__name__)

# Prometheus, its spare and a probe; whoever holds more connections open waits for the others.
AT_ONCE_MAX: Final = 8
# A client that sends nothing is dropped, so that its place is free again.
_IDLE_S: Final = 5.0
_LOOK_S: Final = 0.1
_SCOPES: Final = frozenset({"read"})


class MetricsPort:
    """Answers in threads of its own, until closed. Reading metrics never waits for the process.

    `GET /metrics` needs a key of scope `read` where there are keys, as in the service;
    `GET /health/live` is for probes.

    Args:
        listener: A listening socket; it is closed with the port.
        registry: What is served.
        auth: Who may read it.
    """

    def __init__(self, listener: socket.socket, registry: CollectorRegistry, auth: Auth) -> None:
        self._server = _Server(listener, registry, auth)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_S,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Take no more requests; those under way are not waited for."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, registry: CollectorRegistry, auth: Auth) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.registry = registry
        self.auth = auth
        self._places = threading.Semaphore(AT_ONCE_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that left, most likely; standard error is for people.
        logger.info("metrics=connection-failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        """Answer one request."""
        path = self.path.partition("?")[0]
        if path == "/health/live":
            self._answer(200, "application/json", b'{"live":true}')
        elif path != "/metrics":
            self._answer(404, "text/plain", b"there are /metrics and /health/live\n")
        else:
            self._metrics()

    def _metrics(self) -> None:
        try:
            self.server.auth.check(self.headers.get("Authorization"), _SCOPES)
            text = generate_latest(self.server.registry)
        except ProblemError as error:
            self._answer(error.status, "text/plain", f"{error.detail}\n".encode(), error.headers)
        except Exception:
            logger.exception("metrics=failed")
            self._answer(500, "text/plain", b"the failure is in the log of this process\n")
        else:
            self._answer(200, CONTENT_TYPE_PLAIN_0_0_4, text)

    def _answer(
        self, status: int, media_type: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        more = {"Content-Type": media_type, "Content-Length": str(len(body)), **(headers or {})}
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""
