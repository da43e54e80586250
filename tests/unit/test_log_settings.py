"""The settings of the log: each kind has its own, and a secret stays in its file."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from freshrank.errors import ConfigError
from freshrank.log_settings import LogSettings
from freshrank.logs import cluster, topic_plan

KAFKA = {"kind": "kafka", "brokers": ["127.0.0.1:9092"]}
SASL = {"mechanism": "SCRAM-SHA-512", "username": "freshrank"}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": "kafka"}, r"kind kafka needs brokers, such as \[127.0.0.1:9092\]"),
        ({"brokers": ["kafka:9092"]}, "brokers is of kind kafka; kind is local"),
        ({"prefix": "a."}, "prefix is of kind kafka; kind is local"),
        ({**KAFKA, "fsync": "always"}, "fsync is of kind local; kind is kafka"),
        ({**KAFKA, "brokers": ["http://kafka:9092"]}, "match pattern"),
        ({**KAFKA, "brokers": ["kafka"]}, "match pattern"),
        ({**KAFKA, "prefix": "a/b"}, "match pattern"),
        ({**KAFKA, "security": {"protocol": "sasl_ssl", **SASL}}, "sasl_ssl needs .*password_file"),
        ({**KAFKA, "security": {"protocol": "ssl", **SASL}}, "mechanism is of sasl_ssl"),
        (
            {**KAFKA, "security": {"protocol": "ssl", "cert_file": "a"}},
            "cert_file and key_file go together",
        ),
        (
            {
                **KAFKA,
                "security": {
                    "protocol": "sasl_plaintext",
                    **SASL,
                    "password_file": "a",
                    "ca_file": "b",
                },
            },
            "ca_file is of sasl_ssl; protocol is sasl_plaintext",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        LogSettings.model_validate(fields)


def test_all_settings_of_a_kind_may_be_given_with_the_defaults_of_the_other() -> None:
    for fields in ({"kind": "local"}, KAFKA):
        settings = LogSettings.model_validate(fields)
        shown = settings.model_dump(mode="json")
        shown["retention"] = settings.retention
        assert LogSettings.model_validate(shown) == settings


def test_brokers_may_be_ipv6() -> None:
    assert LogSettings.model_validate({**KAFKA, "brokers": ["[::1]:9092"]}).brokers


def test_security_reaches_the_client(tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("secret\n")
    security = {
        "protocol": "sasl_ssl",
        "ca_file": "ca.pem",
        "password_file": str(password_file),
        **SASL,
    }
    where = cluster(LogSettings.model_validate({**KAFKA, "prefix": "eu.", "security": security}))
    assert where.name("freshrank.actions") == "eu.freshrank.actions"
    assert (
        where.options()
        | {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": "ca.pem",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": "freshrank",
            "sasl_plain_password": "secret",
        }
        == where.options()
    )
    assert "secret" not in str(where)
    password_file.unlink()
    with pytest.raises(ConfigError, match="password_file: cannot read it"):
        cluster(LogSettings.model_validate({**KAFKA, "security": security}))


def test_a_certificate_of_the_client_reaches_it() -> None:
    security = {"protocol": "ssl", "ca_file": "ca", "cert_file": "cert", "key_file": "key"}
    options = cluster(LogSettings.model_validate({**KAFKA, "security": security})).options()
    files = {name: options[name] for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")}
    assert options["security_protocol"] == "SSL"
    assert "sasl_mechanism" not in options
    assert files == {"ssl_cafile": "ca", "ssl_certfile": "cert", "ssl_keyfile": "key"}


def test_a_local_log_has_no_cluster() -> None:
    with pytest.raises(ConfigError, match="kind is local"):
        cluster(LogSettings())


def test_topics_are_planned_as_configured() -> None:
    plan = topic_plan(LogSettings.model_validate({**KAFKA, "partitions": 4, "retention": "2d"}))
    assert (plan.n_partitions, plan.replication, plan.retention_ms) == (4, 3, 172_800_000)
    assert plan.configs("freshrank.actions")["retention.ms"] == "172800000"
    assert plan.configs("freshrank.actions")["min.insync.replicas"] == "2"
    entities = plan.configs("freshrank.entities")
    assert (entities["cleanup.policy"], entities["retention.ms"]) == ("compact", "-1")
