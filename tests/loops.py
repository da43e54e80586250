"""A trainer and a replica of it, stepped by hand, through the channel that a test opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from freshrank.metrics import Metrics
from freshrank.transport.base import ParameterChannel
from freshrank.transport.directory import DirectoryChannel
from service.replica import Replica
from service.signal import Signal
from tests.unit.trainer.example_records import FEATURES, Bench, make_settings, random_batch
from trainer.loop import Trainer

OpenChannel = Callable[[], ParameterChannel]
EXPIRING: Final = [
    {**feature, "expire": "3s"} if feature["name"] == "item_id" else feature for feature in FEATURES
]


class Loop:
    """A trainer and a replica, each with a channel of its own, as in two processes."""

    def __init__(
        self, directory: Path, open_channel: OpenChannel | None = None, /, **sync: str
    ) -> None:
        parts: dict[str, Any] = {"trainer": {"batching": "adaptive"}, "sync": sync}
        settings = make_settings(features=EXPIRING, **parts)
        self.bench = Bench(directory, settings, channel=open_channel and open_channel())
        clock = self.bench.clock
        self.channel = (
            open_channel()
            if open_channel
            else DirectoryChannel(directory / "parameters", clock=clock)
        )
        self.rng = np.random.default_rng(0)
        self.trainer = self.bench.trainer()
        self.replica = self.new_replica()

    def start(self) -> None:
        """The first base reaches the replica."""
        self.trainer.start()
        self.follow()

    def new_replica(self) -> Replica:
        """One that holds nothing yet."""
        bench, metrics = self.bench, Metrics(CollectorRegistry())
        return Replica(bench.settings, bench.encoder, self.channel, bench.clock, metrics, Signal())

    @property
    def seq(self) -> int:
        """What the replica serves."""
        assert self.replica.model is not None
        return self.replica.model.current.info.seq

    def tick(self, *, n_rows: int = 20) -> None:
        """A second later: learn a record of `n_rows`, or nothing; publish what is due."""
        self.bench.manual.advance(ms=1_000)
        if n_rows:
            now_ms = self.bench.manual.now_ms()
            batch = random_batch(self.bench.encoder, self.rng, n_rows, ts_ms=now_ms)
            self.bench.append(batch)
        self.trainer.step(0.0)

    def follow(self) -> None:
        """The replica takes all that it can."""
        while self.replica.step(0.0):
            pass

    def assert_caught_up(self) -> None:
        """The replica serves what the trainer holds."""
        head = self.bench.channel.head()
        model = self.replica.model
        assert head is not None
        assert model is not None
        assert (model.current.info.epoch, model.current.info.seq) == (head.epoch, head.seq)
        assert not self.replica.is_behind
        for name, table in self.trainer.learner.sparse.tables.items():
            keys = table.keys()
            assert model.tables[name].keys().tolist() == keys.tolist()
            np.testing.assert_array_equal(model.tables[name].lookup(keys)[0], table.lookup(keys))

    def restart(self) -> Trainer:
        """The trainer stops in order and another one begins."""
        self.trainer.close()
        self.trainer = self.bench.trainer()
        return self.trainer

    def close(self) -> None:
        self.channel.close()
        self.bench.close()
