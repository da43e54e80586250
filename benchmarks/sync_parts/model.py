"""A model of one wide table, and its frames as a trainer would write them."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from redis import Redis

from embedding_store import mix_ids
from freshrank import examples, frames
from freshrank.clock import SystemClock
from freshrank.dev.redis import redis
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, FeatureEncoder, SlotIds
from freshrank.frames import Frame, FrameInfo, TableRows
from freshrank.metrics import Metrics
from freshrank.settings import Settings
from freshrank.transport.base import NewRecord, ParameterChannel
from freshrank.transport.redis_channel import RedisChannel
from service.replica import Replica
from service.signal import Signal
from tests.unit.service.support import linear_net

U64 = npt.NDArray[np.uint64]

DIM: Final = 16
TABLE: Final = "tags"
CONFIG: Final[dict[str, Any]] = {
    "features": [{"name": TABLE, "type": "id_list", "scope": "item", "key": "uint64", "dim": DIM}],
    "tasks": [{"name": "click", "event": "click"}],
}
NO_KEYS: Final = np.empty(0, np.uint64)
# A record of examples: small enough for every log, and no more rows than a batch.
IDS_PER_RECORD, IDS_PER_ROW = 40_000, 400


@contextmanager
def redis_url() -> Iterator[str]:
    """A Redis while the context lasts. It saves nothing to disk, which a channel does not need."""
    with tempfile.TemporaryDirectory() as folder, redis(Path(folder)) as server:
        url = f"redis://{server.address}/0"
        with closing(Redis.from_url(url)) as client:
            client.config_set("save", "")
        yield url


def new_channel(url: str) -> RedisChannel:
    """Its own connections to the one channel of the part; to be closed."""
    return RedisChannel(url, clock=SystemClock())


def new_replica(settings: Settings, channel: ParameterChannel) -> Replica:
    """A replica as a service has it, which nobody steps yet."""
    metrics = Metrics(CollectorRegistry())
    return Replica(settings, FeatureEncoder(settings), channel, SystemClock(), metrics, Signal())


def ids(n: int) -> U64:
    """So many ids, all over the range and ascending: `uint64[n]`."""
    numbers = np.arange(n, dtype=np.uint64)
    return np.sort(mix_ids(numbers, numbers, 1))


def random_rows(keys: U64, seed: int = 0) -> TableRows:
    """New rows for these ids."""
    rows = np.random.default_rng(seed).random((len(keys), DIM + 1), np.float32)
    return TableRows(keys, rows, NO_KEYS)


def lessons(settings: Settings, keys: U64) -> list[NewRecord]:
    """Examples, all positive, from which a trainer learns a row for each of these ids."""
    schema_hash = FeatureEncoder(settings).schema_hash
    return [
        NewRecord(b"", examples.encode(_lesson(schema_hash, own), ["click"]))
        for start in range(0, len(keys), IDS_PER_RECORD)
        for own in [keys[start : start + IDS_PER_RECORD]]
    ]


def _lesson(schema_hash: str, keys: U64) -> ExampleBatch:
    offsets = np.unique(np.append(np.arange(0, len(keys), IDS_PER_ROW), len(keys)))
    n = len(offsets) - 1
    ts_ms = np.full(n, SystemClock().now_ms())
    ones = np.ones((n, 1), np.float32)
    return ExampleBatch(
        info=BatchInfo(schema_hash),
        request_ids=[f"request-{i}" for i in range(n)],
        items=["item"] * n,
        ts_ms=ts_ms,
        appended_at_ms=ts_ms,
        is_action=np.ones(n, np.bool_),
        is_first=np.ones(n, np.bool_),
        is_reversal=np.zeros(n, np.bool_),
        labels=ones,
        weights=ones,
        keep_rates=ones,
        served=np.full((n, 1), np.nan, np.float32),
        values=Encoded(n, {TABLE: SlotIds(keys, offsets)}, np.empty((n, 0), np.float32)),
    )


class Writer:
    """Frames of one lineage.

    Args:
        settings: Of the model; its other tables stay empty.
        epoch: As the channel gave it.
    """

    def __init__(self, settings: Settings, epoch: int) -> None:
        self._schema_hash = FeatureEncoder(settings).schema_hash
        self._net = linear_net(settings)
        self._epoch = epoch

    def base(self, rows: TableRows) -> bytes:
        """Version 0."""
        info = FrameInfo("base", self._epoch, 0, 0, self._schema_hash, SystemClock().now_ms())
        return frames.encode(Frame(info, {TABLE: rows}, self._net))

    def delta(self, seq: int, rows: TableRows) -> bytes:
        """The delta that leads to `seq`."""
        info = FrameInfo("delta", self._epoch, seq, 0, self._schema_hash, SystemClock().now_ms())
        return frames.encode(Frame(info, {TABLE: rows}))
