"""A real Kafka on one core, so that what is measured has the other one to itself."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from freshrank.dev.kafka import kafka
from freshrank.transport import kafka_topics
from freshrank.transport.base import NewRecord
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster

# Far below the bound of an append, large enough that a request to the broker costs little.
_RECORDS_EACH: Final = 1_000
_NUMBERS: Final = count()


@contextmanager
def broker() -> Iterator[str]:
    """Its address while the context lasts; this process runs on the other core meanwhile."""
    cores = sorted(os.sched_getaffinity(0))
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.sched_setaffinity(0, cores[1:2] or cores)  # the broker inherits it
            with kafka(Path(folder)) as server:
                os.sched_setaffinity(0, cores[:1])
                yield server.address
    finally:
        os.sched_setaffinity(0, cores)


def new_cluster(address: str) -> Cluster:
    """A cluster with fresh topics of one partition."""
    cluster = Cluster((address,), prefix=f"bench-{next(_NUMBERS)}.")
    with cluster.admin() as admin:
        kafka_topics.create(admin, cluster, kafka_topics.TopicPlan(1))
    return cluster


def fill(log: KafkaLog, topic: str, records: Sequence[NewRecord]) -> None:
    """Append them to partition 0."""
    for start in range(0, len(records), _RECORDS_EACH):
        log.append(topic, records[start : start + _RECORDS_EACH], partition=0)
