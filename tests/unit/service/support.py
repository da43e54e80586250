"""A service with everything but a trainer: the tests publish the frames themselves."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from freshrank import frames
from freshrank.clock import ManualClock
from freshrank.errors import TransportError
from freshrank.feature_state import FeatureState, LocalFeatureState
from freshrank.features import FeatureEncoder, RequestValues
from freshrank.frames import Frame, FrameInfo, Outcome, TableRows
from freshrank.messages import Message, decode
from freshrank.metrics import Reading
from freshrank.progress import LoopView, Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, NewRecord, ParameterChannel
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.local import LocalLog
from service.app import Service, ServiceParts

with warnings.catch_warnings():
    # starlette would rather have httpx2; httpx is what our own client library uses.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

__all__ = ["TestClient", "World"]  # the rest is ours; this one is re-exported

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]

NOW_MS = 1_763_708_400_000
DIM = 4

FEATURES: list[dict[str, Any]] = [
    {"name": "user_id", "type": "id", "scope": "user", "dim": DIM},
    {"name": "item_id", "type": "id", "scope": "item", "dim": DIM},
    {"name": "tags", "type": "id_list", "scope": "item", "dim": DIM, "pooling": "mean"},
    {"name": "hour", "type": "bucket", "scope": "context", "boundaries": [6, 12], "dim": DIM},
    {"name": "price", "type": "dense", "scope": "candidate", "transform": "log1p"},
    {"name": "age", "type": "dense", "scope": "user", "default": 30.0},
    {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 3, "pooling": "sum"},
]
TASKS: list[dict[str, Any]] = [
    {"name": "click", "event": "click"},
    {"name": "dwell", "event": "dwell", "loss": "huber"},
]


def make_settings(**changes: Any) -> Settings:
    """Settings of the tests; `item_key` makes item ids uint64."""
    item_key = changes.pop("item_key", "string")
    features = [
        {**feature, "key": item_key} if feature["name"] == "item_id" else feature
        for feature in changes.pop("features", FEATURES)
    ]
    return Settings.model_validate({"features": features, "tasks": TASKS, **changes})


def linear_net(settings: Settings, weights: F32 | None = None, dense: F32 | None = None) -> bytes:
    """An ONNX graph z = flat(rows) @ weights + dense @ dense_weights, so numpy knows the answer."""
    encoder = FeatureEncoder(settings)
    n_slots, n_dense, n_tasks = len(encoder.slots), len(encoder.dense_names), len(settings.tasks)
    width = encoder.tables[0].dim + 1
    if weights is None:
        weights = np.ones((n_slots * width, n_tasks), np.float32)
    if dense is None:
        dense = np.zeros((n_dense, n_tasks), np.float32)
    inputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["B", n_slots, width])]
    nodes = [
        helper.make_node("Flatten", ["rows"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["z" if n_dense == 0 else "sparse_z"]),
    ]
    initializers = [numpy_helper.from_array(weights, "weights")]
    if n_dense:
        inputs.append(helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["B", n_dense]))
        initializers.append(numpy_helper.from_array(dense, "dense_weights"))
        nodes.append(helper.make_node("MatMul", ["dense", "dense_weights"], ["dense_z"]))
        nodes.append(helper.make_node("Add", ["sparse_z", "dense_z"], ["z"]))
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", n_tasks])
    graph = helper.make_graph(nodes, "linear", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def table_rows(rows: Mapping[int, Iterable[float]], *, removed: Iterable[int] = ()) -> TableRows:
    """Rows by id as a frame wants them."""
    keys = np.array(sorted(rows), np.uint64)
    values = [list(rows[int(key)]) for key in keys]
    width = len(values[0]) if values else DIM + 1
    return TableRows(
        keys,
        np.array(values, np.float32).reshape(len(keys), width),
        np.array(sorted(removed), np.uint64),
    )


def until(is_done: Callable[[], bool], *, timeout_s: float = 30.0, every_s: float = 0.002) -> None:
    """Poll until something in another thread or process has happened.

    Args:
        is_done: Whether it has.
        timeout_s: From now on.
        every_s: How long it is not asked: longer where to ask is work for whom one waits for.
    """
    end = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(every_s)


def service_of(client: TestClient) -> Service:
    """The service behind a client."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


def until_warm(service: Service, *, timeout_s: float = 30.0) -> None:
    """A base is loaded, entities are read and logged requests ranked: it would say it is ready."""
    until(
        lambda: (
            service.replica.model is not None
            and service.entities.is_caught_up
            and service.warmup.is_over
        ),
        timeout_s=timeout_s,
    )


class FlakyLog(LocalLog):
    """The real log, whose disk the test can fill."""

    is_full = False

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        partition: int | None = None,
        producer: str | None = None,
        first_sequence: int | None = None,
    ) -> list[tuple[int, int]]:
        if self.is_full:
            raise TransportError("disk full: free some space", code="disk")
        return super().append(
            topic,
            records,
            partition=partition,
            producer=producer,
            first_sequence=first_sequence,
        )


class StubLoop:
    """A loop whose totals the test sets."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.learning = True
        self.found: list[Reading] = []
        self.ids: dict[int, dict[str, Any]] = {}
        self.checkpoints: list[dict[str, Any]] = []

    def is_learning(self) -> bool:
        return self.learning

    def accounting(self) -> dict[str, int]:
        return self.totals

    def statistics(self) -> dict[str, float]:
        return self.gauges

    def readings(self) -> list[Reading]:
        return self.found

    def inspect(self, table: str, id: int) -> dict[str, Any]:
        return self.ids[id]

    def snapshots(self) -> list[dict[str, Any]]:
        return self.checkpoints


@dataclass
class World:
    """Everything around a service."""

    directory: Path
    settings: Settings = field(default_factory=make_settings)
    clock: ManualClock = field(default_factory=lambda: ManualClock(now_ms=NOW_MS))
    loop: LoopView | None = None

    def __post_init__(self) -> None:
        self.encoder = FeatureEncoder(self.settings)
        self.log = FlakyLog(
            self.directory / "log",
            clock=self.clock,
            n_partitions=self.settings.log.partitions,
            fsync="never",
        )
        self.channel: ParameterChannel = DirectoryChannel(
            self.directory / "parameters", clock=self.clock
        )
        self.progress = Progress()
        self.state: FeatureState = LocalFeatureState(self.settings)
        self.registry = CollectorRegistry()
        self.epoch = 0
        self.seq = -1

    @property
    def parts(self) -> ServiceParts:
        return ServiceParts(
            settings=self.settings,
            encoder=self.encoder,
            log=self.log,
            channel=self.channel,
            state=self.state,
            progress=self.progress,
            loop=self.loop,
            clock=self.clock,
            registry=self.registry,
        )

    def info(self, kind: str, seq: int, /, **fields: Any) -> FrameInfo:
        base = FrameInfo(
            kind="base" if kind == "base" else "delta",
            epoch=self.epoch,
            seq=seq,
            dense_version=0,
            schema_hash=self.encoder.schema_hash,
            published_at_ms=self.clock.now_ms(),
        )
        return FrameInfo(**{name: getattr(base, name) for name in base.__slots__} | fields)

    def base(
        self,
        tables: Mapping[str, TableRows] | None = None,
        *,
        dense: bytes | None = None,
        seq: int = 0,
        **fields: Any,
    ) -> None:
        """Open an epoch and publish its base."""
        self.epoch = self.channel.open_epoch()
        self.rebase(tables, dense=dense, seq=seq, **fields)

    def rebase(
        self,
        tables: Mapping[str, TableRows] | None = None,
        *,
        dense: bytes | None = None,
        seq: int,
        **fields: Any,
    ) -> None:
        """Publish a base of the same epoch."""
        frame = Frame(
            self.info("base", seq, **fields),
            dict(tables or {}),
            dense or linear_net(self.settings),
        )
        self.channel.publish_base(self.epoch, seq, frames.encode(frame))
        self.seq = seq

    def delta(
        self,
        tables: Mapping[str, TableRows] | None = None,
        *,
        dense: bytes | None = None,
        damage: bool = False,
        **fields: Any,
    ) -> None:
        """Publish the next delta, with one bit flipped if asked."""
        self.seq += 1
        data = frames.encode(
            Frame(self.info("delta", self.seq, **fields), dict(tables or {}), dense)
        )
        if damage:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.channel.publish_delta(self.epoch, self.seq, data)

    def ids(self, slot: str, values: list[Any]) -> list[int]:
        """64-bit ids of raw values, as the encoder makes them."""
        if slot == "item_id":
            request = RequestValues(items=values)
        elif slot == "user_id":
            return [int(self._encode(RequestValues(["i"], user=v), slot)[0]) for v in values]
        elif slot == "tags":
            request = RequestValues(items=["i"], columns={"tags": [values]})
        else:
            request = RequestValues(items=["i"], shared={slot: values[0]})
        return [int(one) for one in self._encode(request, slot)]

    def _encode(self, request: RequestValues, slot: str) -> U64:
        return self.encoder.encode([request]).slots[slot].ids

    def records(self, topic: str) -> list[Message]:
        """Everything in a topic."""
        return [
            decode(record.value)
            for partition in range(self.log.n_partitions(topic))
            for record in self.log.read(topic, partition, 0)
        ]

    def close(self) -> None:
        self.channel.close()
        self.log.close()


def outcome(offset: int, text: str) -> Outcome:
    """What became of an action in partition 0."""
    return Outcome(ACTIONS, 0, offset, text)
