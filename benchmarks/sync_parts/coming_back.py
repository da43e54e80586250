"""A trainer of many rows, killed: how soon another one has published what came meanwhile."""

import json
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

from benchmarks.report import Row, row
from benchmarks.stream_parts.broker import fill, new_cluster
from benchmarks.sync_parts.follower import DEADLINE_S
from benchmarks.sync_parts.model import CONFIG, ids, lessons, new_channel, redis_url
from benchmarks.sync_parts.publishing import N_SINCE, learned
from benchmarks.sync_parts.sizes import Sizes
from freshrank import frames
from freshrank.dev.kafka import kafka
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, ParameterChannel
from freshrank.transport.kafka import KafkaLog
from tests.roles import role


def coming_back(sizes: Sizes) -> list[Row]:
    """Seconds from kill -9 until the next trainer's base is in the channel, all learned in it.

    It is started at once, loads the checkpoint, waits until the lease of the dead one is over,
    learns what came meanwhile, and publishes all rows in an epoch of its own.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, url = stack.enter_context(kafka(folder / "kafka")), stack.enter_context(redis_url())
        cluster = new_cluster(server.address)
        raw = CONFIG | {
            "service": {"data_dir": str(folder / "data")},
            "log": {
                "kind": "kafka",
                "brokers": [server.address],
                "prefix": cluster.prefix,
                "partitions": 1,
                "replication": 1,
            },
            "sync": {"channel": {"kind": "redis", "url": url}},
        }
        log = stack.enter_context(closing(KafkaLog(cluster)))
        channel = stack.enter_context(closing(new_channel(url)))
        settings = Settings.model_validate(raw)
        learned(settings, log, channel, settings.service.data_dir, sizes.ready_rows)
        config = folder / "freshrank.yaml"
        config.write_text(json.dumps(raw))  # which is YAML as well

        def trainer(name: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
            return role("train", "-c", str(config), log=folder / f"{name}.log")

        with trainer("first") as first:
            epoch = _until_published(channel, _epoch(channel), first)
            first.kill()
            first.wait()
            began_s = time.monotonic()
            fill(log, EXAMPLES, lessons(settings, ids(N_SINCE)))
            second = stack.enter_context(trainer("second"))
            _until_published(channel, epoch, second)
            seconds = time.monotonic() - began_s
        base = channel.base()
        n_examples = frames.decode_info(base[2]).examples if base else 0
        told = (folder / "second.log").read_text()[-2_000:]
        if n_examples <= sizes.ready_rows // 400:  # rows of 400 ids
            raise SystemExit(f"what came since is not in the base: {n_examples} examples\n{told}")
    return [row("trainer_10m_rows_back_seconds", seconds, "s", goal=20, is_maximum=True)]


def _epoch(channel: ParameterChannel) -> int:
    head = channel.head()
    assert head is not None
    return head.epoch


def _until_published(
    channel: ParameterChannel, epoch: int, process: "subprocess.Popen[bytes]"
) -> int:
    """Wait for a base of an epoch above this one; returns it."""
    deadline_s = time.monotonic() + DEADLINE_S
    while (now := _epoch(channel)) <= epoch:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(f"no base of an epoch above {epoch}; exit code {process.poll()}")
        time.sleep(0.05)
    return now
