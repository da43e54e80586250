"""How soon a click is learned, against the shortest loop that one could write."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.learner import PlainTorch
from benchmarks.report import Row, row
from benchmarks.stream_parts.broker import broker, new_cluster
from freshrank import messages
from freshrank.clock import SystemClock
from freshrank.dev.servers import stop
from freshrank.features import FeatureEncoder
from freshrank.messages import Action, Impression
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS, NewRecord, TopicPartition
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from trainer.loop import Trainer

N_WARM, N_EVENTS = 20, 200
N_USERS, N_ITEMS, N_SHOWN = 20, 50, 5
DEADLINE_S: Final = 30.0
FRESHRANK: Final = Path(sys.executable).with_name("freshrank")
CONFIG: Final[dict[str, Any]] = {
    "features": [
        {"name": "user_id", "type": "id", "scope": "user"},
        {"name": "item_id", "type": "id", "scope": "item"},
        {"name": "hour", "type": "id", "scope": "context"},
    ],
    "tasks": [{"name": "click", "event": "click"}],
}


def shown(n: int) -> Impression:
    """What the n-th request is shown, now."""
    request, now_ms = f"request-{n}", time.time_ns() // 1_000_000
    return Impression(
        event_id=request,
        ts_ms=now_ms,
        received_at_ms=now_ms,
        request_id=request,
        user=f"user-{n % N_USERS}",
        items=[f"item-{(n + i) % N_ITEMS}" for i in range(N_SHOWN)],
        shared={"hour": str(n % 24)},
        positions=list(range(1, N_SHOWN + 1)),
    )


def clicked(n: int, one: Impression) -> Action:
    """The n-th click, now, on the first item that was shown."""
    now_ms = time.time_ns() // 1_000_000
    return Action(
        event_id=f"click-{n}",
        ts_ms=now_ms,
        received_at_ms=now_ms,
        request_id=one.request_id,
        item=one.items[0],
        event="click",
    )


def freshness() -> list[Row]:
    """Milliseconds from a click to the end of the step that learned it; one at a time, in turns.

    Ours: an acknowledged append, `freshrank join` in a process of its own beside the broker, the
    trainer here, and the click's impression joined before. Bare: an acknowledged append that this
    process reads back and learns with a plain torch step.
    """
    with ExitStack() as stack:
        address = stack.enter_context(broker())
        ours, bare = _Ours(stack, new_cluster(address)), _Bare(stack, new_cluster(address))
        ways: dict[str, Callable[[int], float]] = {"ours": ours.learn, "bare": bare.learn}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for n in range(N_WARM + N_EVENTS):
            for name, learn in ways.items():
                seconds[name].append(learn(n))
    p50, bare_p50 = (statistics.median(some[N_WARM:]) for some in seconds.values())
    return [
        row("event_to_trained_p50_ms", p50 * 1e3, "ms"),
        row("event_to_trained_p99_ms", float(np.percentile(seconds["ours"], 99)) * 1e3, "ms"),
        row("bare_loop_p50_ms", bare_p50 * 1e3, "ms"),
        row("event_to_trained_p50_vs_bare_loop", p50 / bare_p50, "times", 4, is_maximum=True),
    ]


class _Ours:
    def __init__(self, stack: ExitStack, cluster: Cluster) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = {"kind": "kafka", "brokers": list(cluster.brokers), "prefix": cluster.prefix}
        document = CONFIG | {
            "log": log | {"replication": 1},
            "service": {"data_dir": str(folder / "data")},
        }
        (folder / "freshrank.yaml").write_text(json.dumps(document))  # which is YAML as well
        with (folder / "join.log").open("wb") as output:
            joiner = subprocess.Popen(
                [FRESHRANK, "join", "-c", "freshrank.yaml"], cwd=folder, stderr=output
            )
        stack.callback(stop, joiner)
        settings, clock = Settings.model_validate(document), SystemClock()
        self._input = stack.enter_context(closing(KafkaLog(cluster)))
        self._progress = Progress()
        channel = stack.enter_context(closing(DirectoryChannel(folder / "channel", clock=clock)))
        self._trainer = Trainer(
            settings,
            FeatureEncoder(settings),
            stack.enter_context(closing(KafkaLog(cluster))),
            channel,
            directory=folder / "trainer",
            clock=clock,
            progress=self._progress,
        )
        self._trainer.start()

    def learn(self, n: int) -> float:
        """Seconds from the click to the end of its step."""
        one = shown(n)
        request = one.request_id
        self._until(IMPRESSIONS, self._append(IMPRESSIONS, request, messages.encode(one)))
        click = clicked(n, one)
        began_s = time.perf_counter()
        self._until(ACTIONS, self._append(ACTIONS, request, messages.encode(click)))
        return time.perf_counter() - began_s

    def _append(self, topic: str, request: str, value: bytes) -> int:
        ((_, offset),) = self._input.append(topic, [NewRecord(request.encode(), value)])
        return offset

    def _until(self, topic: str, offset: int) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while self._progress.offset("trained", topic, 0) <= offset:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{topic} offset {offset} is not learned after {DEADLINE_S:.0f} s")
            self._trainer.step(0.05)


class _Bare:
    def __init__(self, stack: ExitStack, cluster: Cluster) -> None:
        settings = Settings.model_validate(CONFIG)
        self._encoder = FeatureEncoder(settings)
        self._log = stack.enter_context(closing(KafkaLog(cluster)))
        self._net = PlainTorch(settings, self._encoder, {t.name: 100 for t in self._encoder.tables})
        self._next = 0

    def learn(self, n: int) -> float:
        """Seconds from the append to the end of the step."""
        began_s = time.perf_counter()
        self._log.append(EXAMPLES, [NewRecord(b"", str(n % 50).encode())], partition=0)
        self._log.wait({TopicPartition(EXAMPLES, 0): self._next}, timeout_s=DEADLINE_S)
        (record,) = self._log.read(EXAMPLES, 0, self._next)
        self._next = record.offset + 1
        number = torch.tensor([int(record.value)])
        indices = {slot.name: (number, None) for slot in self._encoder.slots}
        self._net.learn(indices, torch.empty(1, 0), torch.ones(1, 1))
        return time.perf_counter() - began_s
