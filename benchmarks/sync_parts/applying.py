"""Frames that a replica takes in: how fast, and how soon a new one is ready."""

import multiprocessing
import resource
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import Final

import numpy as np

from benchmarks.report import Row, row
from benchmarks.sync_parts.model import (
    CONFIG,
    TABLE,
    U64,
    Writer,
    ids,
    new_channel,
    new_replica,
    random_rows,
    redis_url,
)
from benchmarks.sync_parts.sizes import Sizes
from freshrank import frames
from freshrank.clock import SystemClock
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from service.judge import Judge
from service.model import Model, ModelShape

N_READ: Final = 200  # ids a request: its candidates
# Deltas behind the base that a new replica loads, and their share of its rows.
N_DELTAS, DELTA_SHARE = 20, 0.01


def applying(sizes: Sizes) -> list[Row]:
    """Rows a second of one core: decoded, judged and put in, as a replica does with each frame.

    Every delta has a tenth of the table's rows. Another thread reads the table all the time, as
    requests do; what the one that applies waits for it is no work of its core.
    """
    settings = Settings.model_validate(CONFIG)
    writer, keys = Writer(settings, 1), ids(sizes.rows)
    encoder = FeatureEncoder(settings)
    shape, judge = ModelShape.of(encoder, n_tasks=1), Judge(settings, encoder, SystemClock())
    model = Model(frames.decode(writer.base(random_rows(keys))), shape)
    stop, n_reads = threading.Event(), [0]
    reader = threading.Thread(target=_read, args=(model, keys, stop, n_reads))
    reader.start()
    rates, wall_rates = [], []
    for seq in range(1, 10 * sizes.rounds + 1):
        some = keys[seq % 10 :: 10]
        data = writer.delta(seq, random_rows(some, seq))
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        model.apply(frames.decode(data), judge.check_delta)
        rates.append(len(some) / (time.thread_time() - began_cpu_s))
        wall_rates.append(len(some) / (time.perf_counter() - began_s))
    stop.set()
    reader.join()
    if n_reads[0] < len(rates):
        raise SystemExit(f"only {n_reads[0]} reads beside {len(rates)} deltas")
    return [
        row("delta_apply_rows_per_second", statistics.median(rates), "rows/CPU s", goal=3_000_000),
        row("delta_apply_rows_per_wall_second", statistics.median(wall_rates), "rows/s"),
    ]


def _read(
    model: Model,
    keys: U64,
    stop: threading.Event,
    n_reads: list[int],
) -> None:
    rng, offsets = np.random.default_rng(0), np.arange(N_READ + 1)
    while not stop.is_set():
        model.read({TABLE: (TABLE, rng.choice(keys, N_READ), offsets, "sum")})
        n_reads[0] += 1


def ready(sizes: Sizes) -> list[Row]:
    """Seconds in which a replica, its process started, has the base and the deltas behind it."""
    with redis_url() as url:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as trainer:  # its memory goes with it
            head = trainer.submit(_publish, url, sizes.ready_rows).result()
        with closing(new_channel(url)) as channel:
            replica = new_replica(Settings.model_validate(CONFIG), channel)
            began_s = time.perf_counter()
            while replica.model is None or replica.model.current.info.seq != head:
                if not replica.step(1.0):
                    raise SystemExit(f"the replica refuses: {replica.refusals}")
            seconds = time.perf_counter() - began_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024
    return [
        row("replica_10m_rows_ready_seconds", seconds, "s", goal=30, is_maximum=True),
        row("replica_10m_rows_peak_bytes_per_row", peak_bytes / sizes.ready_rows, "bytes"),
    ]


def _publish(url: str, n_rows: int) -> int:
    """A base and deltas; returns the head's sequence."""
    keys = ids(n_rows)
    rng = np.random.default_rng(0)
    with closing(new_channel(url)) as channel:
        epoch = channel.open_epoch()
        writer = Writer(Settings.model_validate(CONFIG), epoch)
        channel.publish_base(epoch, 0, writer.base(random_rows(keys)))
        for seq in range(1, N_DELTAS + 1):
            some = np.sort(rng.choice(keys, int(DELTA_SHARE * n_rows), replace=False))
            channel.publish_delta(epoch, seq, writer.delta(seq, random_rows(some, seq)))
    return N_DELTAS
