"""Training examples as the joiner writes and the trainer reads them: Arrow IPC, one batch a record.

Each record of `freshrank.examples` is one IPC stream with exactly one record batch. Columns: the
fields of `ExampleBatch`, `label.<task>`, `weight.<task>`, `keep_rate.<task>`, `served.<task>`,
`slot.<name>` (list<uint64>) and `dense` (fixed-size list<float32>). What concerns the batch as a
whole stands in the schema metadata under `freshrank` as JSON (`BatchInfo`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshrank.errors import DataError
from freshrank.features import Encoded, SlotIds
from freshrank.frames import Outcome

VERSION = 1
_METADATA_KEY = b"freshrank"


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What concerns a batch as a whole.

    Attributes:
        schema_hash: `FeatureEncoder.schema_hash` of the joiner; a trainer with another one stops.
        offsets: `topic:partition` -> next input offset: the joiner has decided every earlier record
            and what followed from it stands in this batch or before.
        outcomes: Decisions in this batch that are not simply `trained`.
        watermark_ms: The joiner's event-time watermark after this batch.
        v: Format version.
    """

    schema_hash: str
    offsets: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    watermark_ms: int = 0
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """n example rows; T tasks in configuration order.

    Attributes:
        info: What concerns the batch as a whole. A batch may have no rows and only bring offsets.
        request_ids: Request of each row.
        items: Item of each row.
        ts_ms: `int64[n]`, event time of the row's impression.
        appended_at_ms: `int64[n]`, when the record that decided the row entered the log.
        is_action: `bool[n]`, an action decided the row (else its window closed).
        is_first: `bool[n]`, first row written of its request: user and context ids count here only.
        is_reversal: `bool[n]`, one of two adjacent rows (label 1 weight +1, label 0 weight -1).
        labels: `float32[n, T]`.
        weights: `float32[n, T]`; 0 where the row says nothing of the task.
        keep_rates: `float32[n, T]`, the negative keep-rate r of the row's stratum.
        served: `float32[n, T]`, the prediction served; NaN where none was.
        values: Ids and dense values.
    """

    info: BatchInfo
    request_ids: list[str]
    items: list[str]
    ts_ms: npt.NDArray[np.int64]
    appended_at_ms: npt.NDArray[np.int64]
    is_action: npt.NDArray[np.bool_]
    is_first: npt.NDArray[np.bool_]
    is_reversal: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    keep_rates: npt.NDArray[np.float32]
    served: npt.NDArray[np.float32]
    values: Encoded

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.items)


_PER_TASK = ("label", "weight", "keep_rate", "served")


def encode(batch: ExampleBatch, tasks: Sequence[str]) -> bytes:
    """The record's bytes."""
    columns: dict[str, pa.Array] = {
        "request_id": pa.array(batch.request_ids, pa.string()),
        "item": pa.array(batch.items, pa.string()),
        "ts": pa.array(batch.ts_ms),
        "appended_at": pa.array(batch.appended_at_ms),
        "is_action": pa.array(batch.is_action),
        "is_first": pa.array(batch.is_first),
        "is_reversal": pa.array(batch.is_reversal),
    }
    per_task = (batch.labels, batch.weights, batch.keep_rates, batch.served)
    for name, matrix in zip(_PER_TASK, per_task, strict=True):
        for t, task in enumerate(tasks):
            columns[f"{name}.{task}"] = pa.array(np.ascontiguousarray(matrix[:, t]))
    for slot, column in batch.values.slots.items():
        columns[f"slot.{slot}"] = pa.LargeListArray.from_arrays(
            pa.array(column.offsets), pa.array(column.ids)
        )
    n_dense = batch.values.dense.shape[1]
    columns["dense"] = (
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(batch.values.dense).reshape(-1)), n_dense
        )
        if n_dense
        else pa.nulls(batch.n_rows)
    )
    metadata = {_METADATA_KEY: json.dumps(asdict(batch.info)).encode()}
    record = pa.RecordBatch.from_pydict(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_batch(record)
    return bytes(sink.getvalue())


def decode(data: bytes, tasks: Sequence[str], slots: Sequence[str]) -> ExampleBatch:
    """Read a record back; numeric columns are views of `data`.

    Raises:
        DataError: not an example batch (code `malformed`), newer than this program (code
            `newer-version`), or without a task or slot that is asked for (code `schema`).
    """
    return from_columns(*unpack(data), tasks, slots)


def unpack(data: bytes) -> tuple[pa.RecordBatch, BatchInfo]:
    """The columns of a record as they are, and what concerns them all.

    Raises:
        DataError: code `malformed` or `newer-version`, as `decode`.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            record = reader.read_next_batch()
            record.validate(full=True)
            return record, _info((reader.schema.metadata or {})[_METADATA_KEY])
    except (pa.ArrowException, StopIteration, KeyError, ValueError, TypeError, OSError) as error:
        raise DataError(f"not an example batch: {error}", code="malformed") from error


def from_columns(
    record: pa.RecordBatch, info: BatchInfo, tasks: Sequence[str], slots: Sequence[str]
) -> ExampleBatch:
    """The batch that these columns hold.

    Raises:
        DataError: code `schema` or `malformed`, as `decode`.
    """
    try:
        return _batch(record, info, tasks, slots)
    except KeyError as error:
        raise DataError(f"example batch lacks the column {error}", code="schema") from error
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"example batch has an unfit column: {error}", code="malformed") from error


def _info(raw: bytes) -> BatchInfo:
    content = json.loads(raw)
    if content["v"] > VERSION:
        raise DataError(
            f"example format {content['v']} is newer than {VERSION}: upgrade the trainer first",
            code="newer-version",
        )
    outcomes = [Outcome(**outcome) for outcome in content["outcomes"]]
    return BatchInfo(
        schema_hash=content["schema_hash"],
        offsets=content["offsets"],
        outcomes=outcomes,
        watermark_ms=content["watermark_ms"],
        v=content["v"],
    )


def _batch(
    record: pa.RecordBatch, info: BatchInfo, tasks: Sequence[str], slots: Sequence[str]
) -> ExampleBatch:
    n = record.num_rows

    def vector(name: str) -> npt.NDArray[np.generic]:
        array: npt.NDArray[np.generic] = record.column(name).to_numpy(zero_copy_only=False)
        return array

    def matrix(name: str) -> npt.NDArray[np.float32]:
        return np.stack([vector(f"{name}.{task}") for task in tasks], axis=1).astype(np.float32)

    columns = {}
    for slot in slots:
        column = record.column(f"slot.{slot}")
        columns[slot] = SlotIds(
            column.values.to_numpy().astype(np.uint64, copy=False),
            column.offsets.to_numpy().astype(np.int64, copy=False),
        )
    dense = record.column("dense")
    n_dense = dense.type.list_size if pa.types.is_fixed_size_list(dense.type) else 0
    flat = dense.flatten().to_numpy() if n_dense else np.empty(0, np.float32)
    return ExampleBatch(
        info=info,
        request_ids=record.column("request_id").to_pylist(),
        items=record.column("item").to_pylist(),
        ts_ms=vector("ts").astype(np.int64, copy=False),
        appended_at_ms=vector("appended_at").astype(np.int64, copy=False),
        is_action=vector("is_action").astype(np.bool_, copy=False),
        is_first=vector("is_first").astype(np.bool_, copy=False),
        is_reversal=vector("is_reversal").astype(np.bool_, copy=False),
        labels=matrix("label"),
        weights=matrix("weight"),
        keep_rates=matrix("keep_rate"),
        served=matrix("served"),
        values=Encoded(n, columns, flat.astype(np.float32, copy=False).reshape(n, n_dense)),
    )
