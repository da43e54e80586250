"""What `freshrank doctor` asks of the servers and the data that a configuration names."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from freshrank.errors import ConfigError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.findings import Finding
from freshrank.logs import cluster, topic_plan
from freshrank.redis_settings import RedisSettings
from freshrank.settings import Settings

# Who waits for a diagnosis should not wait as long as the stream does.
TIMEOUT_S: Final = 3.0
# Freshness is told across machines: beyond this its figures tell of the clocks, not of the loop.
SKEW_S_MAX: Final = 2.0
REDIS_VERSION_MIN: Final = 5

_PARTITIONS_MEND: Final = "set log.partitions to what the topics have, or another log.prefix"
_KAFKA_MENDS: Final = {
    "unknown-topic": "freshrank topics create",
    "log-partitions": _PARTITIONS_MEND,
    "broker-refused": "set log.security to a user who may use the topics of log.prefix",
}
_KAFKA_MEND: Final = "start Kafka, or set log.brokers (FRESHRANK__LOG__BROKERS) to where it is"
_SETTINGS_MEND: Final = "correct the setting, or install what it needs"
_REDIS_MEND: Final = "start Redis, or set {}.url to where it is"


def servers(settings: Settings, now_s: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Kafka and every Redis that the configuration names; nothing is changed in them.

    Args:
        settings: The configuration.
        now_s: This machine's clock, seconds since 1970.
    """
    if settings.log.kind == "kafka":
        yield kafka(settings)
    if settings.state.kind == "redis":
        yield redis("state", settings.state, now_s)
    if settings.sync.channel.kind == "redis":
        yield redis("sync.channel", settings.sync.channel, now_s, keeps_all=True)


def kafka(settings: Settings) -> Finding:
    """The brokers answer and have the topics as configured."""
    name = "kafka"
    try:
        where = replace(cluster(settings.log), timeout_ms=int(TIMEOUT_S * 1_000))
        from freshrank.transport import kafka_topics

        with where.admin() as admin:
            kafka_topics.check(admin, where, settings.log.partitions)
            differences = kafka_topics.differences(admin, where, topic_plan(settings.log))
    except ConfigError as error:
        return Finding(name, False, str(error), _SETTINGS_MEND)
    except TransportError as error:
        return Finding(name, False, str(error), _KAFKA_MENDS.get(error.code, _KAFKA_MEND))
    if differences:
        mend = "change the topics with Kafka's own tools, or the settings below log"
        return Finding(name, False, "; ".join(map(str, differences)), mend)
    return Finding(name, True, f"{where} answers and has the topics")


def redis(
    section: str,
    settings: RedisSettings,
    now_s: Callable[[], float],
    *,
    keeps_all: bool = False,
) -> Finding:
    """The server answers, is new enough, tells the time that this machine tells.

    Args:
        section: Where the settings stand.
        settings: Of kind redis.
        now_s: This machine's clock, seconds since 1970.
        keeps_all: It must not evict keys.
    """
    name = f"redis of {section}"
    try:
        with settings.opening(section) as url:
            from freshrank.transport.redis_server import RedisServer

            server = RedisServer(url, setting=f"{section}.url", code="redis", timeout_s=TIMEOUT_S)
        with contextlib.closing(server):
            info: dict[str, Any] = server.ask(server.redis.info)
            before_s = now_s()
            seconds, microseconds = server.ask(server.redis.time)
            after_s = now_s()
    except ConfigError as error:
        return Finding(name, False, str(error), _SETTINGS_MEND)
    except TransportError as error:
        return Finding(name, False, str(error), _REDIS_MEND.format(section))
    version, policy = str(info["redis_version"]), str(info.get("maxmemory_policy", "noeviction"))
    if int(version.partition(".")[0]) < REDIS_VERSION_MIN:
        mend = f"install Redis {REDIS_VERSION_MIN} or newer"
        return Finding(name, False, f"{server.where} has version {version}", mend)
    if keeps_all and info.get("maxmemory") and policy != "noeviction":
        mend = "let its maxmemory-policy be noeviction, or give the channel a server of its own"
        return Finding(name, False, f"{server.where} evicts keys: {policy}", mend)
    theirs_s = seconds + microseconds / 1e6
    skew_s = max(before_s - theirs_s, theirs_s - after_s)  # what the answer's way cannot explain
    if skew_s > SKEW_S_MAX:
        text = f"the clocks of {server.where} and of this machine are {skew_s:.0f} s apart"
        return Finding(name, False, text, "set the clocks of both, for example by NTP")
    return Finding(name, True, f"{server.where} answers, version {version}")


def stored(settings: Settings) -> Finding:
    """What the trainer has saved was learned with this configuration, by a program not newer."""
    name = "checkpoint"
    directory = settings.service.data_dir / "trainer"
    path = _newest(directory) if directory.is_dir() else None
    if path is None:
        return Finding(name, True, f"none in {directory}: a trainer begins anew")
    from trainer.checkpoint import FORMAT_VERSION

    try:
        state = json.loads((path / "state.json").read_bytes())
        version, schema_hash = int(state["v"]), str(state["schema_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "move it away: the trainer goes on from the one before"
        return Finding(name, False, f"{path} is damaged: {type(error).__name__}", mend)
    if version > FORMAT_VERSION:
        text = f"{path} has format {version}, this program reads up to {FORMAT_VERSION}"
        return Finding(name, False, text, "upgrade freshrank")
    expected = FeatureEncoder(settings).schema_hash
    if schema_hash != expected:
        text = f"{path} was learned with schema {schema_hash}, this configuration is {expected}"
        mend = "go back to its features, tasks, model and salt, or set another service.data_dir"
        return Finding(name, False, text, mend)
    return Finding(name, True, f"{path.name} fits this configuration")


def event_time(settings: Settings, now_s: float) -> Finding:
    """The clock is not so far behind what was joined that everything new is late.

    Args:
        settings: The configuration.
        now_s: This machine's clock, seconds since 1970.
    """
    name, directory = "event time", settings.service.data_dir / "joiner"
    newest = {path.stem: _newest_event_s(path) for path in directory.glob("partition-*.sqlite")}
    if not newest:
        return Finding(name, True, f"nothing joined in {directory}")
    where, newest_s = max(newest.items(), key=lambda one: one[1])
    join, behind_s = settings.join, newest_s - now_s
    over = join.window + join.max_out_of_order + join.allowed_lateness
    if behind_s < over.total_seconds():
        return Finding(name, True, "what happens now is not late")
    text = f"{where} has joined an event {behind_s:.0f} s ahead of the clock: what happens is late"
    mend = (
        "set the clock if it is behind; if it was ahead before, learning goes on by itself once it "
        "has caught up, or restore a backup from before that"
    )
    return Finding(name, False, text, mend)


def _newest_event_s(database: Path) -> float:
    """Of a joiner's state, which a running joiner may have; 0 where it cannot be told."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = 'newest_ms'").fetchone()
    except sqlite3.Error:
        return 0.0
    return row[0] / 1_000 if row else 0.0


def _newest(directory: Path) -> Path | None:
    from trainer.checkpoint_store import CheckpointStore

    return CheckpointStore(directory, keep=1).newest()
