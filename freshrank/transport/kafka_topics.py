"""The topics in a cluster: what they should be, what they are, making those that are missing."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError

from freshrank.errors import TransportError
from freshrank.transport.base import (
    AGELESS_TOPICS,
    COMPACTED_TOPICS,
    CONSUMED_TOPICS,
    JOINER_STATE,
    SINGLE_PARTITION_TOPICS,
    TOPICS,
)
from freshrank.transport.kafka_cluster import Cluster

# A batch of one of our largest records (512 KiB and its key of 64 KiB at most), with room.
_MESSAGE_BYTES_MAX: Final = 1 << 20
_FOREVER: Final = "-1"
# A joiner lets go of records in the middle of the log; their space comes back a segment at a time.
_STATE_SEGMENT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """How topics are made.

    Attributes:
        n_partitions: Of every topic but `SINGLE_PARTITION_TOPICS`.
        replication: Copies of each record.
        retention_ms: Age at which records leave, but those of `AGELESS_TOPICS`; None keeps all.
    """

    n_partitions: int
    replication: int = 1
    retention_ms: int | None = None

    def n_partitions_of(self, topic: str) -> int:
        """Partitions that `topic` should have."""
        return 1 if topic in SINGLE_PARTITION_TOPICS else self.n_partitions

    def configs(self, topic: str) -> dict[str, str]:
        """Settings of the topic, by Kafka's names."""
        is_kept = topic in AGELESS_TOPICS or self.retention_ms is None
        configs = {
            "cleanup.policy": "compact" if topic in COMPACTED_TOPICS else "delete",
            "retention.ms": _FOREVER if is_kept else str(self.retention_ms),
            # Readers and retention go by when a record entered the log, as in the embedded one.
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(_MESSAGE_BYTES_MAX),
            # Two copies before an append counts, so that losing one broker loses nothing.
            "min.insync.replicas": str(min(2, self.replication)),
        }
        if topic == JOINER_STATE:
            configs["segment.bytes"] = str(_STATE_SEGMENT_BYTES)
        return configs


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a topic is not as planned."""

    topic: str
    setting: str
    found: str
    planned: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found}, planned is {self.planned}"


def create(admin: KafkaAdminClient, cluster: Cluster, plan: TopicPlan) -> list[str]:
    """Make the topics that are missing; one that is there is left as it is. Returns their names.

    Raises:
        TransportError: those that are there have other partitions than planned (`log-partitions`);
            none is made then.
    """
    there = described(admin, cluster)
    _check_partitions(cluster, there, plan)
    missing = [topic for topic in TOPICS if topic not in there]
    wanted = {
        cluster.name(topic): {
            "num_partitions": plan.n_partitions_of(topic),
            "replication_factor": plan.replication,
            "configs": plan.configs(topic),
        }
        for topic in missing
    }
    if wanted:
        with cluster.errors(f"make {len(wanted)} topics of replication {plan.replication}"):
            with contextlib.suppress(TopicAlreadyExistsError):  # somebody else makes them, too
                admin.create_topics(wanted)
            admin.wait_for_topics(list(wanted))
    return missing


def differences(admin: KafkaAdminClient, cluster: Cluster, plan: TopicPlan) -> list[Difference]:
    """Where the topics that are there are not as planned."""
    with cluster.errors("describe topics"):
        there = described(admin, cluster)
        if not there:
            return []
        resources = [
            ConfigResource(ConfigResourceType.TOPIC, cluster.name(topic), configs=None)
            for topic in there
        ]
        settings = admin.describe_configs(resources, config_filter="all")["topic"]
    found = []
    for topic, info in there.items():
        partitions = info["partitions"]
        pairs = {
            "partitions": (str(len(partitions)), str(plan.n_partitions_of(topic))),
            "replication": (str(len(partitions[0]["replica_nodes"])), str(plan.replication)),
        }
        has = settings[cluster.name(topic)]
        pairs |= {name: (has[name]["value"], value) for name, value in plan.configs(topic).items()}
        for name, (is_now, planned) in pairs.items():
            if is_now != planned:
                found.append(Difference(topic, name, is_now, planned))
    return found


def described(admin: KafkaAdminClient, cluster: Cluster) -> dict[str, Mapping[str, Any]]:
    """Our topics that are there, by our names, as kafka-python describes them."""
    names = {cluster.name(topic): topic for topic in TOPICS}
    with cluster.errors("describe topics"):
        found = admin.describe_topics(list(names))
    return {names[one["name"]]: one for one in found if one["error_code"] == 0}


def check(admin: KafkaAdminClient, cluster: Cluster, n_partitions: int) -> str:
    """Check that all topics are there, with partitions so that a request's records meet in one.

    Returns:
        The log's identity: 16 hex digits of the ids of the topics, which a topic that is deleted
        and made again does not keep.

    Raises:
        TransportError: topics are missing (code `unknown-topic`) or have another number of
            partitions (`log-partitions`).
    """
    there = described(admin, cluster)
    missing = [topic for topic in TOPICS if topic not in there]
    if missing:
        names = ", ".join(map(cluster.name, missing))
        raise TransportError(
            f"{cluster} lacks {names}: make them with `freshrank topics create`",
            code="unknown-topic",
        )
    _check_partitions(cluster, there, TopicPlan(n_partitions))
    ids = "".join(str(there[topic]["topic_id"]) for topic in CONSUMED_TOPICS)
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


def _check_partitions(
    cluster: Cluster, there: Mapping[str, Mapping[str, Any]], plan: TopicPlan
) -> None:
    wrong = {
        topic: len(info["partitions"])
        for topic, info in there.items()
        if len(info["partitions"]) != plan.n_partitions_of(topic)
    }
    if wrong:
        has = ", ".join(f"{cluster.name(topic)} {n}" for topic, n in wrong.items())
        raise TransportError(
            f"the configuration says {plan.n_partitions} partitions (one of freshrank.control), "
            f"{cluster} has {has}: records of one request must meet in one partition of every "
            "topic, so set log.partitions to what the topics have; another number needs new "
            "topics, under another log.prefix",
            code="log-partitions",
        )
