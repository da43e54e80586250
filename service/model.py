"""The parameters that answer: live tables, the dense net, and which version they are.

An answer's rows are never torn, at least as new as the seq it names and at most one frame newer: a
delta enters in chunks under a lock that a request holds for all its lookups together, and the seq
moves after the last chunk.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from embedding_store import ServingTable, StoreError
from freshrank.errors import ConfigError, SyncError
from freshrank.features import FeatureEncoder
from freshrank.frames import Frame, FrameInfo, TableRows
from service.dense import DenseNet

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
# Per slot its table, the ids, `uint64[m]`, the offsets of n rows among them, `int64[n + 1]`, and
# `sum` or `mean`.
Bags = Mapping[str, tuple[str, U64, I64, str]]

# Rows applied per lock: 4,096 rows of 17 floats are copied in about 0.1 ms, the longest that a
# request waits for a delta.
CHUNK_ROWS: Final = 4_096


@dataclass(frozen=True, slots=True)
class Current:
    """What is in force.

    Attributes:
        info: The newest applied frame, its `dense_version` being the one in use here.
        net: The dense net in use.
        dense_published_at_ms: When it was published.
        is_dense_stale: True when the trainer's dense net was refused and an older one is in use.
    """

    info: FrameInfo
    net: DenseNet
    dense_published_at_ms: int
    is_dense_stale: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows of one request, all read at one instant.

    Attributes:
        current: What was in force then.
        rows: Per slot `float32[n, W]`, pooled.
        n_found: Per slot `uint32[n]`: of how many of the row's ids there is a row.
    """

    current: Current
    rows: dict[str, F32]
    n_found: dict[str, U32]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a frame must look like.

    Attributes:
        schema_hash: Of features, tasks and model.
        tables: Table names.
        n_slots: S.
        width: W: floats per row, the first-order weight included.
        n_dense: K.
        n_tasks: T.
        dtype: Of rows as they are served; a frame's are float32.
    """

    schema_hash: str
    tables: tuple[str, ...]
    n_slots: int
    width: int
    n_dense: int
    n_tasks: int
    dtype: str = "float32"

    @classmethod
    def of(cls, encoder: FeatureEncoder, *, n_tasks: int, dtype: str = "float32") -> Self:
        """The shape that a configuration asks for; all its tables are equally wide.

        Raises:
            ConfigError: they are not.
        """
        widths = {table.dim + 1 for table in encoder.tables}
        if len(widths) != 1:
            raise ConfigError(f"one model needs tables of one dim, these have {sorted(widths)}")
        return cls(
            schema_hash=encoder.schema_hash,
            tables=tuple(table.name for table in encoder.tables),
            n_slots=len(encoder.slots),
            width=widths.pop(),
            n_dense=len(encoder.dense_names),
            n_tasks=n_tasks,
            dtype=dtype,
        )

    def open_net(self, onnx: bytes) -> DenseNet:
        """The dense net in `onnx`; SyncError when it does not fit."""
        return DenseNet(onnx, shape=(self.n_slots, self.width, self.n_dense, self.n_tasks))

    def check(self, frame: Frame) -> None:
        """Refuse what would damage the tables.

        Raises:
            SyncError: another schema (code `schema`), or a value that is not finite (`nonfinite`).
        """
        if frame.info.schema_hash != self.schema_hash:
            raise SyncError(
                f"frame {frame.info.version} has schema {frame.info.schema_hash}, this service "
                f"{self.schema_hash}: start both with the same features, tasks and model",
                code="schema",
            )
        for name, changed in frame.tables.items():
            shape = (len(changed.keys), self.width)
            if name not in self.tables or changed.rows.shape != shape:
                raise SyncError(
                    f"frame {frame.info.version} brings rows {changed.rows.shape} for table "
                    f"{name!r}, expected {shape} for one of {self.tables}",
                    code="schema",
                )
            if not np.isfinite(changed.rows).all():
                raise SyncError(
                    f"frame {frame.info.version} has a row in table {name!r} that is not finite",
                    code="nonfinite",
                )


def pooled(tables: Mapping[str, ServingTable], bags: Bags) -> tuple[dict[str, F32], dict[str, U32]]:
    """Rows and how many ids have one, as `Reading` has them."""
    rows: dict[str, F32] = {}
    n_found: dict[str, U32] = {}
    for slot, (name, ids, offsets, pooling) in bags.items():
        rows[slot], n_found[slot] = tables[name].lookup_pooled(ids, offsets, pooling)
    return rows, n_found


# Raises SyncError where a delta must not enter a model.
Verdict = Callable[["Model", Frame, DenseNet], None]


class Model:
    """One lineage of parameters: a base, and the deltas applied to it since.

    Raises:
        SyncError: `frame` is no base of this shape, its dense net cannot be used, or a row has a
            value that the dtype cannot hold (code `overflow`).
    """

    def __init__(self, frame: Frame, shape: ModelShape) -> None:
        if frame.info.kind != "base" or frame.dense is None:
            raise SyncError(f"frame {frame.info.version} is not a base", code="kind")
        shape.check(frame)
        self._shape = shape
        self._lock = threading.Lock()
        self._current = Current(
            info=frame.info,
            net=shape.open_net(frame.dense),
            dense_published_at_ms=frame.info.published_at_ms,
        )
        n_rows = {name: len(rows.keys) for name, rows in frame.tables.items()}
        self.tables = {
            name: ServingTable(
                width=shape.width, initial_rows=n_rows.get(name, 0), dtype=shape.dtype
            )
            for name in shape.tables
        }
        self._check_rows(frame)
        for name, rows in frame.tables.items():
            self.tables[name].upsert(rows.keys, rows.rows)

    @property
    def current(self) -> Current:
        """What is in force now."""
        return self._current

    def read(self, bags: Bags) -> Reading:
        """Pooled rows per slot, all at one instant."""
        with self._lock:
            return Reading(self._current, *pooled(self.tables, bags))

    def apply(self, frame: Frame, judge: Verdict | None = None) -> str | None:
        """Go on by one delta while requests are answered.

        A dense net that cannot be used leaves the old one in force; the rows go on.

        Args:
            frame: The delta.
            judge: Asked with this model, the delta and its net before anything has changed.

        Returns:
            Why the dense net was refused, or None.

        Raises:
            SyncError: not the next frame of this lineage (code `gap`), one that `ModelShape`
                refuses, a value that the dtype cannot hold (`overflow`), or as `judge` says;
                nothing has changed.
        """
        old = self._current
        expected = (old.info.epoch, old.info.seq + 1)
        if frame.info.kind != "delta" or (frame.info.epoch, frame.info.seq) != expected:
            raise SyncError(
                f"{frame.info.kind} of epoch {frame.info.epoch} to seq {frame.info.seq} does not "
                f"follow epoch {old.info.epoch} seq {old.info.seq}",
                code="gap",
            )
        self._shape.check(frame)
        self._check_rows(frame)
        new, refusal = self._advanced(old, frame)
        if judge is not None:
            judge(self, frame, new.net)
        for name, changed in frame.tables.items():
            self._apply_rows(self.tables[name], changed)
        with self._lock:
            self._current = new
        return refusal

    def _check_rows(self, frame: Frame) -> None:
        """All tables before the first row enters: half a frame must never be served."""
        for name, changed in frame.tables.items():
            try:
                self.tables[name].check(changed.keys, changed.rows)
            except StoreError as error:
                raise SyncError(
                    f"frame {frame.info.version}, table {name!r}: {error} (serving.dtype), or "
                    "lower the learning rate",
                    code="overflow",
                ) from error

    def _advanced(self, old: Current, frame: Frame) -> tuple[Current, str | None]:
        kept = replace(frame.info, dense_version=old.info.dense_version)
        is_stale = frame.info.dense_version != old.info.dense_version
        if frame.dense is None:
            return replace(old, info=kept, is_dense_stale=is_stale), None
        try:
            net = self._shape.open_net(frame.dense)
        except SyncError as error:
            return replace(old, info=kept, is_dense_stale=True), str(error)
        return Current(frame.info, net, frame.info.published_at_ms), None

    def _apply_rows(self, table: ServingTable, changed: TableRows) -> None:
        for start in range(0, len(changed.keys), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            with self._lock:
                table.upsert(changed.keys[chunk], changed.rows[chunk])
            time.sleep(0)  # lets a waiting request have the lock
        for start in range(0, len(changed.tombstones), CHUNK_ROWS):
            with self._lock:
                table.remove(changed.tombstones[start : start + CHUNK_ROWS])
            time.sleep(0)
