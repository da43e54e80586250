"""A broker that speaks TLS and wants a password: the settings reach the client as they should."""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from freshrank.dev.kafka import kafka
from freshrank.dev.servers import HOST, Server, free_ports, program
from freshrank.errors import TransportError
from freshrank.log_settings import LogSettings
from freshrank.logs import cluster
from freshrank.transport import kafka_topics
from freshrank.transport.base import ACTIONS
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_topics import TopicPlan
from tests.integration.transport.log_checks import new_records, values
from tests.servers import started

# The plain listener stays beside it: the one that the start waits for.
_JAAS: Final = (
    'org.apache.kafka.common.security.plain.PlainLoginModule required user_freshrank="right";'
)
LISTENER: Final = f"""\
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},SASL_SSL://@
advertised.listeners=PLAINTEXT://{{host}}:{{port}},SASL_SSL://@
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={_JAAS}
ssl.keystore.location=keystore.p12
ssl.keystore.password=changeit
ssl.keystore.type=PKCS12
"""


def keystore(directory: Path) -> Path:
    """A key and its self-signed certificate for this host; the certificate also as `ca.pem`."""
    tool = program("keytool", "default-jre-headless")
    path = directory / "keystore.p12"
    store = ["-alias", "broker", "-keystore", str(path), "-storepass", "changeit"]
    names = ["-dname", "CN=broker", "-ext", f"SAN=ip:{HOST}"]
    subprocess.run(
        [tool, "-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", *names, *store], check=True
    )
    export = [tool, "-exportcert", "-rfc", *store, "-file", str(directory / "ca.pem")]
    subprocess.run(export, check=True)
    return path


@contextmanager
def secure_kafka(directory: Path, address: str) -> Iterator[Server]:
    """A broker that also listens at `address`, with TLS and SASL."""
    path = str(keystore(directory))
    extra = LISTENER.replace("@", address).replace("keystore.p12", path)
    with kafka(directory, extra=extra) as server:
        yield server


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a listener with TLS and SASL, and the certificate that it is known by."""
    directory = tmp_path_factory.mktemp("secure")
    address = f"{HOST}:{free_ports(1)[0]}"
    for _ in started(lambda path: secure_kafka(path, address), directory):
        yield address, directory / "ca.pem"


def settings(address: str, directory: Path, password: str, ca_file: Path | None) -> LogSettings:
    password_file = directory / "password"
    password_file.write_text(password)
    security = {"protocol": "sasl_ssl", "mechanism": "PLAIN", "username": "freshrank"}
    security["password_file"] = str(password_file)
    if ca_file is not None:
        security["ca_file"] = str(ca_file)
    fields = {"kind": "kafka", "brokers": [address], "security": security}
    return LogSettings.model_validate(fields)


def test_who_knows_the_password_appends_and_reads(secure: tuple[str, Path], tmp_path: Path) -> None:
    address, ca_file = secure
    where = cluster(settings(address, tmp_path, "right", ca_file))
    with where.admin() as admin:
        kafka_topics.create(admin, where, TopicPlan(1))
    with closing(KafkaLog(where)) as log:
        log.append(ACTIONS, new_records(0, 3))
        assert values(log.read(ACTIONS, 0, 0)) == [b"value-0", b"value-1", b"value-2"]


@pytest.mark.parametrize(
    ("password", "knows_ca", "text"),
    [
        ("wrong", True, r"log\.security right"),
        ("right", False, r"CERTIFICATE_VERIFY_FAILED.*log\.security right"),
    ],
)
def test_who_does_not_is_refused_with_the_reason(
    password: str,
    knows_ca: bool,
    text: str,
    secure: tuple[str, Path],
    tmp_path: Path,
    leaky_client: None,
) -> None:
    address, ca_file = secure
    where = cluster(settings(address, tmp_path, password, ca_file if knows_ca else None))
    with pytest.raises(TransportError, match=text):
        KafkaLog(replace(where, timeout_ms=1_000))
