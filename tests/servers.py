"""Real servers for tests: one of a kind for the whole run, started by the first that asks."""

import gc
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from freshrank.dev.kafka import kafka
from freshrank.dev.redis import redis
from freshrank.dev.servers import MissingServerError, Server

if TYPE_CHECKING:
    from freshrank.transport.kafka_cluster import Cluster

# Set where nothing may be skipped, as in CI.
REQUIRED = "FRESHRANK_REQUIRE_SERVERS"

T = TypeVar("T")
NewCluster = Callable[[int], "Cluster"]
_NUMBERS = count()


def started(server: Callable[[Path], AbstractContextManager[T]], directory: Path) -> Iterator[T]:
    """The server for a fixture to yield; what is missing on this machine skips its tests."""
    try:
        context = server(directory)
        running = context.__enter__()
    except MissingServerError as error:
        if os.environ.get(REQUIRED):
            raise
        pytest.skip(str(error))
    try:
        yield running
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Kafka broker; tests keep apart by the prefix of their topics."""
    yield from started(kafka, tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis server; tests keep apart by the prefix of their keys."""
    yield from started(redis, tmp_path_factory.mktemp("redis"))


@pytest.fixture
def new_cluster(kafka_server: Server) -> Iterator[NewCluster]:
    """Makes a cluster whose topics have so many partitions; they are deleted afterwards."""
    # Here, as most tests go without kafka-python.
    from freshrank.transport import kafka_topics
    from freshrank.transport.base import TOPICS
    from freshrank.transport.kafka_cluster import Cluster

    made: list[Cluster] = []

    def new(n_partitions: int) -> Cluster:
        cluster = Cluster((kafka_server.address,), prefix=f"test-{next(_NUMBERS)}.")
        with cluster.admin() as admin:
            kafka_topics.create(admin, cluster, kafka_topics.TopicPlan(n_partitions))
        made.append(cluster)
        return cluster

    yield new
    for cluster in made:
        with cluster.admin() as admin:
            admin.delete_topics([cluster.name(topic) for topic in TOPICS])


def open_sockets() -> set[socket.socket]:
    """Every socket of this process that nobody has closed."""
    # By type: isinstance also asks what an object pretends to be, which weak references of dead
    # objects refuse and deprecated ones warn of.
    sockets = [one for one in gc.get_objects() if issubclass(type(one), socket.socket)]
    return {one for one in sockets if one.fileno() >= 0}


@pytest.fixture
def leaky_client() -> Iterator[None]:
    """kafka-python forgets the socket of a connection that fails, and others now and then.

    Here they are closed for it, lest the collector finds them in the middle of another test.
    """
    before = open_sockets()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <(socket|ssl)", ResourceWarning)
        yield
        for one in open_sockets() - before:
            one.close()
        gc.collect()


@pytest.fixture(autouse=True)
def closed_sockets(request: pytest.FixtureRequest) -> None:
    """As `leaky_client`, for every test that talks to Kafka."""
    if "kafka_server" in request.fixturenames:
        request.getfixturevalue("leaky_client")
