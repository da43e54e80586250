"""How soon clicks are served while events come at half of what the loop can take."""

import json
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
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
from benchmarks.stream_parts.broker import fill, new_cluster
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
# So long after its impression an item is a negative: in the backlog, and before the open loop is
# measured, most are decided, so that both have the loop's full work.
WINDOW_S: Final = 10
WARM_S: Final = 3 * WINDOW_S
# Of the backlog: negatives alone come at its end.
_MEASURED: Final = 0.75
# The audience stays on until the last click that counts is served: once nobody clicks any more and
# negatives come alone, what learns from them is held back, rightly.
STAYS_S: Final = 5

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def steady(sizes: Sizes) -> list[Row]:
    """Milliseconds from when a click is due until a replica serves what it taught; p99 of all.

    `freshrank join` and `freshrank train` and two replicas are processes of this machine, with
    versions a second apart. The capacity is that of a backlog, records a second: the time to append
    it, and then from when the joiner goes on until both replicas serve three quarters. Then an
    audience appends half as many to another such loop, at times set beforehand.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(kafka(folder / "kafka")).address
        with ExitStack() as first:
            capacity = _capacity(_start(first, address, folder / "backlog"), sizes)
        loop = _start(stack, address, folder / "open")
        began_ms = (time.time() + WARM_S) * 1_000
        lasts_s = WARM_S + sizes.open_loop_s + STAYS_S
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as audience:
            late_s = audience.submit(load.produce, loop.cluster, capacity / 2, lasts_s).result()
        due_ms, offsets = _clicks(loop.log, began_ms, began_ms + sizes.open_loop_s * 1_000)
        loop.until({ACTIONS: int(offsets[-1]) + 1})
        freshness_ms = np.concatenate([one.served_ms(offsets) - due_ms for one in loop.replicas])
    p50, p99 = np.percentile(freshness_ms, [50, 99])
    goal = "freshness_p99_at_half_capacity_ms"
    return [
        row("freshness_capacity_events_per_second", capacity, "records/s"),
        row("freshness_p50_at_half_capacity_ms", float(p50), "ms"),
        row(goal, float(p99), "ms", goal=2_000, is_maximum=True),
        row("freshness_clicks", len(freshness_ms) / N_REPLICAS, "clicks"),
        row("freshness_audience_late_at_worst", late_s, "s"),
    ]


@dataclass(frozen=True)
class _Loop:
    """Trainer, joiner and replicas, between a log and a channel of their own."""

    cluster: Cluster
    log: KafkaLog
    joiner: "subprocess.Popen[bytes]"
    replicas: "list[_Replica]"

    def until(self, ends: dict[str, int]) -> float:
        """Wait until all serve what stands before these offsets; when that was, monotonic."""
        return max(replica.until(ends) for replica in self.replicas)


def _start(stack: ExitStack, address: str, folder: Path) -> _Loop:
    """A loop that serves, until the stack unwinds."""
    folder.mkdir()
    cluster, url = new_cluster(address), stack.enter_context(redis_url())
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
    joiner, _ = [
        stack.enter_context(role(name, "-c", str(config), log=folder / f"{name}.log"))
        for name in ("join", "train")
    ]
    settings = Settings.model_validate(document)
    followers = [stack.enter_context(FollowerProcess(url, settings)) for _ in range(N_REPLICAS)]
    loop = _Loop(
        cluster,
        stack.enter_context(closing(KafkaLog(cluster))),
        joiner,
        [_Replica(f) for f in followers],
    )
    loop.until({})
    return loop


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


def _capacity(loop: _Loop, sizes: Sizes) -> float:
    """Records a second, ticks among them, of a backlog whose last event happens now."""
    shown, acted = events()
    shown = shown[: sizes.backlog]
    known = {one.request_id for one in shown}
    acted = [one for one in acted if one.request_id in known and one.ts_ms <= shown[-1].ts_ms]
    shift_ms = SystemClock().now_ms() - shown[-1].ts_ms
    # A joiner that saw them come would take one topic for silent while the other is appended to.
    os.kill(loop.joiner.pid, signal.SIGSTOP)
    began_s = time.monotonic()
    for topic, some in ((IMPRESSIONS, shown), (ACTIONS, acted)):
        fill(loop.log, topic, [_moved(one, shift_ms) for one in some])
    append_s = (time.monotonic() - began_s) / (len(shown) + len(acted))  # each
    began_s = time.monotonic()
    os.kill(loop.joiner.pid, signal.SIGCONT)
    loop.until({IMPRESSIONS: round(_MEASURED * len(shown))})
    newest = [replica.applied[-1] for replica in loop.replicas]
    return min(1 / (append_s + (one.at_s - began_s) / sum(one.offsets.values())) for one in newest)


def _moved(one: Impression | Action, shift_ms: int) -> NewRecord:
    ts_ms = one.ts_ms + shift_ms
    moved = msgspec.structs.replace(one, ts_ms=ts_ms, received_at_ms=ts_ms)
    return NewRecord(one.request_id.encode(), messages.encode(moved))


def _clicks(log: KafkaLog, began_ms: float, until_ms: float) -> tuple[F64, I64]:
    """When clicks between these were due, `float64[n]`, and their offsets, `int64[n]`."""
    due_ms, offsets = [], []
    offset = log.start_offset(ACTIONS, 0)
    while records := log.read(ACTIONS, 0, offset):
        for record in records:
            message = messages.decode(record.value)
            if isinstance(message, Action) and began_ms <= message.ts_ms < until_ms:
                due_ms.append(message.ts_ms)
                offsets.append(record.offset)
        offset = records[-1].offset + 1
    return np.array(due_ms, np.float64), np.array(offsets, np.int64)
