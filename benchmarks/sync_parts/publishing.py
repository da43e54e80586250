"""Versions of a million rows: published, and gone back to."""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks.report import Row, row
from benchmarks.stream_parts.broker import fill, new_cluster
from benchmarks.sync_parts.follower import DEADLINE_S, FollowerProcess
from benchmarks.sync_parts.model import CONFIG, ids, lessons, new_channel, redis_url
from benchmarks.sync_parts.sizes import Sizes
from freshrank import messages
from freshrank.clock import SystemClock
from freshrank.dev.kafka import kafka
from freshrank.features import FeatureEncoder
from freshrank.messages import Control
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import CONTROL, EXAMPLES, EventLog, NewRecord, ParameterChannel
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.local import LocalLog
from trainer.checkpoint_store import CheckpointStore
from trainer.loop import Trainer

N_SINCE: Final = 10_000  # ids that are learned since the checkpoint, and taken back
COUNTS: Final = ("rows_learned", "frames_published")


def publishing(sizes: Sizes) -> list[Row]:
    """Seconds in which all rows, changed since the last version, are a frame in the channel.

    The trainer collects, judges and encodes them and writes the chunks. The median of some rounds,
    each of which learns all rows again.
    """
    settings = Settings.model_validate(CONFIG)
    wall, cpu = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(redis_url())
        channel = stack.enter_context(closing(new_channel(url)))
        log = stack.enter_context(closing(LocalLog(folder / "log", clock=SystemClock())))
        trainer = _new_trainer(settings, log, channel, folder)
        for _ in range(1 + sizes.rounds):
            log.append(EXAMPLES, lessons(settings, ids(sizes.rows)), partition=0)
            trainer.catch_up()
            head = channel.head()
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            trainer.drain()
            wall.append(time.perf_counter() - began_s)
            cpu.append(time.process_time() - began_cpu_s)
            after = channel.head()
            if after is None or head is None or after.seq != head.seq + 1:
                raise SystemExit(f"not one version more: {head}, {after}, {trainer.accounting()}")
    return [  # the first version brings the rows into the table
        row("publish_1m_rows_seconds", statistics.median(wall[1:]), "s", goal=3, is_maximum=True),
        row("publish_1m_rows_cpu_seconds", statistics.median(cpu[1:]), "CPU s"),
    ]


def _new_trainer(
    settings: Settings, log: EventLog, channel: ParameterChannel, folder: Path
) -> Trainer:
    """A trainer in this process, its checkpoints below `folder / "trainer"`."""
    return Trainer(
        settings,
        FeatureEncoder(settings),
        log,
        channel,
        directory=folder / "trainer",
        clock=SystemClock(),
        progress=Progress(),
    )


def learned(
    settings: Settings, log: KafkaLog, channel: ParameterChannel, folder: Path, n_rows: int
) -> Trainer:
    """A new trainer that has learned so many rows, published and saved them."""
    for record in lessons(settings, ids(n_rows)):  # each of them fills an append
        fill(log, EXAMPLES, [record])
    trainer = _new_trainer(settings, log, channel, folder)
    trainer.drain()
    trainer.close()
    return trainer


def rolling_back(sizes: Sizes) -> list[Row]:
    """Seconds from the command in the control topic until a replica serves the checkpoint's base.

    What `freshrank rollback` does, less the way of its command over HTTP. The trainer is in this
    process, the replica in one of its own.
    """
    settings, seconds = Settings.model_validate(CONFIG), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, url = stack.enter_context(kafka(folder / "kafka")), stack.enter_context(redis_url())
        log = stack.enter_context(closing(KafkaLog(new_cluster(server.address))))
        channel = stack.enter_context(closing(new_channel(url)))
        trainer = learned(settings, log, channel, folder, sizes.rows)
        store = CheckpointStore(folder / "trainer", keep=settings.checkpoint.keep)
        kept = store.keep("good").name
        replica = stack.enter_context(FollowerProcess(url, settings))
        since = lessons(settings, ids(N_SINCE))
        for _ in range(sizes.rounds):
            fill(log, EXAMPLES, since)
            _learn(trainer, channel, replica)
            seconds.append(_roll_back(trainer, store, log, replica, kept))
    median = statistics.median(seconds)
    return [row("rollback_1m_rows_seconds", median, "s", goal=1, is_maximum=True)]


def _learn(trainer: Trainer, channel: ParameterChannel, replica: FollowerProcess) -> None:
    """Learn what is there, until the replica serves the version that has it."""
    n_learned, n_published = (trainer.accounting()[name] for name in COUNTS)

    def is_served() -> bool:
        replica.poll(0.0)
        learned, published = (trainer.accounting()[name] for name in COUNTS)
        head, newest = channel.head(), replica.newest
        is_newest = head and newest and (head.epoch, head.seq) == (newest.epoch, newest.seq)
        return learned > n_learned and published > n_published and bool(is_newest)

    _step_until(trainer, is_served)


def _roll_back(
    trainer: Trainer, store: CheckpointStore, log: KafkaLog, replica: FollowerProcess, to: str
) -> float:
    """Seconds from the command until its base is served."""
    assert replica.newest is not None
    newest, epoch, now_ms = store.newest(), replica.newest.epoch, SystemClock().now_ms()
    command = Control(
        event_id="roll-back", ts_ms=now_ms, received_at_ms=now_ms, command="rollback", to=to
    )
    began_s = time.monotonic()
    log.append(CONTROL, [NewRecord(b"", messages.encode(command))])
    _step_until(trainer, lambda: (at := replica.poll(0.0)) is not None and at.epoch > epoch)
    seconds = replica.newest.at_s - began_s
    # The trainer saves what it went back to: the next command need not wait for that.
    _step_until(trainer, lambda: store.newest() != newest)
    return seconds


def _step_until(trainer: Trainer, is_done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_done():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"not done after {DEADLINE_S:.0f} s: {trainer.accounting()}")
        trainer.step(0.01)
