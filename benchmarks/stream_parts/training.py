"""Examples learned from Kafka: by the trainer, by its dense net alone, by a plain torch loop."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from benchmarks.learner import BATCH, I64, PlainTorch, batch_of, row_numbers
from benchmarks.report import Row, row
from benchmarks.stream_parts.broker import broker, fill, new_cluster
from freshrank import examples
from freshrank.clock import SystemClock
from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, NewRecord
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.kafka import KafkaLog
from trainer.loop import Trainer
from trainer.models import build_net

# As a click log of Criteo: 26 ids, 13 numbers.
N_IDS, N_DENSE, DIM, N_VALUES = 26, 13, 16, 200_000
N_WARM, N_BATCHES, N_ROUNDS = 60, 60, 5
N_RECORDS: Final = N_WARM + N_BATCHES * N_ROUNDS
CONFIG: Final[dict[str, Any]] = {
    "features": [
        *({"name": f"id{i}", "type": "id", "scope": "context", "dim": DIM} for i in range(N_IDS)),
        *({"name": f"dense{i}", "type": "dense", "scope": "context"} for i in range(N_DENSE)),
    ],
    "tasks": [{"name": "click", "event": "click"}],
    "trainer": {"batch_max": BATCH},
}

Learn = Callable[[], object]  # one batch


def training() -> list[Row]:
    """Examples a CPU second, one thread, in turns; each learner reads its own way from Kafka.

    The trainer does what it does in service: counts and admits ids, publishes once a second of its
    own turns, saves checkpoints. The dense net gets random rows, and gives them a gradient, but has
    no table. The plain loop has row numbers ready where the trainer has 64-bit ids.
    """
    torch.set_num_threads(1)
    settings = Settings.model_validate(CONFIG)
    encoder = FeatureEncoder(settings)
    stream = _stream()
    with ExitStack() as stack:
        address = stack.enter_context(broker())
        cluster = new_cluster(address)
        with closing(KafkaLog(cluster)) as log:
            fill(log, EXAMPLES, _records(encoder, stream))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs = [stack.enter_context(closing(KafkaLog(cluster))) for _ in range(3)]
        ways = {
            "trainer": stack.enter_context(closing(_Ours(settings, encoder, logs[0], folder))).step,
            "dense_only": _dense_only(settings, encoder, logs[1]),
            "torch_sparse": _torch_sparse(settings, encoder, logs[2], stream),
        }
        rates = _in_turns(ways)
    return [
        *(row(f"{name}_examples_per_second", rate, "/CPU s") for name, rate in rates.items()),
        row("trainer_vs_dense_only", rates["trainer"] / rates["dense_only"], "times", goal=0.75),
        row("trainer_vs_torch_sparse", rates["trainer"] / rates["torch_sparse"], "times", goal=1.3),
    ]


def _in_turns(ways: dict[str, Learn]) -> dict[str, float]:
    """Medians of the rounds after a warm-up in which most ids are met first."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for n_batches in (N_WARM, *[N_BATCHES] * N_ROUNDS):
        for name, learn in ways.items():
            began_s = time.process_time()
            for _ in range(n_batches):
                learn()
            rates[name].append(n_batches * BATCH / (time.process_time() - began_s))
    return {name: statistics.median(some[1:]) for name, some in rates.items()}


class _OwnTime(SystemClock):
    """Seconds pass in turns alone; else as many publications would fall into less of the work."""

    def __init__(self) -> None:
        self._left_s = time.monotonic()
        self._elsewhere_s = 0.0

    def monotonic_s(self) -> float:
        """Seconds of all turns."""
        return time.monotonic() - self._elsewhere_s

    def enter(self) -> None:
        """A turn begins."""
        self._elsewhere_s += time.monotonic() - self._left_s

    def leave(self) -> None:
        """It is over."""
        self._left_s = time.monotonic()


class _Ours:
    def __init__(
        self, settings: Settings, encoder: FeatureEncoder, log: KafkaLog, folder: Path
    ) -> None:
        clock = self._clock = _OwnTime()
        self._channel = DirectoryChannel(folder / "parameters", clock=clock)
        self._trainer = Trainer(
            settings,
            encoder,
            log,
            self._channel,
            directory=folder / "trainer",
            clock=clock,
            progress=Progress(),
        )

    def step(self) -> None:
        """One batch."""
        self._clock.enter()
        while (n_rows := self._trainer.step(1.0)) == 0:
            pass
        self._clock.leave()
        assert n_rows == BATCH

    def close(self) -> None:
        """Save and release."""
        self._trainer.close()
        self._channel.close()


def _dense_only(settings: Settings, encoder: FeatureEncoder, log: KafkaLog) -> Learn:
    net = build_net(
        settings.model.kind,
        n_slots=N_IDS,
        width=DIM + 1,
        n_dense=N_DENSE,
        n_tasks=1,
        hidden=settings.model.hidden,
        seed=settings.trainer.seed,
    )
    adam = torch.optim.Adam(net.parameters(), lr=settings.optimizer.dense.lr)
    rows = torch.rand(BATCH, N_IDS, DIM + 1)
    batches = _batches(encoder, log)

    def learn() -> None:
        batch = next(batches)
        z = net(rows.requires_grad_(), torch.from_numpy(batch.values.dense))
        labels = torch.from_numpy(batch.labels)
        loss = functional.binary_cross_entropy_with_logits(z, labels, reduction="sum")
        adam.zero_grad()
        rows.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()

    return learn


def _torch_sparse(
    settings: Settings, encoder: FeatureEncoder, log: KafkaLog, stream: dict[str, tuple[I64, I64]]
) -> Learn:
    numbered, n_rows = row_numbers(encoder, stream)
    plain = PlainTorch(settings, encoder, n_rows)
    batches = enumerate(_batches(encoder, log))

    def learn() -> None:
        n, batch = next(batches)
        own = slice(n * BATCH, (n + 1) * BATCH)
        indices = {name: (torch.from_numpy(of[own]), None) for name, (of, _) in numbered.items()}
        plain.learn(indices, torch.from_numpy(batch.values.dense), torch.from_numpy(batch.labels))

    return learn


def _batches(encoder: FeatureEncoder, log: KafkaLog) -> Iterator[ExampleBatch]:
    """The records, decoded, from the first on."""
    slots = [slot.name for slot in encoder.slots]
    offset = 0
    while True:
        for record in log.read(EXAMPLES, 0, offset, n_max=16):
            yield examples.decode(record.value, ["click"], slots)
            offset = record.offset + 1


def _stream() -> dict[str, tuple[I64, I64]]:
    """Slot -> (values, offsets) of all rows; popular values are frequent, as 1 / rank."""
    rng = np.random.default_rng(11)
    n_rows = N_RECORDS * BATCH
    singles = np.arange(n_rows + 1)
    return {
        f"id{i}": ((N_VALUES ** rng.random(n_rows)).astype(np.int64) - 1, singles)
        for i in range(N_IDS)
    }


def _records(encoder: FeatureEncoder, stream: dict[str, tuple[I64, I64]]) -> list[NewRecord]:
    """The stream as the joiner writes it of a backlog: a batch a record, a request a row."""
    starts = range(0, N_RECORDS * BATCH, BATCH)
    batches = (batch_of(encoder, stream, start, n_shown=1) for start in starts)
    return [NewRecord(b"", examples.encode(batch, ["click"])) for batch in batches]
