"""What requests notice of a Redis that is ill, and of a whole base that is taken over."""

import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Final

from benchmarks.report import Row, row
from benchmarks.sync_parts.model import new_channel, redis_url
from benchmarks.sync_parts.ranking import TABLE, Served, rows_of, served
from benchmarks.sync_parts.sizes import Sizes
from freshrank import frames
from freshrank.frames import Frame
from tests.proxy import Proxy, half_open, proxy, slow, thin

N_CHANGED: Final = 5_000  # rows of the version that is published while Redis is ill


ILLNESSES: Final[dict[str, Callable[[Proxy], None]]] = {
    "slow": slow,
    "thin": thin,
    "half_open": half_open,
}


def ill_redis(sizes: Sizes) -> list[Row]:
    """p99 of the ranker's milliseconds beside an ill Redis, over beside a healthy one, in turns.

    A version is published in each phase, which the replica reads, or tries to: Redis answers half a
    second late, at 1 kB/s, or not at all on connections that stay open. The worst of the three
    counts; each is the median of the rounds' p99.
    """
    with redis_url() as url, proxy(url.removeprefix("redis://").removesuffix("/0")) as net:
        through = f"redis://{net.address}/0"
        with served(sizes, url, through=through) as one:
            well: list[float] = []
            ill: dict[str, list[float]] = {name: [] for name in ILLNESSES}
            seq = 0
            for _ in range(sizes.rounds):
                for name, falls_ill in ILLNESSES.items():
                    seq = _publish(one, url, seq)
                    well.append(one.p99_ms(sizes.phase_s))
                    one.until(seq)
                    falls_ill(net)
                    seq = _publish(one, url, seq)
                    ill[name].append(one.p99_ms(sizes.phase_s))
                    net.recover()
                    one.until(seq)
    well_ms = statistics.median(well)
    times = {name: statistics.median(some) / well_ms for name, some in ill.items()}
    return [
        row("rank_p99_redis_well", well_ms, "ms"),
        *(row(f"rank_p99_redis_{name}_vs_well", times[name], "times") for name in times),
        row("rank_p99_redis_ill_vs_well", max(times.values()), "times", goal=1.1, is_maximum=True),
    ]


def taking_over(sizes: Sizes) -> list[Row]:
    """p99 of the ranker's milliseconds while a base of all rows is taken over, over before it.

    In turns, each the median of the rounds' p99. The replica reads, checks and builds the base of a
    new epoch on its own thread, beside the table that serves.
    """
    times = []
    with redis_url() as url, served(sizes, url) as one, closing(new_channel(url)) as channel:
        for number in range(1, sizes.rounds + 1):
            info = replace(one.info, epoch=channel.open_epoch(), seq=number)
            base = frames.encode(Frame(info, {TABLE: rows_of(one.keys, number)}, one.dense))
            idle_ms = one.p99_ms(sizes.phase_s)
            channel.publish_base(info.epoch, number, base)
            busy_ms = one.p99_ms(sizes.phase_s)
            one.until(number)
            times.append((idle_ms, busy_ms))
    idle, busy = (statistics.median(some) for some in zip(*times, strict=True))
    return [row("rank_p99_taking_over_a_base_vs_idle", busy / idle, "times")]


def _publish(one: Served, url: str, seq: int) -> int:
    """A version more; returns its number."""
    some = rows_of(one.keys[:N_CHANGED], seq)
    about = replace(one.info, kind="delta", seq=seq + 1)
    with closing(new_channel(url)) as channel:
        channel.publish_delta(one.info.epoch, seq + 1, frames.encode(Frame(about, {TABLE: some})))
    return seq + 1
