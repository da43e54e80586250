"""Impressions and actions joined from Kafka to Kafka, by our joiner and by Quix Streams."""

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks.joiner import CONFIG, N_ITEMS_SHOWN, N_REQUESTS, events
from benchmarks.report import Row, row
from benchmarks.store_peers.install import environment
from benchmarks.store_peers.process import PeerMissingError
from benchmarks.stream_parts.broker import broker, fill, new_cluster
from freshrank import messages
from freshrank.clock import ManualClock
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.garbage import spare_program
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from trainer.joiner import Joiner

N_RUNS: Final = 3
QUIX: Final = ("quixstreams==3.28.1", "msgpack")
QUIX_PEER: Final = Path(__file__).with_name("quix_peer.py")


def joining() -> list[Row]:
    """Records a second of one core, the broker on the other; the two in turns, three times.

    Ours decides every item of every impression, positive or negative. Quix Streams has no join that
    emits a negative when a window closes: it gets its inner interval join, which emits the matched
    actions alone. Both commit their input, state and output in Kafka transactions.
    """
    shown, acted = events()
    records = {
        topic: [NewRecord(one.request_id.encode(), messages.encode(one)) for one in some]
        for topic, some in ((IMPRESSIONS, shown), (ACTIONS, acted))
    }
    ours, theirs = [], []
    with broker() as address:
        for _ in range(N_RUNS):
            cluster = new_cluster(address)
            with closing(KafkaLog(cluster)) as log:
                for topic, some in records.items():
                    fill(log, topic, some)
            ours.append(_join(cluster, now_ms=acted[-1].ts_ms))
            if (rate := _join_with_quix(cluster, sum(map(len, records.values())))) is not None:
                theirs.append(rate)
    wall, cpu = (statistics.median(one) for one in zip(*ours, strict=True))
    rows = [
        row("joiner_events_per_second", wall, "records/s", goal=25_000),
        row("joiner_events_per_cpu_second", cpu, "records/CPU s"),
    ]
    if theirs:
        quix = statistics.median(theirs)
        rows.append(row("quix_streams_events_per_second", quix, "records/s"))
        rows.append(row("joiner_vs_quix_streams", wall / quix, "times", goal=3))
    return rows


def _join(cluster: Cluster, *, now_ms: int) -> tuple[float, float]:
    """Records a second of wall time and of CPU time; a backlog is read after its last event."""
    settings = Settings.model_validate(CONFIG)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(closing(KafkaLog(cluster)))
        transactions = stack.enter_context(closing(log.transactions("joiner-0")))
        joiner = stack.enter_context(
            closing(
                Joiner(
                    settings,
                    FeatureEncoder(settings),
                    log,
                    partition=0,
                    database=Path(folder) / "cache.sqlite",
                    clock=ManualClock(now_ms=now_ms),
                    state=LocalFeatureState(settings),
                    progress=Progress(),
                    transactions=transactions,
                )
            )
        )
        spare_program()  # as `freshrank join` does
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        joiner.drain()
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        totals = joiner.accounting()
    if totals["click.pending"] or totals["impression_items"] != N_REQUESTS * N_ITEMS_SHOWN:
        raise SystemExit(f"not everything was joined: {totals}")
    n_records = totals["accepted_impressions"] + totals["accepted_actions"]
    return n_records / wall_s, n_records / cpu_s


def _join_with_quix(cluster: Cluster, n_records: int) -> float | None:
    """Records a second; None, and why on standard error, where it cannot be had."""
    topics = [cluster.name(topic) for topic in (IMPRESSIONS, ACTIONS)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = environment("quix", QUIX)
            ended = subprocess.run(
                [str(python), str(QUIX_PEER), *cluster.brokers, *topics, str(n_records), folder],
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            if ended.returncode != 0:
                raise PeerMissingError(ended.stderr[-2_000:])
        except PeerMissingError as error:
            print(f"Quix Streams is left out: {error}", file=sys.stderr)
            return None
    return n_records / float(ended.stdout.split()[-1])
