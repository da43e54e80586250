"""The event log that a configuration names."""

from typing import TYPE_CHECKING, Any, Final

from freshrank.backup.swap import finish
from freshrank.clock import Clock
from freshrank.errors import ConfigError
from freshrank.log_settings import LogSettings, SecuritySettings
from freshrank.settings import Settings
from freshrank.transport.base import EventLog
from freshrank.transport.local import LocalLog

if TYPE_CHECKING:
    from freshrank.transport.kafka_cluster import Cluster
    from freshrank.transport.kafka_topics import TopicPlan

_KAFKA_MEND: Final = "pip install 'freshrank[kafka]'"


def open_log(settings: Settings, clock: Clock, *, writable: bool = True) -> EventLog:
    """Open it.

    Args:
        settings: The configuration.
        clock: Tells a local log when records are appended.
        writable: False reads a local log beside the process that writes it.

    Raises:
        ConfigError: it is on Kafka, and the extra `kafka` is not installed or a secret is missing.
        TransportError: it is in use, damaged, or cannot be reached.
    """
    log = settings.log
    if writable:  # no process that works begins without it
        finish(settings.service.data_dir)
    if log.kind == "local":
        return LocalLog(
            settings.service.data_dir / "log",
            clock=clock,
            n_partitions=log.partitions,
            fsync=log.fsync,
            retention_ms=_retention_ms(log),
            writable=writable,
        )
    where = cluster(log)
    from freshrank.transport.kafka import KafkaLog

    return KafkaLog(
        where,
        n_partitions=log.partitions,
        compression=None if log.compression == "none" else log.compression,
        in_flight_bytes_max=log.in_flight,
    )


def cluster(log: LogSettings) -> "Cluster":
    """The Kafka cluster that the settings name.

    Raises:
        ConfigError: the extra `kafka` is not installed, a secret cannot be read, or the log is not
            on Kafka.
    """
    if log.kind != "kafka":
        raise ConfigError(f"log.kind is {log.kind}: this is for a log on Kafka")
    try:
        from freshrank.transport.kafka_cluster import Cluster
    except ImportError as error:
        raise ConfigError(f"log.kind is kafka, which needs {error.name}: {_KAFKA_MEND}") from error
    security = {} if log.security is None else _security(log.security)
    return Cluster(tuple(log.brokers), log.prefix, security)


def topic_plan(log: LogSettings) -> "TopicPlan":
    """How the topics of a cluster are made."""
    from freshrank.transport.kafka_topics import TopicPlan

    return TopicPlan(log.partitions, log.replication, _retention_ms(log))


def _retention_ms(log: LogSettings) -> int | None:
    return None if log.retention is None else int(log.retention.total_seconds() * 1_000)


def _security(security: SecuritySettings) -> dict[str, Any]:
    """The settings as options of kafka-python, which leaves out what is None."""
    options: dict[str, Any] = {"security_protocol": security.protocol.upper()}
    files = {"ssl_cafile": security.ca_file, "ssl_certfile": security.cert_file}
    files["ssl_keyfile"] = security.key_file
    options |= {name: str(path) for name, path in files.items() if path is not None}
    if security.password_file is not None:
        try:
            password = security.password_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"log.security.password_file: cannot read it: {error}") from error
        options |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": password,
        }
    return options
