"""How soon a click changes a score, against the shortest loop that one could write."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from redis import Redis

from benchmarks.learner import PlainTorch
from benchmarks.report import Row, row
from benchmarks.stream_parts.broker import new_cluster
from benchmarks.stream_parts.freshness import CONFIG, N_ITEMS, clicked, shown
from benchmarks.sync_parts.follower import DEADLINE_S
from benchmarks.sync_parts.model import new_channel, new_replica, redis_url
from benchmarks.sync_parts.sizes import Sizes
from freshrank import messages
from freshrank.dev.kafka import kafka
from freshrank.features import Encoded, FeatureEncoder, RequestValues
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS, NewRecord, TopicPartition
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from service.scorer import Scorer
from tests.roles import role


def soon(sizes: Sizes) -> list[Row]:
    """Milliseconds from a click to a score that it has changed; one at a time, in turns.

    Ours: an acknowledged append; `freshrank join` and `freshrank train`, processes of their own
    with guard and lease, which publishes after each step; and a replica here, asked for the score
    after each version. The click's impression is joined and served before. Bare: an acknowledged
    append that this process reads back and learns with a plain torch step; the click's rows set in
    Redis, got from there and scored.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(kafka(folder / "kafka")).address
        url = stack.enter_context(redis_url())
        ours = _Ours(stack, new_cluster(address), url, folder)
        bare = _Bare(stack, new_cluster(address), url)
        ways: dict[str, Callable[[int], float]] = {"ours": ours.change, "bare": bare.change}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for n in range(sizes.warm_events + sizes.events):
            for name, change in ways.items():
                seconds[name].append(change(n))
    some = {name: np.array(one[sizes.warm_events :]) * 1e3 for name, one in seconds.items()}
    p50, bare_p50 = (statistics.median(one) for one in some.values())
    p99 = float(np.percentile(some["ours"], 99))
    return [
        row("event_to_score_p50_ms", p50, "ms"),
        row("event_to_score_bare_loop_p50_ms", bare_p50, "ms"),
        row("event_to_score_p50_vs_bare_loop", p50 / bare_p50, "times", goal=4, is_maximum=True),
        row("event_to_score_p99_ms", p99, "ms", goal=60, is_maximum=True),
    ]


class _Ours:
    def __init__(self, stack: ExitStack, cluster: Cluster, url: str, folder: Path) -> None:
        log = {"kind": "kafka", "brokers": list(cluster.brokers), "prefix": cluster.prefix}
        document = CONFIG | {
            "log": log | {"replication": 1},
            "service": {"data_dir": str(folder / "data")},
            "sync": {"sparse_every": "1ms", "channel": {"kind": "redis", "url": url}},
        }
        config = folder / "freshrank.yaml"
        config.write_text(json.dumps(document))  # which is YAML as well
        for name in ("train", "join"):
            stack.enter_context(role(name, "-c", str(config), log=folder / f"{name}.log"))
        settings = Settings.model_validate(document)
        self._encoder, channel = (
            FeatureEncoder(settings),
            stack.enter_context(closing(new_channel(url))),
        )
        self._scorer = Scorer(settings, self._encoder)
        self._log = stack.enter_context(closing(KafkaLog(cluster)))
        self._replica = new_replica(settings, channel)
        self._until(lambda: True)

    def change(self, n: int) -> float:
        """Seconds from the click to its score."""
        one = shown(n)
        offset = self._append(IMPRESSIONS, messages.encode(one))
        self._until(lambda: self._replica.learned.offset(IMPRESSIONS, 0) > offset)
        values = RequestValues(one.items[:1], user=one.user, shared=one.shared)
        encoded = self._encoder.encode([values])
        before = self._score(encoded)
        click = clicked(n, one)
        began_s = time.perf_counter()
        clicked_at = self._append(ACTIONS, messages.encode(click))
        self._until(
            lambda: (
                self._score(encoded) != before
                and self._replica.learned.offset(ACTIONS, 0) > clicked_at
            )
        )
        return time.perf_counter() - began_s

    def _append(self, topic: str, value: bytes) -> int:
        ((_, offset),) = self._log.append(topic, [NewRecord(b"", value)], partition=0)
        return offset

    def _score(self, encoded: Encoded) -> float:
        assert self._replica.model is not None
        return float(self._scorer.score(self._replica.model, encoded).predictions[0, 0])

    def _until(self, is_there: Callable[[], bool]) -> None:
        """Apply versions until one has what is asked for."""
        deadline_s = time.monotonic() + DEADLINE_S
        while self._replica.model is None or not is_there():
            while not self._replica.step(1.0):
                if time.monotonic() > deadline_s:
                    raise SystemExit(f"not served after {DEADLINE_S:.0f} s")


class _Bare(PlainTorch):
    def __init__(self, stack: ExitStack, cluster: Cluster, url: str) -> None:
        settings = Settings.model_validate(CONFIG)
        encoder = FeatureEncoder(settings)
        super().__init__(settings, encoder, {table.name: 100 for table in encoder.tables})
        self._log = stack.enter_context(closing(KafkaLog(cluster)))
        self._redis = stack.enter_context(closing(Redis.from_url(url)))
        self._next = 0

    def change(self, n: int) -> float:
        """Seconds from the append to the score."""
        began_s = time.perf_counter()
        self._log.append(EXAMPLES, [NewRecord(b"", str(n % N_ITEMS).encode())], partition=0)
        self._log.wait({TopicPartition(EXAMPLES, 0): self._next}, timeout_s=DEADLINE_S)
        (record,) = self._log.read(EXAMPLES, 0, self._next)
        self._next = record.offset + 1
        number = torch.tensor([int(record.value)])
        indices = {slot.name: (number, None) for slot in self._slots}
        self.learn(indices, torch.empty(1, 0), torch.ones(1, 1))
        with torch.no_grad():
            rows = {
                f"bare:{name}:{number.item()}": table(number).numpy().tobytes()
                for name, table in self._tables.items()
            }
            self._redis.mset(rows)
            found: Any = self._redis.mget(list(rows))
            served = np.frombuffer(b"".join(found), np.float32).reshape(1, len(rows), -1)
            torch.sigmoid(self._net(torch.from_numpy(served.copy()), torch.empty(1, 0))).item()
        return time.perf_counter() - began_s
