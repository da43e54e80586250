"""Where a Kafka cluster is, how its clients are set up, and what its errors mean to us."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import kafka.errors
from kafka import KafkaAdminClient
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from freshrank.errors import TransportError
from freshrank.transport.base import TopicPartition
from freshrank.transport.kafka_consumer import Consumer

# A frozen broker is given up after 10 s: HTTP clients have gone by then, the stream tries again.
REQUEST_TIMEOUT_MS: Final = 10_000
# The client's own default doubles the pause after a lost connection up to 30 s, which a broker that
# is back in 5 s would be waited for.
RECONNECT_BACKOFF_MAX_MS: Final = 1_000
# Long poll. A seek waits for the fetch under way, so this bounds its delay; an idle consumer costs
# 2 % of a core with it.
FETCH_WAIT_MS: Final = 50
# Records of one poll; the client's default of 500 costs a round trip each.
POLL_RECORDS_MAX: Final = 5_000
# Beyond the largest batch that we write (1 MiB), so that one fetch always makes progress.
FETCH_PARTITION_BYTES: Final = 2 << 20
FETCH_BYTES: Final = 16 << 20

_ASK_AGAIN_S: Final = 0.05
_Answer = TypeVar("_Answer")
_Client = TypeVar("_Client")

# Code and remedy of an error, the first class that fits; the rest is a fault of broker or network,
# which trying again may mend.
_MEANINGS: Final[tuple[tuple[tuple[type[Exception], ...], str, str], ...]] = (
    (
        (kafka.errors.ProducerFencedError, kafka.errors.InvalidProducerEpochError),
        "fenced",
        "another process has taken over this transactional id; stop this one",
    ),
    (
        (
            kafka.errors.SaslAuthenticationFailedError,
            kafka.errors.UnsupportedSaslMechanismError,
            kafka.errors.IllegalSaslStateError,
        ),
        "broker-refused",
        "check log.security: mechanism, user name and password",
    ),
    (
        (kafka.errors.AuthorizationError,),
        "broker-refused",
        "allow this user the topics, groups and transactional ids of the prefix",
    ),
    (
        (kafka.errors.UnknownTopicOrPartitionError, kafka.errors.UnknownTopicIdError),
        "unknown-topic",
        "make the topics: freshrank topics create",
    ),
    (
        (kafka.errors.InvalidReplicationFactorError,),
        "log-replication",
        "it has fewer brokers than that: set log.replication",
    ),
    (
        (kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError),
        "record-too-large",
        "let the topic's max.message.bytes be 1 MiB or more",
    ),
    (
        (
            kafka.errors.NotEnoughReplicasError,
            kafka.errors.NotEnoughReplicasAfterAppendError,
        ),
        "broker-replicas",
        "too few replicas are in sync: bring the other brokers back",
    ),
    (
        (kafka.errors.KafkaStorageError, kafka.errors.LogDirNotFoundError),
        "broker-storage",
        "a disk of the broker failed or is full",
    ),
    (
        (kafka.errors.KafkaTimeoutError, kafka.errors.RequestTimedOutError),
        "broker-timeout",
        "no answer in time; is it running, not overloaded, and are log.brokers and log.security "
        "right?",
    ),
)


# Where kafka-python says why it cannot connect; what it raises says only that it gave up.
_manager_log: Final = logging.getLogger("kafka.net.manager")


class _LastWarning(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if "connection" in record.getMessage().lower():
            self.text = record.getMessage()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as the configuration names it.

    Attributes:
        brokers: `host:port` of some of its brokers.
        prefix: Stands before the name of every topic, group and transactional id, so that several
            deployments share a cluster.
        security: Options of kafka-python for TLS and SASL, passed through.
        timeout_ms: After so long without an answer a request fails.
    """

    brokers: tuple[str, ...]
    prefix: str = ""
    security: Mapping[str, Any] = field(default_factory=dict)
    timeout_ms: int = REQUEST_TIMEOUT_MS

    def __str__(self) -> str:
        return f"Kafka at {', '.join(self.brokers)}"

    def options(self) -> dict[str, Any]:
        """What every client is made with."""
        return {
            "bootstrap_servers": list(self.brokers),
            "client_id": "freshrank",
            "bootstrap_timeout_ms": self.timeout_ms,
            "request_timeout_ms": self.timeout_ms,
            "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
            **self.security,
        }

    def admin(self) -> KafkaAdminClient:
        """A client for topics and groups; safe to call from several threads."""
        return self.made(KafkaAdminClient, {})

    def consumer(self) -> Consumer:
        """A consumer outside any group that reads what is committed, from where it is told to."""
        options = {
            "prefix": self.prefix,
            "group_id": None,
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "fetch_max_wait_ms": FETCH_WAIT_MS,
            "fetch_max_bytes": FETCH_BYTES,
            "max_partition_fetch_bytes": FETCH_PARTITION_BYTES,
            "max_poll_records": POLL_RECORDS_MAX,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        return self.made(Consumer, options)

    def made(
        self,
        make: Callable[..., _Client],
        options: Mapping[str, Any],
        net_client: type[KafkaNetClient] = KafkaNetClient,
    ) -> _Client:
        """A client of kafka-python; one that cannot reach the cluster leaves nothing behind.

        Its constructors start a thread before they connect, and forget it when they fail.
        """
        nets: list[KafkaNetClient] = []
        last = _LastWarning()

        def net(**configs: Any) -> KafkaNetClient:
            nets.append(net_client(**configs))
            return nets[-1]

        _manager_log.addHandler(last)
        try:
            return make(**(self.options() | dict(options)), kafka_client=net)
        except kafka.errors.KafkaError as error:
            for one in nets:
                one.close()
            raise self.explained(f"be reached: {last.text}", error) from error
        finally:
            _manager_log.removeHandler(last)

    def name(self, topic: str) -> str:
        """The name that `topic` has in the cluster."""
        return self.prefix + topic

    def place(self, place: TopicPartition) -> KafkaPartition:
        """A partition as kafka-python names it."""
        return KafkaPartition(self.name(place.topic), place.partition)

    def next_offsets(
        self, offsets: Mapping[TopicPartition, int]
    ) -> dict[KafkaPartition, OffsetAndMetadata]:
        """What a group reads next, as kafka-python stores it."""
        return {
            self.place(place): OffsetAndMetadata(offset, "", -1)
            for place, offset in offsets.items()
        }

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Errors of the client as `TransportError`; `what` was tried, as in "append to topic"."""
        try:
            yield
        except (kafka.errors.KafkaError, OSError, RuntimeError, ValueError) as error:
            raise self.explained(what, error) from error

    def ask(self, what: str, question: Callable[[], _Answer]) -> _Answer:
        """The answer of an admin client, which gives up where trying again helps.

        A cluster makes its topic of group offsets when the first group asks, for example.
        """
        deadline_s = time.monotonic() + self.timeout_ms / 1_000
        with self.errors(what):
            while True:
                try:
                    return question()
                except kafka.errors.RetriableError:
                    if time.monotonic() > deadline_s:
                        raise
                    time.sleep(_ASK_AGAIN_S)

    def explained(self, what: str, error: BaseException) -> TransportError:
        """What an error of the client means, with the address and what to do."""
        code, remedy = "broker-error", "the broker's log may say more; it is tried again"
        for classes, known_code, known_remedy in _MEANINGS:
            if isinstance(error, classes):
                code, remedy = known_code, known_remedy
                break
        text = f"{type(error).__name__} {error}".strip()
        return TransportError(f"{self}: cannot {what} ({text}): {remedy}", code=code)
