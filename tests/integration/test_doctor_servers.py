"""`freshrank doctor` on real servers and data, with a fault planted in each."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from freshrank import doctor
from freshrank.commands.serving import listen
from freshrank.dev.servers import Server, free_ports
from freshrank.doctor_servers import servers, stored
from freshrank.embedded import Embedded
from freshrank.findings import Finding
from freshrank.metrics_port import MetricsPort
from freshrank.settings import Settings
from service.auth import Auth
from tests.servers import NewCluster

REDIS: Final = {"kind": "redis", "prefix": "doctor"}


def make_settings(**parts: Any) -> Settings:
    document = {
        "features": [{"name": "item_id", "type": "id", "scope": "item", "dim": 4}],
        "tasks": [{"name": "click", "event": "click"}],
    }
    return Settings.model_validate({**document, **parts})


def found(settings: Settings, clock_ahead_s: float = 0.0) -> Finding:
    """The one finding about servers."""
    [finding] = servers(settings, lambda: time.time() + clock_ahead_s)
    return finding


def on_kafka(brokers: list[str], **log: Any) -> Settings:
    return make_settings(log={"kind": "kafka", "brokers": brokers, **log})


def assert_bad(finding: Finding, text: str, mend: str) -> None:
    assert not finding.ok
    assert text in finding.text
    assert mend in finding.mend


def test_a_log_and_a_state_of_this_machine_ask_no_server() -> None:
    assert list(servers(make_settings())) == []


def test_a_broker_that_is_away(leaky_client: None) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    began_s = time.monotonic()
    assert_bad(found(on_kafka([address])), address, "FRESHRANK__LOG__BROKERS")
    assert time.monotonic() - began_s < 60


def test_topics_that_are_missing_or_other_than_configured(
    kafka_server: Server, new_cluster: NewCluster
) -> None:
    brokers = [kafka_server.address]
    missing = found(on_kafka(brokers, prefix="nowhere."))
    assert_bad(missing, "lacks nowhere.freshrank.", "freshrank topics create")
    there: dict[str, Any] = {"prefix": new_cluster(2).prefix, "replication": 1, "retention": None}
    assert found(on_kafka(brokers, partitions=2, **there)).ok
    other = found(on_kafka(brokers, partitions=3, **there))
    assert_bad(other, "the configuration says 3 partitions", "set log.partitions")
    shorter = found(on_kafka(brokers, partitions=2, **{**there, "retention": "1d"}))
    assert_bad(shorter, "retention.ms is -1, planned is 86400000", "Kafka's own tools")


def test_a_redis_that_is_away() -> None:
    url = f"redis://127.0.0.1:{free_ports(1)[0]}/0"
    state = make_settings(state={**REDIS, "url": url})
    assert_bad(found(state), "does not answer", "state.url")
    channel = make_settings(sync={"channel": {**REDIS, "url": url}})
    assert_bad(found(channel), "does not answer", "sync.channel.url")


def test_a_redis_whose_url_cannot_be_read(tmp_path: Path) -> None:
    settings = make_settings(state={**REDIS, "url_file": str(tmp_path / "absent")})
    assert_bad(found(settings), "state.url_file: cannot read it", "correct the setting")


def test_a_clock_that_is_not_that_of_redis(redis_server: Server) -> None:
    settings = make_settings(state={**REDIS, "url": f"redis://{redis_server.address}/0"})
    assert found(settings).ok
    for ahead_s in (3_600.0, -3_600.0):
        assert_bad(found(settings, ahead_s), "3600 s apart", "NTP")


@contextmanager
def evicting(address: str) -> Iterator[None]:
    """The server drops keys for room meanwhile."""
    from redis import Redis

    host, _, port = address.partition(":")
    with closing(Redis(host, int(port))) as redis:
        names = ("maxmemory", "maxmemory-policy")
        before: dict[Any, Any] = {name: redis.config_get(name)[name] for name in names}
        redis.config_set("maxmemory", "1gb")
        redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            yield
        finally:
            for name, value in before.items():
                redis.config_set(name, value)


def test_a_redis_that_evicts_what_the_channel_needs(redis_server: Server) -> None:
    url = f"redis://{redis_server.address}/0"
    channel = make_settings(sync={"channel": {**REDIS, "url": url}})
    assert found(channel).ok
    with evicting(redis_server.address):
        assert_bad(found(channel), "evicts keys: allkeys-lru", "noeviction")
        assert found(make_settings(state={**REDIS, "url": url})).ok  # it can be without


def test_what_was_learned_with_another_schema(tmp_path: Path) -> None:
    directory = {"service": {"data_dir": str(tmp_path)}}
    settings = make_settings(**directory)
    assert stored(settings) == Finding(
        "checkpoint", True, f"none in {tmp_path / 'trainer'}: a trainer begins anew"
    )
    assert list(tmp_path.iterdir()) == []  # looking makes nothing
    loop = Embedded(settings, learn=True)
    loop.start()
    loop.close()
    assert stored(settings).ok
    salted = stored(make_settings(salt=7, **directory))
    assert_bad(salted, "was learned with schema", "features, tasks, model and salt")
    [state] = tmp_path.glob("trainer/checkpoint-*/state.json")
    text = state.read_text()
    state.write_text(text.replace('"v":1', '"v":99').replace('"v": 1', '"v": 99'))
    assert_bad(stored(settings), "format 99", "upgrade freshrank")
    state.write_text("{")
    assert_bad(stored(settings), "is damaged", "move it away")


def test_a_port_where_a_joiner_answers_prometheus() -> None:
    settings = make_settings()
    listener = listen("127.0.0.1", 0)
    number = listener.getsockname()[1]
    with closing(MetricsPort(listener, CollectorRegistry(), Auth(settings))):
        finding = doctor.metrics_port("127.0.0.1", number)
    assert (finding.ok, finding.text) == (True, "freshrank answers here")
