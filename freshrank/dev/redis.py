"""A Redis server with a data folder of its own."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freshrank.dev.servers import HOST, Server, free_ports, program, running


@contextmanager
def redis(directory: Path, *, port: int = 0) -> Iterator[Server]:
    """A server while the context lasts.

    Args:
        directory: Holds its data, saved when it ends, and its log.
        port: Where it listens on 127.0.0.1; 0 takes any free one.

    Raises:
        MissingServerError: `redis-server` is not installed.
        TransportError: it does not start; the end of its log says why.
    """
    command = [program("redis-server", "redis-server"), "--bind", HOST]
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    command += ["--port", str(port), "--dir", str(directory.resolve()), "--save", "60", "1000"]
    log = directory / "redis.log"
    with running("Redis", command, port=port, log=log, answers=_answers_ping) as server:
        yield server


def _answers_ping(connection: socket.socket) -> bool:
    connection.sendall(b"PING\r\n")
    return connection.recv(7, socket.MSG_WAITALL) == b"+PONG\r\n"
