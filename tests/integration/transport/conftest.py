"""A cluster of its own for each test: the one broker, under a prefix that no other test has."""

import gc
import socket
import warnings
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from freshrank.dev.servers import Server
from freshrank.transport import kafka_topics
from freshrank.transport.base import TOPICS
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_topics import TopicPlan

NewCluster = Callable[[int], Cluster]
_NUMBERS = count()


@pytest.fixture
def new_cluster(kafka_server: Server) -> Iterator[NewCluster]:
    """Makes a cluster whose topics have so many partitions; they are deleted afterwards."""
    made: list[Cluster] = []

    def new(n_partitions: int) -> Cluster:
        cluster = Cluster((kafka_server.address,), prefix=f"test-{next(_NUMBERS)}.")
        with cluster.admin() as admin:
            kafka_topics.create(admin, cluster, TopicPlan(n_partitions))
        made.append(cluster)
        return cluster

    yield new
    for cluster in made:
        with cluster.admin() as admin:
            admin.delete_topics([cluster.name(topic) for topic in TOPICS])


def open_sockets() -> set[socket.socket]:
    """Every socket of this process that nobody has closed."""
    return {one for one in gc.get_objects() if isinstance(one, socket.socket) and one.fileno() >= 0}


@pytest.fixture
def leaky_client() -> Iterator[None]:
    """kafka-python forgets the socket of a connection that fails: here it is closed for it."""
    before = open_sockets()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <(socket|ssl)", ResourceWarning)
        yield
        for one in open_sockets() - before:
            one.close()
        gc.collect()
