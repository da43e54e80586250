"""A Kafka broker of one node in KRaft mode, from jars that Maven resolves once.

The jars stand in `build/kafka/<digest of deploy/kafka/pom.xml>`; with them there, neither Maven nor
a network is needed.
"""

import hashlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from freshrank.dev.servers import HOST, MissingServerError, Server, free_ports, program, running
from freshrank.errors import TransportError

_ROOT: Final = Path(__file__).parents[2]
_POM: Final = _ROOT / "deploy" / "kafka" / "pom.xml"
_PACKAGES: Final = "default-jre-headless maven"
# One thread collects and one compiler is enough: the cores are for those who talk to the broker.
_JAVA: Final = [
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
]
# Any id: a broker of its own needs none that others know.
_CLUSTER_ID: Final = "ZnJlc2hyYW5rLWRldi0wMA"

# One node holds everything once. The small buffers fit the heap: the cleaner alone would take
# 128 MiB, and an index file 10 MiB of address space for each of hundreds of partitions.
_SETTINGS: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
log.dirs={directory}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=1
num.io.threads=2
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
"""


@contextmanager
def kafka(directory: Path, *, port: int = 0, extra: str = "") -> Iterator[Server]:
    """A broker while the context lasts.

    Args:
        directory: Holds its settings, data and log; one that holds data goes on with it.
        port: Where it listens on 127.0.0.1; 0 takes any free one.
        extra: Further settings, which win; a template as `_SETTINGS`.

    Raises:
        MissingServerError: Java is not installed, or the jars are not here and cannot be had.
        TransportError: it does not start; the end of its log says why.
    """
    java = program("java", _PACKAGES)
    classpath = str(jars() / "*")
    directory.mkdir(parents=True, exist_ok=True)
    free_port, controller_port = free_ports(2)
    port = port or free_port
    settings = directory / "server.properties"
    settings.write_text(
        (_SETTINGS + extra).format(
            host=HOST, port=port, controller_port=controller_port, directory=directory.resolve()
        )
    )
    command = [java, *_JAVA, "-cp", classpath]
    log = directory / "kafka.log"
    _format([*command, "kafka.tools.StorageTool"], settings)
    main = [*command, "kafka.Kafka", str(settings)]
    with running("Kafka", main, port=port, log=log, answers=_answers_api_versions) as server:
        yield server


def jars() -> Path:
    """The folder of the broker's jars, resolved from Maven Central if it is not there yet.

    Raises:
        MissingServerError: Maven is not installed, there is no checkout, or it cannot resolve them.
    """
    try:
        digest = hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    except FileNotFoundError:
        raise MissingServerError(
            f"{_POM} is not there: development servers run from a checkout of the source"
        ) from None
    folder = _ROOT / "build" / "kafka" / digest
    if folder.exists():
        return folder
    maven = program("mvn", _PACKAGES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete: an interrupted download leaves nothing that looks whole.
    fresh = Path(tempfile.mkdtemp(prefix=f"{digest}-", dir=folder.parent))
    try:
        done = subprocess.run(  # noqa: S603 - our own command line
            [
                *(maven, "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"),
                f"-DoutputDirectory={fresh}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise MissingServerError(
                f"Maven cannot resolve {_POM} (is Maven Central reachable?):\n{done.stdout[-2000:]}"
            )
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody else resolved them meanwhile
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _format(tool: list[str], settings: Path) -> None:
    """Give a new data folder its identity; one that has it stays as it is."""
    done = subprocess.run(  # noqa: S603 - our own command line
        [*tool, "format", "-t", _CLUSTER_ID, "-c", str(settings), "--ignore-formatted"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise TransportError(
            f"Kafka cannot format {settings.parent}: {done.stdout}{done.stderr}",
            code="server-start",
        )


def _answers_api_versions(connection: socket.socket) -> bool:
    """Ask which versions it speaks: it answers once it takes requests of clients.

    Source: the protocol guide of Kafka, request header v1 and ApiVersions v0.
    """
    correlation_id = 7
    request = struct.pack(">hhih", 18, 0, correlation_id, -1)
    connection.sendall(struct.pack(">i", len(request)) + request)
    answer = connection.recv(10, socket.MSG_WAITALL)
    return len(answer) == 10 and struct.unpack(">ih", answer[4:]) == (correlation_id, 0)
