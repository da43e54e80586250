"""How soon clicks are served while events come at half of what the loop can take."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.joiner import CONFIG, events
from benchmarks.report import Row, row
from benchmarks.stream_parts import load
from benchmarks.stream_parts.broker import new_cluster
from benchmarks.sync_parts.follower import DEADLINE_S, Applied, FollowerProcess
from benchmarks.sync_parts.model import redis_url
from benchmarks.sync_parts.sizes import Sizes
from freshrank import messages
from freshrank.clock import SystemClock
from freshrank.dev.kafka import kafka
from freshrank.messages import Action, Impression
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from tests.roles import role

N_REPLICAS: Final = 2
SLICE: Final = 500  # impressions, a second of them
# So long after its impression an item is a negative: in the backlog, and before the open loop is
# measured, most are decided, so that both have the loop's full work. Between the two the backlog's
# negatives come alone and then the audience's positives: for about a window the guard holds back
# what learns from one kind only, and that is not what is measured.
WINDOW_S: Final = 10
WARM_S: Final = 3 * WINDOW_S

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def steady(sizes: Sizes) -> list[Row]:
    """Milliseconds from when a click is due until a replica serves what it taught; p99 of all.

    `freshrank join` and `freshrank train` and two replicas are processes of this machine, with
    versions a second apart. The capacity is that of a backlog: records a second from the first
    append until both replicas serve all. Then an audience appends half as many, at times set
    beforehand.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = new_cluster(stack.enter_context(kafka(folder / "kafka")).address)
        url = stack.enter_context(redis_url())
        settings = _start(stack, cluster, url, folder)
        log = stack.enter_context(closing(KafkaLog(cluster)))
        replicas = [
            _Replica(stack.enter_context(FollowerProcess(url, settings))) for _ in range(N_REPLICAS)
        ]
        for replica in replicas:
            replica.until({})
        capacity = _capacity(log, replicas, sizes)
        began_ms = (time.time() + WARM_S) * 1_000
        lasts_s = WARM_S + sizes.open_loop_s
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as audience:
            late_s = audience.submit(load.produce, cluster, capacity / 2, lasts_s).result()
        due_ms, offsets = _clicks(log, began_ms)
        for replica in replicas:
            replica.until({ACTIONS: int(offsets[-1]) + 1})
        freshness_ms = np.concatenate([one.served_ms(offsets) - due_ms for one in replicas])
    p50, p99 = np.percentile(freshness_ms, [50, 99])
    goal = "freshness_p99_at_half_capacity_ms"
    return [
        row("freshness_capacity_events_per_second", capacity, "records/s"),
        row("freshness_p50_at_half_capacity_ms", float(p50), "ms"),
        row(goal, float(p99), "ms", goal=2_000, is_maximum=True),
        row("freshness_clicks", len(freshness_ms) / N_REPLICAS, "clicks"),
        row("freshness_audience_late_at_worst", late_s, "s"),
    ]


def _start(stack: ExitStack, cluster: Cluster, url: str, folder: Path) -> Settings:
    """Trainer and joiner, until the stack unwinds."""
    log = {"kind": "kafka", "brokers": list(cluster.brokers), "prefix": cluster.prefix}
    document: dict[str, Any] = CONFIG | {
        "join": {"window": f"{WINDOW_S}s"},
        "log": log | {"replication": 1},
        "service": {"data_dir": str(folder / "data")},
        "state": {"kind": "redis", "url": url},
        "sync": {"sparse_every": "1s", "channel": {"kind": "redis", "url": url}},
    }
    config = folder / "freshrank.yaml"
    config.write_text(json.dumps(document))  # which is YAML as well
    for name in ("train", "join"):
        stack.enter_context(role(name, "-c", str(config), log=folder / f"{name}.log"))
    return Settings.model_validate(document)


@dataclass
class _Replica:
    """What one replica has told so far."""

    process: FollowerProcess

    def __post_init__(self) -> None:
        self.applied: list[Applied] = []

    def until(self, ends: dict[str, int]) -> float:
        """Wait until it serves what stands before these offsets; when that was, monotonic."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.applied or any(
            self.applied[-1].offsets.get(f"{topic}:0", 0) < end for topic, end in ends.items()
        ):
            if time.monotonic() > deadline_s:
                raise SystemExit(
                    f"not served after {DEADLINE_S:.0f} s: {ends}, {self.applied[-1:]}"
                )
            if (one := self.process.poll(1.0)) is not None:
                self.applied.append(one)
        return self.applied[-1].at_s

    def served_ms(self, offsets: I64) -> F64:
        """When each action was in what is served, in milliseconds since 1970: `float64[n]`."""
        reached = [one.offsets.get(f"{ACTIONS}:0", 0) for one in self.applied]
        first = np.searchsorted(reached, offsets, side="right")
        at_ms: F64 = np.array([one.at_ms for one in self.applied])[first]
        return at_ms


def _capacity(log: KafkaLog, replicas: Sequence[_Replica], sizes: Sizes) -> float:
    """Records a second of a backlog whose last event happens now."""
    shown, acted = events()
    shown = shown[: sizes.backlog]
    known = {one.request_id for one in shown}
    acted = [one for one in acted if one.request_id in known and one.ts_ms <= shown[-1].ts_ms]
    shift_ms = SystemClock().now_ms() - shown[-1].ts_ms
    n_records, ends, began_s = 0, {}, time.monotonic()
    # Slice by slice of event time: a topic that lags behind the other is taken to be silent.
    for start in range(0, len(shown), SLICE):
        until_ms = shown[min(start + SLICE, len(shown)) - 1].ts_ms
        for topic, some in ((IMPRESSIONS, shown[start : start + SLICE]), (ACTIONS, acted)):
            records = [_moved(one, shift_ms) for one in some if one.ts_ms <= until_ms]
            if records:
                ends[topic] = log.append(topic, records, partition=0)[-1][1] + 1
            n_records += len(records)
        acted = [one for one in acted if one.ts_ms > until_ms]
    ended_s = max(replica.until(ends) for replica in replicas)
    return n_records / (ended_s - began_s)


def _moved(one: Impression | Action, shift_ms: int) -> NewRecord:
    ts_ms = one.ts_ms + shift_ms
    moved = msgspec.structs.replace(one, ts_ms=ts_ms, received_at_ms=ts_ms)
    return NewRecord(one.request_id.encode(), messages.encode(moved))


def _clicks(log: KafkaLog, began_ms: float) -> tuple[F64, I64]:
    """When clicks were due from `began_ms` on, `float64[n]`, and their offsets, `int64[n]`."""
    due_ms, offsets = [], []
    offset = log.start_offset(ACTIONS, 0)
    while records := log.read(ACTIONS, 0, offset):
        for record in records:
            message = messages.decode(record.value)
            if isinstance(message, Action) and message.ts_ms >= began_ms:
                due_ms.append(message.ts_ms)
                offsets.append(record.offset)
        offset = records[-1].offset + 1
    return np.array(due_ms, np.float64), np.array(offsets, np.int64)
