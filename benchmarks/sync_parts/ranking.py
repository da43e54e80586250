"""What requests notice of the deltas that come meanwhile."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np

from benchmarks.rank import body
from benchmarks.report import Row, row
from benchmarks.sync_parts.follower import DEADLINE_S
from benchmarks.sync_parts.model import DIM, NO_KEYS, U64, new_channel, redis_url
from benchmarks.sync_parts.sizes import Sizes
from freshrank import frames
from freshrank.clock import ManualClock, SystemClock
from freshrank.frames import Frame, FrameInfo, TableRows
from service.bodies import RankRequest
from service.core import Service
from tests.unit.service.support import FEATURES, World, linear_net, make_settings

TABLE: Final = "item_id"
N_BODIES: Final = 200
N_NAMES: Final = 5_000  # of the items that are asked for, which are among those that change
ROWS_PER_SECOND: Final = 50_000
# As often as `sync.sparse_every` publishes by default.
EVERY_S: Final = 1.0


@dataclass(frozen=True)
class Served:
    """A service that serves a base, and what it is asked.

    Attributes:
        service: Its replica follows the channel on a thread of its own.
        requests: Of 200 candidates.
        info: Of the base.
        keys: Of its rows.
        dense: Its net.
    """

    service: Service
    requests: list[RankRequest]
    info: FrameInfo
    keys: U64
    dense: bytes

    def p99_ms(self, seconds: float) -> float:
        """Of the ranker, asked again and again by one caller for so long."""
        took_ms: list[float] = []
        end_s = time.perf_counter() + seconds
        while (began_s := time.perf_counter()) < end_s:
            self.service.ranker.rank(self.requests[len(took_ms) % len(self.requests)])
            took_ms.append((time.perf_counter() - began_s) * 1e3)
        return float(np.percentile(took_ms, 99))

    def until(self, seq: int) -> None:
        """Wait until this version is served."""
        deadline_s = time.monotonic() + DEADLINE_S
        replica = self.service.replica
        while (model := replica.model) is None or model.current.info.seq < seq:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"version {seq} is not served: {replica.refusals}")
            time.sleep(0.01)


@contextmanager
def served(sizes: Sizes, url: str, *, through: str | None = None) -> Iterator[Served]:
    """A service over a base in Redis.

    Args:
        sizes: Rows of the base.
        url: Where it is published.
        through: Where the service reads it; by default there as well.
    """
    rng = np.random.default_rng(0)
    more: list[dict[str, Any]] = [
        {"name": f"f{i}", "type": "id", "scope": "candidate"} for i in range(3)
    ]
    features = [{**one, "dim": DIM} if "dim" in one else one for one in FEATURES] + more
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = make_settings(features=features)
        wall = cast(ManualClock, SystemClock())  # nobody moves it here
        world = stack.enter_context(closing(World(folder, settings=settings, clock=wall)))
        names = [f"item-{i}" for i in range(N_NAMES)]
        named = np.array(world.ids(TABLE, names), np.uint64)
        others = rng.integers(1 << 63, size=sizes.rows - N_NAMES, dtype=np.uint64)
        keys = np.unique(np.concatenate([named, others]))
        with closing(new_channel(url)) as channel:
            info = FrameInfo("base", channel.open_epoch(), 0, 0, world.encoder.schema_hash, 0)
            dense = linear_net(settings)
            base = Frame(info, {TABLE: rows_of(keys, 0)}, dense)
            channel.publish_base(info.epoch, 0, frames.encode(base))
        followed = stack.enter_context(closing(new_channel(through or url)))
        service = Service(replace(world.parts, channel=followed))
        service.start()
        stack.callback(service.stop)
        requests = [
            msgspec.json.decode(body(rng, names), type=RankRequest) for _ in range(N_BODIES)
        ]
        one = Served(service, requests, info, keys, dense)
        one.until(0)
        yield one


def ranking(sizes: Sizes) -> list[Row]:
    """p99 of the ranker's milliseconds for 200 candidates, with deltas over without, in turns.

    Each the median of the rounds' p99. With deltas, 50,000 random rows a second come through Redis
    from another process, and the replica's thread applies them.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        redis_url() as url,
        served(sizes, url) as one,
        ProcessPoolExecutor(1, spawn) as trainer,
    ):
        times = _in_turns(one, trainer, url, sizes)
    idle, busy = (statistics.median(some) for some in zip(*times, strict=True))
    return [
        row("rank_p99_idle", idle, "ms"),
        row("rank_p99_under_deltas", busy, "ms"),
        row("rank_p99_under_deltas_vs_idle", busy / idle, "times", goal=1.5, is_maximum=True),
    ]


def rows_of(keys: U64, seed: int) -> TableRows:
    """Rows for these ids that another seed makes others."""
    rows = np.random.default_rng(seed).normal(size=(len(keys), DIM + 1)).astype(np.float32)
    return TableRows(keys, rows, NO_KEYS)


def _in_turns(
    one: Served, trainer: ProcessPoolExecutor, url: str, sizes: Sizes
) -> list[tuple[float, float]]:
    """By round, p99 in milliseconds without deltas and with them."""
    times, seq = [], 0
    n_deltas = round(sizes.phase_s / EVERY_S)
    for _ in range(sizes.rounds):
        # Made while nobody is timed: making them is the learning's cost, not the sync's.
        trainer.submit(_prepare, url, one.info, one.keys, seq, n_deltas).result()
        idle_ms = one.p99_ms(sizes.phase_s)
        publishing = trainer.submit(_publish)
        busy_ms = one.p99_ms(sizes.phase_s)
        publishing.result()
        seq += n_deltas
        one.until(seq)
        times.append((idle_ms, busy_ms))
    return times


# Of the process that publishes: made before they are due.
_PREPARED: list[tuple[str, int, int, bytes]] = []


def _prepare(url: str, info: FrameInfo, keys: U64, seq: int, n: int) -> None:
    _PREPARED.clear()
    rng = np.random.default_rng(seq)
    n_rows = min(round(ROWS_PER_SECOND * EVERY_S), len(keys))
    for number in range(seq + 1, seq + n + 1):
        some = rows_of(np.sort(rng.choice(keys, n_rows, replace=False)), number)
        about = replace(info, kind="delta", seq=number)
        _PREPARED.append((url, info.epoch, number, frames.encode(Frame(about, {TABLE: some}))))


def _publish() -> None:
    began_s = time.monotonic()
    for i, (url, epoch, seq, frame) in enumerate(_PREPARED):
        time.sleep(max(0.0, began_s + (i + 0.5) * EVERY_S - time.monotonic()))
        with closing(new_channel(url)) as channel:
            channel.publish_delta(epoch, seq, frame)
