"""What requests notice of the deltas that come meanwhile."""

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np

from benchmarks.rank import body
from benchmarks.report import Row, row
from benchmarks.sync_parts.follower import DEADLINE_S
from benchmarks.sync_parts.model import DIM, NO_KEYS, new_channel, redis_url
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


def ranking(sizes: Sizes) -> list[Row]:
    """p99 of the ranker's milliseconds for 200 candidates, with deltas over without, in turns.

    Each the median of the rounds' p99. One caller asks again and again. With deltas, 50,000 random
    rows a second come through Redis from another process, and the replica's thread applies them.
    """
    rng = np.random.default_rng(0)
    more: list[dict[str, Any]] = [
        {"name": f"f{i}", "type": "id", "scope": "candidate"} for i in range(3)
    ]
    features = [{**one, "dim": DIM} if "dim" in one else one for one in FEATURES] + more
    with tempfile.TemporaryDirectory() as folder, redis_url() as url:
        settings = make_settings(features=features)
        wall = cast(ManualClock, SystemClock())  # nobody moves it here
        world = World(Path(folder), settings=settings, clock=wall)
        names = [f"item-{i}" for i in range(N_NAMES)]
        named = np.array(world.ids(TABLE, names), np.uint64)
        others = rng.integers(1 << 63, size=sizes.rows - N_NAMES, dtype=np.uint64)
        keys = np.unique(np.concatenate([named, others]))
        channel = new_channel(url)
        info = FrameInfo("base", channel.open_epoch(), 0, 0, world.encoder.schema_hash, 0)
        base = Frame(info, {TABLE: _rows(keys, 0)}, linear_net(settings))
        channel.publish_base(info.epoch, 0, frames.encode(base))
        service = Service(replace(world.parts, channel=channel))
        service.start()
        _until(service, 0)
        requests = [
            msgspec.json.decode(body(rng, names), type=RankRequest) for _ in range(N_BODIES)
        ]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as trainer:
            times = _in_turns(service, requests, trainer, (url, info, keys), sizes)
        service.stop()
        channel.close()
        world.close()
    idle, busy = (statistics.median(some) for some in zip(*times, strict=True))
    return [
        row("rank_p99_idle", idle, "ms"),
        row("rank_p99_under_deltas", busy, "ms"),
        row("rank_p99_under_deltas_vs_idle", busy / idle, "times", goal=1.5, is_maximum=True),
    ]


def _rows(keys: np.ndarray[Any, np.dtype[np.uint64]], seed: int) -> TableRows:
    rows = np.random.default_rng(seed).normal(size=(len(keys), DIM + 1)).astype(np.float32)
    return TableRows(keys, rows, NO_KEYS)


def _in_turns(
    service: Service,
    requests: list[RankRequest],
    trainer: ProcessPoolExecutor,
    written: tuple[str, FrameInfo, np.ndarray[Any, np.dtype[np.uint64]]],
    sizes: Sizes,
) -> list[tuple[float, float]]:
    """By round, p99 in milliseconds without deltas and with them."""
    times, seq = [], 0
    n_deltas = round(sizes.phase_s / EVERY_S)
    for _ in range(sizes.rounds):
        # Made while nobody is timed: making them is the learning's cost, not the sync's.
        trainer.submit(_prepare, *written, seq, n_deltas).result()
        idle_ms = _p99_ms(service, requests, sizes.phase_s)
        publishing = trainer.submit(_publish)
        busy_ms = _p99_ms(service, requests, sizes.phase_s)
        publishing.result()
        seq += n_deltas
        _until(service, seq)
        times.append((idle_ms, busy_ms))
    return times


def _p99_ms(service: Service, requests: list[RankRequest], seconds: float) -> float:
    took_ms: list[float] = []
    end_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < end_s:
        service.ranker.rank(requests[len(took_ms) % len(requests)])
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    return float(np.percentile(took_ms, 99))


def _until(service: Service, seq: int) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while (model := service.replica.model) is None or model.current.info.seq < seq:
        if time.monotonic() > deadline_s:
            raise SystemExit(f"version {seq} is not served: {service.replica.refusals}")
        time.sleep(0.01)


# Of the process that publishes: made before they are due.
_PREPARED: list[tuple[str, int, int, bytes]] = []


def _prepare(
    url: str, info: FrameInfo, keys: np.ndarray[Any, np.dtype[np.uint64]], seq: int, n: int
) -> None:
    _PREPARED.clear()
    rng = np.random.default_rng(seq)
    n_rows = min(round(ROWS_PER_SECOND * EVERY_S), len(keys))
    for number in range(seq + 1, seq + n + 1):
        some = _rows(np.sort(rng.choice(keys, n_rows, replace=False)), number)
        about = replace(info, kind="delta", seq=number)
        _PREPARED.append((url, info.epoch, number, frames.encode(Frame(about, {TABLE: some}))))


def _publish() -> None:
    began_s = time.monotonic()
    for i, (url, epoch, seq, frame) in enumerate(_PREPARED):
        time.sleep(max(0.0, began_s + (i + 0.5) * EVERY_S - time.monotonic()))
        with closing(new_channel(url)) as channel:
            channel.publish_delta(epoch, seq, frame)
