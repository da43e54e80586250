"""Builds example records and trainers for tests; answers are known by construction."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from freshrank import examples, frames
from freshrank.clock import Clock, ManualClock
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, FeatureEncoder, SlotIds
from freshrank.frames import Frame
from freshrank.messages import Control, DeadLetter, encode
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import CONTROL, EXAMPLES, EventLog, NewRecord, ParameterChannel
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.local import LocalLog
from trainer.archive_reader import Archive
from trainer.loop import Trainer

NOW_MS = 1_700_000_000_000
FEATURES: list[dict[str, Any]] = [
    {"name": "user_id", "type": "id", "scope": "user", "dim": 4},
    {"name": "item_id", "type": "id", "scope": "item", "key": "uint64", "dim": 4},
    {"name": "tags", "type": "id_list", "scope": "item", "dim": 4},
    {"name": "price", "type": "dense", "scope": "candidate"},
]
CLICK: dict[str, Any] = {"name": "click", "event": "click"}


def make_settings(**parts: Any) -> Settings:
    """What `make_document` says, as settings."""
    return Settings.model_validate(make_document(**parts))


def make_document(
    *,
    features: Sequence[Mapping[str, Any]] = FEATURES,
    tasks: Sequence[Mapping[str, Any]] = (CLICK,),
    **parts: Mapping[str, Any],
) -> dict[str, Any]:
    """A small configuration: fixed batches of 32, everything published and saved by hand."""
    document: dict[str, Any] = {
        "features": [dict(feature) for feature in features],
        "tasks": [dict(task) for task in tasks],
        "trainer": {"batching": "fixed", "batch_max": 32},
        "store": {"initial_rows": 64},
        "model": {"hidden": [8]},
        "log": {"fsync": "never"},
    }
    for name, part in parts.items():
        document[name] = {**document.get(name, {}), **part}
    return document


def bags(values: Sequence[Sequence[int]]) -> SlotIds:
    """Ids of a slot from one list per row."""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int64)
    return SlotIds(np.array([i for bag in values for i in bag], np.uint64), offsets)


def make_batch(
    encoder: FeatureEncoder,
    slots: Mapping[str, Sequence[Sequence[int]]],
    labels: npt.ArrayLike,
    **columns: Any,
) -> ExampleBatch:
    """A batch of n rows; slots not given are empty, and every other column has a plain default.

    Args:
        encoder: Names slots, dense values and the schema.
        slots: Per slot, ids of each row.
        labels: `[n]` or `[n, T]`.
        columns: Fields of `ExampleBatch`, `dense`, `offsets` and `outcomes`.
    """
    matrix = np.array(labels, np.float32)
    matrix = matrix if matrix.ndim == 2 else matrix[:, None]
    n, shape = len(matrix), matrix.shape
    dense = np.array(columns.pop("dense", np.zeros((n, len(encoder.dense_names)))), np.float32)
    info = BatchInfo(
        encoder.schema_hash, columns.pop("offsets", {}), list(columns.pop("outcomes", []))
    )
    empty: list[list[int]] = [[] for _ in range(n)]
    values = Encoded(n, {s.name: bags(slots.get(s.name, empty)) for s in encoder.slots}, dense)
    batch = ExampleBatch(
        info=info,
        request_ids=[f"r{i}" for i in range(n)],
        items=[f"i{i}" for i in range(n)],
        ts_ms=np.full(n, NOW_MS, np.int64),
        appended_at_ms=np.full(n, NOW_MS, np.int64),
        is_action=matrix[:, 0] > 0,
        is_first=np.ones(n, np.bool_),
        is_reversal=np.zeros(n, np.bool_),
        labels=matrix,
        weights=np.ones(shape, np.float32),
        keep_rates=np.ones(shape, np.float32),
        served=np.full(shape, np.nan, np.float32),
        values=values,
    )
    return replace(batch, **{name: _column(name, value, shape) for name, value in columns.items()})


def _column(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    if name in ("request_ids", "items"):
        return list(value)
    kinds: dict[str, Any] = {"ts_ms": np.int64, "appended_at_ms": np.int64}
    if name in ("weights", "keep_rates", "served"):
        return np.array(np.broadcast_to(np.array(value, np.float32), shape))
    return np.array(np.broadcast_to(np.array(value, kinds.get(name, np.bool_)), shape[:1]))


def random_batch(
    encoder: FeatureEncoder, rng: np.random.Generator, n: int, **columns: Any
) -> ExampleBatch:
    """Rows of 20 users, 30 items and 0 to 3 of 10 tags; clicks depend on user and item."""
    users, items = rng.integers(1, 21, n), rng.integers(1, 31, n)
    tags = [rng.integers(1, 11, rng.integers(0, 4)).tolist() for _ in range(n)]
    labels = (rng.random(n) < 0.2 + 0.6 * ((users + items) % 3 == 0)).astype(np.float32)
    requests = np.arange(n) // 3
    defaults: dict[str, Any] = {
        "dense": rng.normal(0, 1, (n, len(encoder.dense_names))),
        "request_ids": [f"{rng.integers(1 << 40)}-{r}" for r in requests],
        "is_first": np.diff(requests, prepend=-1) > 0,
    }
    slots = {"user_id": users[:, None].tolist(), "item_id": items[:, None].tolist(), "tags": tags}
    return make_batch(encoder, slots, labels, **{**defaults, **columns})


class Bench:
    """A trainer with its surroundings on disk, and the means to look at what it published."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        *,
        clock: Clock | None = None,
        log: EventLog | None = None,
        channel: ParameterChannel | None = None,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.encoder = FeatureEncoder(settings)
        self.manual = ManualClock(now_ms=NOW_MS)
        self.clock: Clock = clock or self.manual
        self.log: EventLog = log or LocalLog(
            directory / "log",
            clock=self.clock,
            n_partitions=settings.log.partitions,
            fsync=settings.log.fsync,
        )
        self.channel: ParameterChannel = channel or DirectoryChannel(
            directory / "parameters", clock=self.clock
        )
        self.progress = Progress()
        self.tasks = [task.name for task in settings.tasks]

    def trainer(self, history: Archive | None = None, **options: Any) -> Trainer:
        """A trainer that starts from what is on disk, and learns the history first."""
        options.setdefault("allow_gaps", history is not None and history.allow_gaps)
        return Trainer(
            self.settings,
            self.encoder,
            self.log,
            self.channel,
            directory=self.directory / "trainer",
            clock=self.clock,
            progress=self.progress,
            history=history,
            **options,
        )

    def append(self, *batches: ExampleBatch, partition: int = 0) -> None:
        """Each batch as a record of the examples topic."""
        for batch in batches:
            record = NewRecord(b"key", examples.encode(batch, self.tasks))
            self.log.append(EXAMPLES, [record], partition=partition)

    def command(self, command: str, **fields: Any) -> None:
        """What an operator tells the trainer, as a record of the control topic."""
        told = Control(
            event_id="c",
            ts_ms=NOW_MS,
            received_at_ms=NOW_MS,
            command=command,  # type: ignore[arg-type]
            **fields,
        )
        self.log.append(CONTROL, [NewRecord(b"", encode(told))])

    def letters(self, topic: str = EXAMPLES) -> list[DeadLetter]:
        """What was refused of a topic."""
        records = self.log.read(f"{topic}.dlq", 0, 0)
        return [msgspec.msgpack.decode(record.value, type=DeadLetter) for record in records]

    def frames(self) -> list[Frame]:
        """The base and the deltas that follow it, of the newest epoch."""
        base = self.channel.base()
        head = self.channel.head()
        assert base is not None
        assert head is not None
        found = [frames.decode(base[2])]
        for seq in range(base[1] + 1, head.seq + 1):
            data = self.channel.delta(head.epoch, seq)
            assert data is not None
            found.append(frames.decode(data))
        return found

    def close(self) -> None:
        """Release the files."""
        self.channel.close()
        self.log.close()
