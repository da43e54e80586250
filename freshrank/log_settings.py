"""Where the event log is: on this machine's disk, or on Kafka."""

from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from freshrank.units import Age, Bytes, FilePath, Part

Broker = Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$|^\[[0-9a-fA-F:]+\]:[0-9]{1,5}$")]
# What Kafka allows in the name of a topic; a fifth of its 249 characters.
Prefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,50}$")]


class SecuritySettings(Part):
    """How Kafka is spoken to: encrypted, and as whom."""

    protocol: Literal["ssl", "sasl_plaintext", "sasl_ssl"]
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password_file: FilePath | None = None

    @model_validator(mode="after")
    def _what_the_protocol_needs(self) -> Self:
        sasl = ("mechanism", "username", "password_file")
        given = [name for name in sasl if getattr(self, name) is not None]
        if self.protocol == "ssl" and given:
            raise ValueError(f"{given[0]} is of sasl_ssl; protocol is ssl")
        if self.protocol != "ssl" and len(given) < len(sasl):
            raise ValueError(f"{self.protocol} needs {', '.join(sasl)}")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name)]
        if self.protocol == "sasl_plaintext" and files:
            raise ValueError(f"{files[0]} is of sasl_ssl; protocol is sasl_plaintext")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


# What only one kind has; the other that ignored it would do what nobody asked for.
_FIELDS_OF: Final = {
    "local": ("fsync",),
    "kafka": ("brokers", "prefix", "replication", "compression", "in_flight", "security"),
}


class LogSettings(Part):
    """The event log."""

    kind: Literal["local", "kafka"] = "local"
    partitions: Annotated[int, Field(ge=1, le=64)] = 1
    retention: Age | None = timedelta(days=7)
    fsync: Literal["always", "batch", "never"] = "batch"
    brokers: list[Broker] = Field(default_factory=list)
    prefix: Prefix = ""  # of topics, groups and transactional ids: several deployments, one cluster
    replication: Annotated[int, Field(ge=1, le=10)] = 3
    compression: Literal["none", "gzip", "lz4"] = "lz4"
    in_flight: Bytes = 32 << 20  # bytes that Kafka has not acknowledged; beyond it events get a 503
    security: SecuritySettings | None = None

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Self:
        for kind, names in _FIELDS_OF.items():
            for name in names:
                if kind != self.kind and getattr(self, name) != _default(name):
                    raise ValueError(f"{name} is of kind {kind}; kind is {self.kind}")
        if self.kind == "kafka" and not self.brokers:
            raise ValueError("kind kafka needs brokers, such as [127.0.0.1:9092]")
        return self


def _default(name: str) -> Any:
    return LogSettings.model_fields[name].get_default(call_default_factory=True)
