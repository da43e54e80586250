"""One recorded log joined twice: by joiners on files, the oracle, and by processes on Kafka.

Run as a program, this file is `freshrank join` with rounds so small that kills meet many of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from freshrank import config, examples, messages
from freshrank.cli import main
from freshrank.clock import ManualClock
from freshrank.commands import topics
from freshrank.feature_state import FeatureState, LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.messages import Tick
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import (
    ACTIONS,
    EXAMPLES,
    IMPRESSIONS,
    EventLog,
    NewRecord,
    TopicPartition,
)
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_members import Membership
from freshrank.transport.kafka_transactions import Transactions
from freshrank.transport.local import LocalLog
from tests.fault.story import END_MS, story
from tests.integration.transport.log_checks import DEADLINE_S, read_all
from tests.unit.joiner import world
from tests.unit.joiner.world import BUY, CLICK, Example
from trainer.joiner import Joiner
from trainer.joiner.state import State
from trainer.joiner.transacted import Transacted

_NUMBERS = count()
ROOT = Path(__file__).parents[2]
LETTERS = (f"{IMPRESSIONS}.dlq", f"{ACTIONS}.dlq")
RAW: dict[str, Any] = {
    "features": [one for one in world.FEATURES if one["type"] != "recent"],  # those want a Redis
    "tasks": [{**CLICK, "negative": {"from": "shown", "sample_rate": 0.5}}, BUY],
    "join": {**world.JOIN, "window": "2s", "allowed_lateness": "4s"},
}


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of a log, per partition."""

    rows: list[list[Example]]
    letters: list[list[bytes]]
    totals: Counter[str]

    @property
    def n_rows(self) -> int:
        """Of all partitions."""
        return sum(map(len, self.rows))


def record_log(directory: Path, n_partitions: int, n_requests: int) -> None:
    """A local log of the story, each request in the partition of its key."""
    with closing(local_log(directory, n_partitions)) as log:
        for topic, key, value in story(n_requests):
            log.append(topic, [NewRecord(key.encode(), value)])
        end = messages.encode(Tick(event_id="end", ts_ms=END_MS, received_at_ms=END_MS))
        for place in places(n_partitions, ACTIONS, IMPRESSIONS):
            log.append(place.topic, [NewRecord(b"", end)], partition=place.partition)


def local_log(directory: Path, n_partitions: int) -> LocalLog:
    """The local log there."""
    return LocalLog(
        directory, clock=ManualClock(now_ms=0), n_partitions=n_partitions, fsync="never"
    )


def places(n_partitions: int, *names: str) -> Iterator[TopicPartition]:
    """Every partition of these topics."""
    for topic in names:
        yield from (TopicPartition(topic, p) for p in range(n_partitions))


def oracle(directory: Path, n_partitions: int, **raw: Any) -> Joined:
    """What undisturbed joiners on files make of the local log in this directory."""
    settings = Settings.model_validate(RAW | raw | {"log": {"fsync": "never"}})
    with closing(local_log(directory, n_partitions)) as log:
        totals = joined_here(log, settings, directory, n_partitions)
        return Joined(*outputs(log, settings), totals)


def joined_here(
    log: EventLog, settings: Settings, directory: Path, n_partitions: int
) -> Counter[str]:
    """Join what is in the log, with state in this directory; returns the totals."""
    totals: Counter[str] = Counter()
    for partition in range(n_partitions):
        with ExitStack() as stack:
            transactions = None
            if isinstance(log, KafkaLog):
                transactions = log.transactions(f"joiner-{partition}")
                stack.callback(transactions.close)
            one = joiner_of(settings, log, partition, directory, transactions)
            stack.callback(one.close)
            while one.step(0.0):
                pass
            totals.update(one.accounting())
    return totals


def joiner_of(
    settings: Settings,
    log: EventLog,
    partition: int,
    directory: Path,
    transactions: Transactions | None = None,
    state: FeatureState | None = None,
) -> Joiner:
    """A joiner whose clock stands still at 0."""
    return Joiner(
        settings,
        FeatureEncoder(settings),
        log,
        partition=partition,
        database=directory / f"{partition}.sqlite",
        clock=ManualClock(now_ms=0),
        state=state or LocalFeatureState(settings),
        progress=Progress(),
        transactions=transactions,
    )


def outputs(log: EventLog, settings: Settings) -> tuple[list[list[Example]], list[list[bytes]]]:
    """Rows, but when they entered the log, and dead letters, by partition."""
    n_partitions = log.n_partitions(EXAMPLES)
    for place in places(n_partitions, EXAMPLES, *LETTERS):
        log.end_offset(*place)  # what a log has told the end of, its reads do not miss
    tasks = [task.name for task in settings.tasks]
    slots = [slot.name for slot in FeatureEncoder(settings).slots]
    rows = [
        [
            replace(row, appended_at=0)
            for record in read_all(log, EXAMPLES, partition)
            for row in world.examples_of(examples.decode(record.value, tasks, slots))
        ]
        for partition in range(n_partitions)
    ]
    letters = [
        [record.value for topic in LETTERS for record in read_all(log, topic, partition)]
        for partition in range(n_partitions)
    ]
    return rows, letters


class OnKafka:
    """Topics with a recorded log in them, and processes that join it.

    Args:
        cluster: With topics made for it.
        recorded: Directory of the local log.
        directory: For the configurations, and the data of each process.
        n_partitions: Of the topics.
        raw: Further sections of the configuration.
    """

    def __init__(
        self,
        cluster: Cluster,
        recorded: Path,
        directory: Path,
        n_partitions: int,
        **raw: Any,
    ) -> None:
        self._raw = RAW | raw
        self.cluster = cluster
        self.directory = directory
        self._n_partitions = n_partitions
        self._log = {
            "kind": "kafka",
            "brokers": list(cluster.brokers),
            "prefix": cluster.prefix,
            "partitions": n_partitions,
        }
        topics.replay(
            recorded, self.config("replay"), [IMPRESSIONS, ACTIONS], environ={}, as_json=True
        )
        self.settings = config.load(self.config("a"), environ={})

    def config(self, name: str) -> Path:
        """The configuration of a process with a data directory of its own."""
        path = self.directory / f"{name}.yaml"
        data_dir = self.directory / name
        raw = self._raw | {"log": self._log, "service": {"data_dir": str(data_dir)}}
        path.write_text(json.dumps(raw))
        return path

    def start(
        self, name: str = "a", *options: str, stderr: int | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """A process that joins."""
        return subprocess.Popen(
            [sys.executable, __file__, "join", "-c", str(self.config(name)), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stderr=stderr,
        )

    @contextmanager
    def running(self, *names: str) -> "Iterator[list[subprocess.Popen[bytes]]]":
        """Processes that are told to stop, and do so in order."""
        processes = [self.start(name) for name in names]
        try:
            yield processes
            for process in processes:
                process.terminate()
            assert [process.wait(DEADLINE_S) for process in processes] == [0] * len(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def result(self, log: KafkaLog) -> Joined:
        """What is in the topics, and what joiners count that take over without a cache."""
        fresh = self.directory / f"fresh-{next(_NUMBERS)}"
        totals = joined_here(log, self.settings, fresh, self._n_partitions)
        return Joined(*outputs(log, self.settings), totals)


class Watch:
    """Counts the rows that come out of a log.

    Args:
        log: With examples.
    """

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._positions = dict.fromkeys(places(log.n_partitions(EXAMPLES), EXAMPLES), 0)
        self.n_rows = 0

    def until(self, n_rows: int, within_s: float = DEADLINE_S) -> None:
        """Wait until there are so many."""
        deadline_s = time.monotonic() + within_s
        while self.look(1.0) < n_rows:
            assert time.monotonic() < deadline_s, f"{self.n_rows} of {n_rows} rows"

    def look(self, timeout_s: float) -> int:
        """All rows so far; waits so long for more."""
        self._log.wait(self._positions, timeout_s=timeout_s)
        for place, position in self._positions.items():
            for record in self._log.read(*place, position):
                self.n_rows += examples.unpack(record.value)[0].num_rows
                self._positions[place] = record.offset + 1
        return self.n_rows


def crash_after(n_rounds: int) -> None:
    """Die in so many rounds: the one under way is in the log then, and not in the cache."""
    note, n_left = State.note, count(n_rounds - 1, -1)

    def crashing(self: State, *arguments: Any, **options: Any) -> None:
        if next(n_left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        note(self, *arguments, **options)

    State.note = crashing  # type: ignore[method-assign]


def in_small_rounds(n_read_max: int) -> None:
    """`freshrank`, its joiners in small rounds, its members quickly taken for dead."""
    Joiner.n_read_max = n_read_max
    Transacted.renewal_bytes_min = 20_000
    Membership.session_s = 2.0
    main()


if __name__ == "__main__":
    if "CRASH_AFTER" in os.environ:
        crash_after(int(os.environ["CRASH_AFTER"]))
    in_small_rounds(20)
