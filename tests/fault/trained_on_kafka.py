"""Example records on Kafka, trainers of them as processes, and what they made of them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from freshrank import examples, frames
from freshrank.channels import open_channel
from freshrank.clock import SystemClock
from freshrank.dev.servers import stop
from freshrank.errors import SyncError
from freshrank.features import FeatureEncoder
from freshrank.frames import FrameInfo
from freshrank.metrics import Metrics
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, NewRecord, ParameterChannel, TopicPartition
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_transactions import Transactions
from service.replica import Replica
from service.signal import Signal
from tests.unit.trainer.example_records import (
    FEATURES,
    Bench,
    make_document,
    make_settings,
    random_batch,
)
from trainer.checkpoint_parts import restore
from trainer.checkpoint_store import CheckpointStore
from trainer.evaluation import Evaluation
from trainer.fingerprint import fingerprint
from trainer.learner import Learner
from trainer.state import TrainerState

FRESHRANK = str(Path(sys.executable).with_name("freshrank"))
PLACE = TopicPartition(EXAMPLES, 0)
_pause = threading.Event()
N_ROWS = 40  # of a record: batches of 32 end within records
PARTS: dict[str, Any] = {
    "features": [
        {**FEATURES[0], "admission": {"min_count": 4}},
        FEATURES[1],
        {**FEATURES[2], "expire": "5s"},
        FEATURES[3],
    ],
    "sync": {"sparse_every": "20ms", "dense_every": "60ms", "full_every": "100ms"},
    "checkpoint": {"every": "20ms", "keep": 2},
}


def recorded(n_records: int, seed: int = 8) -> list[NewRecord]:
    """Records of `N_ROWS` examples each."""
    encoder = FeatureEncoder(make_settings(**PARTS))
    rng = np.random.default_rng(seed)
    records = []
    for n in range(n_records):
        batch = random_batch(encoder, rng, N_ROWS, offsets={"freshrank.actions:0": n + 1})
        batch.ts_ms[:] += 100 * n
        records.append(NewRecord(b"key", examples.encode(batch, ["click"])))
    return records


def append(
    cluster: Cluster, records: list[NewRecord], place: TopicPartition = PLACE, n_each: int = 7
) -> None:
    """As a joiner does: some records in a transaction, whose mark takes an offset as well."""
    with closing(Transactions(cluster, f"joiner-{place.partition}")) as transactions:
        for begin in range(0, len(records), n_each):
            some = records[begin : begin + n_each]
            transactions.commit({place: some}, group="joiner", offsets={})


def undisturbed(directory: Path, records: list[NewRecord]) -> str:
    """The fingerprint of a trainer on a local log with these records that nothing disturbs."""
    bench = Bench(directory, make_settings(**PARTS), clock=SystemClock())
    bench.log.append(EXAMPLES, records, partition=0)
    trainer = bench.trainer()
    trainer.drain()
    trainer.close()
    bench.close()
    return fingerprint(trainer.learner)


def saved(directory: Path) -> tuple[str, int]:
    """Fingerprint and rows learned of the newest checkpoint below a data directory."""
    learner, state = restored(directory, make_settings(**PARTS))
    return fingerprint(learner), state.counts["rows_learned"]


def restored(directory: Path, settings: Settings) -> tuple[Learner, TrainerState]:
    """What the newest checkpoint below a data directory holds."""
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    checkpoint = CheckpointStore(directory / "trainer", keep=2).load(learner.sparse.vacate())
    assert checkpoint is not None
    evaluation = Evaluation(["click"], learner.losses)
    state = restore(checkpoint, settings, encoder, learner, evaluation)
    return learner, state


def published(directory: Path) -> FrameInfo | None:
    """What the newest base in a directory says of itself."""
    with closing(DirectoryChannel(directory / "parameters", clock=SystemClock())) as channel:
        return _newest(channel)


def _newest(channel: ParameterChannel) -> FrameInfo | None:
    base = channel.base()
    return None if base is None else frames.decode_info(base[2])


def followed(replica: Replica) -> tuple[int, int]:
    """Epoch and examples of what it serves once it has taken all that there is."""
    while replica.step(0.0):
        pass
    if replica.model is None:
        return 0, 0
    info = replica.model.current.info
    return info.epoch, info.examples


def assert_refused(trained: "OnKafka", epoch: int) -> None:
    """What a trainer of this epoch had on its way is refused where it arrives."""
    with closing(trained.channel()) as channel:
        head = channel.head()
        assert head is not None
        for publish in (channel.publish_delta, channel.publish_base):
            with pytest.raises(SyncError) as late:
                publish(epoch, head.seq + 1, b"of the one that was frozen")
            assert late.value.code == "fenced"
        with pytest.raises(SyncError):
            channel.beat(epoch)


class OnKafka:
    """Trainers that share a cluster and a data directory.

    Args:
        cluster: Where the examples are.
        directory: Holds configuration, data and what the processes print.
        parts: Of the configuration.
    """

    def __init__(self, cluster: Cluster, directory: Path, parts: Mapping[str, Any] = PARTS) -> None:
        self.cluster = cluster
        self.directory = directory
        self.data_dir = directory / "data"
        log = {"kind": "kafka", "brokers": list(cluster.brokers), "prefix": cluster.prefix}
        document = make_document(**parts) | {"service": {"data_dir": str(self.data_dir)}}
        document["log"] = log | {"replication": 1}
        (directory / "freshrank.yaml").write_text(json.dumps(document))  # which is YAML as well
        self.settings = Settings.model_validate(document)

    @contextmanager
    def trainer(
        self, name: str, *options: str, program: Sequence[str] = (FRESHRANK,), **environment: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`freshrank train`, or a program that is it, until the context ends; see `told`."""
        with (self.directory / f"{name}.out").open("w") as output:
            process = subprocess.Popen(
                [*program, "train", *options],
                cwd=self.directory,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            stop(process)

    def supervised(self) -> "Supervised":
        """A trainer that is started again as often as it ends for want of a broker or the lease."""
        return Supervised(self)

    def told(self, name: str) -> str:
        """What a trainer has printed."""
        return (self.directory / f"{name}.out").read_text()

    def until(self, is_so: Callable[[], bool], within_s: float = 60.0) -> float:
        """Wait for what processes do; returns the seconds that it took."""
        began_s = time.monotonic()
        while not is_so():
            took_s = time.monotonic() - began_s
            prints = {path.name: path.read_text()[-2_000:] for path in self.directory.glob("*.out")}
            assert took_s < within_s, prints
            _pause.wait(0.02)
        return time.monotonic() - began_s

    def is_waiting(self, name: str) -> bool:
        """Whether a trainer is ready to take over."""
        return "trainer=standby" in self.told(name)

    def epoch(self) -> int:
        """Of what is published; 0 for nothing."""
        info = self._published()
        return 0 if info is None else info.epoch

    def n_examples(self) -> int:
        """Examples in what is published."""
        info = self._published()
        return 0 if info is None else info.examples

    def _published(self) -> FrameInfo | None:
        with closing(self.channel()) as channel:
            return _newest(channel)

    def channel(self) -> ParameterChannel:
        """Through which parameters go; to be closed."""
        return open_channel(self.settings, SystemClock())

    @contextmanager
    def replica(self) -> Iterator[Replica]:
        """A service's copy of the parameters, for the test to step."""
        with closing(self.channel()) as channel:
            encoder, metrics = FeatureEncoder(self.settings), Metrics(CollectorRegistry())
            yield Replica(self.settings, encoder, channel, SystemClock(), metrics, Signal())

    def is_saved(self, replica: Replica) -> bool:
        """Whether it serves the rows of the newest checkpoint, and no others."""
        learner, _ = restored(self.data_dir, self.settings)
        assert replica.model is not None
        served = replica.model.tables
        return all(
            served[name].keys().tolist() == (keys := table.keys()).tolist()
            and np.array_equal(served[name].lookup(keys)[0], table.lookup(keys))
            for name, table in learner.sparse.tables.items()
        )

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        return [path.name for path in CheckpointStore(self.data_dir / "trainer", keep=2).paths()]

    def log(self) -> KafkaLog:
        """To be closed."""
        return KafkaLog(self.cluster)


class Supervised(ExitStack):
    """Starts a trainer again where it ends with exit code 3, as the deployments of `deploy/` do.

    Args:
        trained: Whose trainers.
    """

    def __init__(self, trained: OnKafka) -> None:
        super().__init__()
        self._trained = trained
        self.names: list[str] = []
        self._start()

    def _start(self) -> None:
        self.names.append(f"trainer-{len(self.names)}")
        self.process = self.enter_context(self._trained.trainer(self.names[-1]))

    def goes_on(self) -> bool:
        """True; any other end of the trainer fails the test."""
        code = self.process.poll()
        if code is not None:
            assert code == 3, self._trained.told(self.names[-1])
            self._start()
        return True
