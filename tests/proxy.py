"""A TCP proxy in front of a real server, for networks that are slow, thin or dead."""

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

_PIECE_BYTES: Final = 1 << 16
_SLICE_S: Final = 0.05


class Proxy:
    """Passes bytes on, late, bit by bit, or not at all.

    Attributes:
        address: `host:port` to connect to instead.
        delay_s: How long each piece stays here, in both directions.
        bytes_per_s: How much passes, per connection and direction.
        is_silent: Nothing passes, and nobody is told: connections are half-open.
    """

    def __init__(self, server: str) -> None:
        host, port = server.split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_s = 0.0
        self.bytes_per_s = math.inf
        self.is_silent = False

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(self._server)
            except OSError:  # the server is away: whoever asked is told, and may ask again
                here.close()
                continue
            self._sockets += [here, there]
            for a, b in ((here, there), (there, here)):
                thread = threading.Thread(target=self._pass, args=(a, b), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                time.sleep(self.delay_s)
                while data and not self.is_silent:
                    n_bytes = int(min(len(data), max(self.bytes_per_s * _SLICE_S, 1)))
                    target.sendall(data[:n_bytes])
                    data = data[n_bytes:]
                    time.sleep(n_bytes / self.bytes_per_s)
            target.shutdown(socket.SHUT_RDWR)

    def recover(self) -> None:
        """Pass on all that comes, at once."""
        self.delay_s, self.bytes_per_s, self.is_silent = 0.0, math.inf, False

    def close(self) -> None:
        """Cut every connection."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)


@contextlib.contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    """A proxy while the context lasts."""
    with contextlib.closing(Proxy(server)) as running:
        yield running


def slow(net: Proxy) -> None:
    """Half a second late."""
    net.delay_s = 0.5


def thin(net: Proxy) -> None:
    """1 kB/s."""
    net.bytes_per_s = 1_000.0


def half_open(net: Proxy) -> None:
    """Nothing passes, and connections stay."""
    net.is_silent = True
