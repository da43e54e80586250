"""What commands that run on share: a listening socket, HTTP in a thread, a clean end."""

import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from freshrank import __version__
from freshrank.errors import ConfigError, TransportError
from freshrank.garbage import spare_program
from freshrank.metrics import Reading, ReadingCollector, register_process
from freshrank.metrics_port import MetricsPort
from freshrank.settings import Settings
from service.auth import Auth

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
# Whoever probes readiness hears within one period of it that this service stops.
DRAIN_S = 10.0
# Requests under way then have so long; the slowest wait for a receipt, and are told to end at once.
GRACE_S = 15


def listen(host: str, port: int, *, choice: str = "--port") -> socket.socket:
    """A bound socket; port 0 takes any free one.

    Args:
        host: A name or address of this machine.
        port: Or 0.
        choice: Option or setting that chooses another port.

    Raises:
        TransportError: the port is taken (code `port-taken`).
        ConfigError: the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, UnicodeError) as error:  # a host name beyond 63 characters is no Unicode to it
        listener.close()
        is_host = isinstance(error, socket.gaierror | UnicodeError)
        if is_host or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise ConfigError(f"cannot listen on {host!r}: {error}") from error
        raise TransportError(
            f"port {port} on {host} is taken or not allowed: {error}. "
            f"Stop the other program, or choose another port with {choice} (0 takes any free one)",
            code="port-taken",
        ) from error
    return listener


def address(listener: socket.socket) -> str:
    """The URL that reaches the socket from this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def served(app: FastAPI, listener: socket.socket) -> Iterator[uvicorn.Server]:
    """The app answering on the socket while the context lasts."""
    config = uvicorn.Config(
        app,
        log_config=None,  # its log lines are written as all others are
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not server.started and thread.is_alive() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    if not server.started:
        server.should_exit = True
        raise TransportError("the HTTP server did not start; its log lines above say why")
    spare_program()
    try:
        yield server
    finally:
        app.state.service.stop()  # ends waits for receipts, which would hold the exit up
        server.should_exit = True
        thread.join(2 * GRACE_S)
        listener.close()


@contextlib.contextmanager
def metrics_served(settings: Settings, read: Callable[[], list[Reading]]) -> Iterator[None]:
    """`/metrics` of this process while the context lasts, where `metrics.port` asks for it.

    Args:
        settings: Where, and who may read it.
        read: Everything but what the process says of itself; called by any thread.

    Raises:
        TransportError: the port is taken (code `port-taken`).
        ConfigError: the host is not an address of this machine; a key file cannot be read.
    """
    port = settings.metrics.port
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    register_process(registry, version=__version__)
    registry.register(ReadingCollector(read))
    auth = Auth(settings)
    listener = listen(settings.metrics.host, port, choice="metrics.port")
    with contextlib.closing(MetricsPort(listener, registry, auth)):
        logger.info("metrics on %s/metrics", address(listener))
        yield


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
