"""The whole loop as processes on the cores of this machine, under a load that does not wait."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.joiner import CONFIG
from benchmarks.report import Row, row
from benchmarks.stream_parts import load
from benchmarks.stream_parts.broker import new_cluster
from freshrank import frames
from freshrank.clock import SystemClock
from freshrank.dev.kafka import kafka
from freshrank.dev.redis import redis
from freshrank.dev.servers import free_ports
from freshrank.transport.base import ACTIONS, IMPRESSIONS, TopicPartition
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from tests.roles import Api, role

RATE, RANKS_PER_SECOND, SECONDS = 5_000, 100, 300
RATE_MIN: Final = 500.0
TRIAL_S, QUICK_S = 30, 20
# Two windows of 30 s: positives come alone until the first is over, negatives alone after the last,
# and from then on as many as in a stream without end.
WARM_S = 60
# A backlog of less at the end is none: publications are a second apart.
BEHIND_MAX_S: Final = 3.0
# More than the cycles of one load.
_CYCLES_MAX: Final = 1_000
_INPUTS: Final = [TopicPartition(topic, 0) for topic in (IMPRESSIONS, ACTIONS)]
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """The loop at one moment: records of both inputs, and CPU seconds by role."""

    at_s: float
    n_appended: int
    n_served: int
    cpu_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Trial:
    """A stretch of load, without its beginning.

    Attributes:
        rate: Records a second, as wanted.
        samples: The first and the last.
        rank_ms: Of each request.
        producer_late_s: At worst.
    """

    rate: float
    samples: tuple[Sample, Sample]
    rank_ms: load.F64
    producer_late_s: float

    @property
    def behind_s(self) -> float:
        """Seconds of load that are not in the served parameters at the end."""
        last = self.samples[1]
        return (last.n_appended - last.n_served) / self.rate

    @property
    def is_sustained(self) -> bool:
        """Whatever came was learned and served, and came in time."""
        return self.behind_s < BEHIND_MAX_S and self.producer_late_s < BEHIND_MAX_S

    @property
    def served_per_second(self) -> float:
        """Records a second that reached the served parameters."""
        first, last = self.samples
        return (last.n_served - first.n_served) / (last.at_s - first.at_s)


def loop(*, is_quick: bool = False) -> list[Row]:
    """Records a second through broker, joiner, trainer and service, and how fast it then ranks.

    Records are those of the joiner's benchmark, appended as they fall due by a producer, and what
    the service logs of 100 rank requests a second. They count once parameters are published that
    have learned them. Where the backlog grows, a new loop is put under a lower load, until one is
    held for five minutes; a short one for 20 s.
    """
    seconds, rate = QUICK_S if is_quick else SECONDS, float(RATE)
    while not (trial := _tried(rate, seconds)).is_sustained:
        if rate == RATE_MIN:
            raise SystemExit("no load is held")
        lower = min(0.9 * trial.served_per_second, 0.8 * rate)
        rate = max(RATE_MIN, lower // 100 * 100)
    p50_ms, p99_ms = np.percentile(trial.rank_ms, [50, 99])
    return [
        row("loop_events_per_second", trial.served_per_second, "records/s", goal=RATE),
        row("loop_seconds", seconds, "s"),
        row("loop_behind_at_the_end", trial.behind_s, "s"),
        row("loop_rank_p50", p50_ms, "ms"),
        row("loop_rank_p99", p99_ms, "ms", goal=25, is_maximum=True),
        *(row(f"loop_cpu_{name}", n, "cores") for name, n in _cores(trial).items()),
    ]


def _tried(rate: float, seconds: float) -> Trial:
    """A loop of its own under so many records a second: a short stretch, and if it is held a long.

    Of its own, as a stream that has stood still begins with positives alone: the guard holds back
    what is learned of them, and nothing is served until negatives follow.
    """
    with ExitStack() as stack:
        running = _Loop(stack)
        for lasts_s in (TRIAL_S, seconds):
            trial = running.under(rate, lasts_s)
            print(f"{rate:,.0f} records/s for {lasts_s} s: {_told(trial)}", file=sys.stderr)
            if not trial.is_sustained:
                break
    return trial


def _told(trial: Trial) -> str:
    cores = ", ".join(f"{name} {n:.2f}" for name, n in _cores(trial).items())
    return (
        f"{trial.served_per_second:,.0f}/s served, {trial.behind_s:.1f} s behind, producer "
        f"{trial.producer_late_s:.1f} s late, rank p99 {np.percentile(trial.rank_ms, 99):.1f} ms, "
        f"cores: {cores}"
    )


def _cores(trial: Trial) -> dict[str, float]:
    """How much of a core each role took."""
    first, last = trial.samples
    lasted_s = last.at_s - first.at_s
    return {name: (s - first.cpu_s[name]) / lasted_s for name, s in last.cpu_s.items()}


@dataclass
class _Loop:
    """Servers and roles, each a process, until the stack unwinds."""

    stack: ExitStack
    folder: Path = field(init=False)
    cluster: Cluster = field(init=False)
    roles: dict[str, subprocess.Popen[bytes]] = field(init=False)
    pids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        enter = self.stack.enter_context
        self.folder = folder = Path(enter(tempfile.TemporaryDirectory()))
        broker, state = enter(kafka(folder / "kafka")), enter(redis(folder / "redis"))
        self.cluster = new_cluster(broker.address)
        self._first_cycles = count(step=_CYCLES_MAX)  # of each load
        [self.port] = free_ports(1)
        document = CONFIG | {
            "log": {
                "kind": "kafka",
                "brokers": [broker.address],
                "prefix": self.cluster.prefix,
                "replication": 1,
            },
            "state": {"kind": "redis", "url": f"redis://{state.address}/0"},
            "service": {"data_dir": str(folder / "data"), "port": self.port},
        }
        config = folder / "freshrank.yaml"
        config.write_text(json.dumps(document))  # which is YAML as well
        self.roles = {
            name: enter(role(command, "-c", str(config), log=folder / f"{name}.log"))
            for name, command in (("trainer", "train"), ("joiner", "join"), ("service", "serve"))
        }
        enter(closing(Api(self.port))).until_ready(self.roles["service"], folder / "service.log")
        started = {"kafka": broker.process, "redis": state.process, **self.roles}
        self.pids = {name: process.pid for name, process in started.items()}
        self._log = enter(closing(KafkaLog(self.cluster)))
        channel = DirectoryChannel(folder / "data" / "parameters", clock=SystemClock())
        self._channel = enter(closing(channel))
        spawned = multiprocessing.get_context("spawn")
        self._pools = [enter(ProcessPoolExecutor(1, spawned)) for _ in range(2)]
        for name, pool in zip(("producer", "asker"), self._pools, strict=True):
            self.pids[name] = pool.submit(os.getpid).result()

    def under(self, rate: float, seconds: float) -> Trial:
        """The loop under so many records a second, rank requests included."""
        lasts_s, rate_produced = WARM_S + seconds, rate - RANKS_PER_SECOND
        produced = self._pools[0].submit(
            load.produce, self.cluster, rate_produced, lasts_s, next(self._first_cycles)
        )
        asked = self._pools[1].submit(load.ask, self.port, RANKS_PER_SECOND, WARM_S, seconds)
        time.sleep(WARM_S)
        first = self.sample()
        time.sleep(seconds)
        last = self.sample()
        return Trial(rate, (first, last), asked.result(), produced.result())

    def told(self) -> str:
        """What the roles have printed last."""
        return "\n".join((self.folder / f"{name}.log").read_text()[-1_000:] for name in self.roles)

    def sample(self) -> Sample:
        """The loop as it is now; it ends with the first of its roles."""
        for name, process in self.roles.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} has ended: {process.returncode}\n{self.told()}")
        head = self._channel.head()
        served: dict[str, int] = {}
        if head is not None:
            frame = self._channel.delta(head.epoch, head.seq)
            base = self._channel.base() if frame is None else None
            data = frame if base is None else base[2]
            served = {} if data is None else frames.decode_info(data).offsets
        return Sample(
            time.monotonic(),
            sum(self._log.end_offset(*place) for place in _INPUTS),
            sum(served.get(f"{place.topic}:{place.partition}", 0) for place in _INPUTS),
            {name: _cpu_s(pid) for name, pid in self.pids.items()},
        )


def _cpu_s(pid: int) -> float:
    """User and system time of a process, by the kernel's account."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
