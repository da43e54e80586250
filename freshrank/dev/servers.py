"""Start a server, wait until it answers in its own protocol, stop it by process id."""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freshrank.errors import ConfigError, TransportError

HOST: Final = "127.0.0.1"
# A cold broker answers after 3 to 6 s on two busy cores; a minute is a machine that never will.
START_TIMEOUT_S: Final = 60.0
# A broker writes its snapshot on the way out, which takes about a second.
STOP_TIMEOUT_S: Final = 20.0
_PORTS: Final = (20_000, 32_768)
_LOOK_S: Final = 0.05
_LOG_TAIL_CHARS: Final = 2_000


class MissingServerError(ConfigError):
    """A program that the server needs is not installed."""

    code = "missing-server"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        address: `host:port`.
        process: Its process, for tests that stop, pause or kill it.
        log: File with what it prints.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path


def program(name: str, package: str) -> str:
    """Path of an installed program.

    Raises:
        MissingServerError: it is not on PATH; `package` is Debian's that has it.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingServerError(f"{name} is not installed: apt-get install {package}")
    return path


def free_ports(n: int) -> list[int]:
    """So many different ports that nobody listens on.

    They are below those that systems give to outgoing connections (Linux: from 32768), one of which
    could otherwise take a port between this call and the start of the server.
    """
    ports: set[int] = set()
    while len(ports) < n:
        # Not the generator that tests seed: it would give the same ports again and again.
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind((HOST, port))
            ports.add(port)
    return list(ports)


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    answers: Callable[[socket.socket], bool],
) -> Iterator[Server]:
    """The server while the context lasts.

    Args:
        name: For messages.
        command: Starts it in the foreground.
        port: Where it listens.
        log: Gets what it prints.
        answers: Asks over a fresh connection whether it is ready.

    Raises:
        TransportError: it ended or did not answer (code `server-start`), with the end of its log.
    """
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches us alone, and we end it.
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(name, process, port, log, answers)
        yield Server(f"{HOST}:{port}", process, log)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process, gently first; one that is paused goes on to hear it."""
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(
    name: str,
    process: subprocess.Popen[bytes],
    port: int,
    log: Path,
    answers: Callable[[socket.socket], bool],
) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with socket.create_connection((HOST, port), timeout=1.0) as connection:
                if answers(connection):
                    return
        except OSError:  # not listening yet
            pass
        time.sleep(_LOOK_S)
    ended = process.poll()
    what = (
        f"ended with {ended}" if ended is not None else f"is silent after {START_TIMEOUT_S:.0f} s"
    )
    tail = log.read_text("utf-8", "replace")[-_LOG_TAIL_CHARS:]
    raise TransportError(
        f"{name} on port {port} {what}; its log {log} ends:\n{tail}", code="server-start"
    )
