"""What the configuration says of a table's columns, applied: typed values, unfit rows rejected."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshrank.clock import Clock
from freshrank.encoding import NUMBER_MAX, shown
from freshrank.errors import DataError
from freshrank.feature_plan import RESERVED
from freshrank.replay import values
from freshrank.replay.rejects import Rejects
from freshrank.replay.sources import TableFile
from freshrank.replay_settings import LABEL
from freshrank.settings import (
    BucketFeature,
    CrossFeature,
    DenseFeature,
    Feature,
    IdListFeature,
    LiveFeature,
    RecentFeature,
    Settings,
    TaskSettings,
)
from trainer.validation import DENSE_MAX, LABEL_MAX

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# As for events: a clock may be wrong by so much, beyond it the time is a mistake.
AHEAD_MS_MAX: Final = 300_000
_OPERATORS: Final = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}


@dataclass(frozen=True, slots=True)
class Field:
    """A column that is read: from where, to where, and what its values must be."""

    target: str
    source: str
    convert: values.Convert
    expected: str
    is_required: bool = False

    @property
    def use(self) -> str:
        """What the column is, in messages."""
        return "time" if self.target == "ts_ms" else self.target.replace(".", " ")

    def read(self, batch: pa.RecordBatch) -> values.Fitted:
        """The column converted, and which rows do not fit.

        Raises:
            DataError: none could, being of this type (code `bad-column`).
        """
        try:
            return self.convert(batch.column(self.source))
        except DataError as error:
            text = f"column {self.source!r} {error}: {self.use} needs {self.expected}"
            raise DataError(text, code="bad-column") from None


class Columns:
    """Turns batches of a file into tables of typed columns.

    A table has `place` (`int64`, of the row in the file), `ts_ms`, `request` (`uint64`),
    `label.<t>` and `weight.<t>` per task (`float32`, t counting from 0), `user` and `item` if the
    configuration has them, and `feature.<name>` per feature that a client sends.

    Args:
        settings: The whole configuration.
        file: Where the columns are.
        rejects: Takes rows that do not fit.
        clock: Says what lies in the future.

    Attributes:
        per_request: Columns that must be the same in all rows of a request.

    Raises:
        DataError: the file lacks a column.
    """

    def __init__(self, settings: Settings, file: TableFile, rejects: Rejects, clock: Clock) -> None:
        self._settings = settings
        self._columns = settings.replay.columns
        self._rejects = rejects
        self._clock = clock
        self._tasks = list(settings.tasks)
        self._features = {feature.name: feature for feature in settings.features}
        self._fields = list(self._plan())
        self._labels = [self._label_of(task) for task in self._tasks]
        for field in self._fields:
            file.require(field.source, f"for {field.use}")
        for task, (source, _, _) in zip(self._tasks, self._labels, strict=True):
            file.require(source, f"for the label of task {task.name}")
        self.names = sorted({f.source for f in self._fields} | {one[0] for one in self._labels})
        self.per_request = [
            field.target
            for field in self._fields
            if field.target == "user" or self._is_shared(field.target)
        ]

    def convert(self, batch: pa.RecordBatch, places: I64) -> pa.Table:
        """The rows of the batch that can be used.

        Raises:
            DataError: a column is of a type that cannot be what it is used for (code `bad-column`).
        """
        good = np.ones(len(places), np.bool_)
        out: dict[str, pa.Array] = {"place": pa.array(places)}
        for field in self._fields:
            out[field.target], unfit = field.read(batch)
            if field.is_required:
                unfit |= out[field.target].is_null().to_numpy(zero_copy_only=False)
            reason = "bad-time" if field.target == "ts_ms" else "bad-value"
            self._reject(reason, batch, places, unfit, good, field.source, field.expected)
        for t in range(len(self._tasks)):
            self._label(t, batch, places, good, out)
        weights = [out[f"weight.{t}"].to_numpy() for t in range(len(self._tasks))]
        no_label = ~np.any(weights, axis=0)
        self._reject("no-label", batch, places, no_label, good, self._labels[0][0], "a label")
        out.setdefault("ts_ms", pa.array(places * 1_000))
        out.setdefault("request", pa.array(places.astype(np.uint64)))
        ahead = out["ts_ms"].to_numpy() > self._clock.now_ms() + AHEAD_MS_MAX
        self._reject(
            "future", batch, places, ahead, good, self._columns.ts or "ts", "a time that has been"
        )
        return pa.table(out).filter(pa.array(good))

    def _reject(
        self,
        reason: str,
        batch: pa.RecordBatch,
        places: I64,
        unfit: Bools,
        good: Bools,
        source: str,
        expected: str,
    ) -> None:
        rows = np.flatnonzero(unfit & good)
        good[rows] = False
        for row in rows.tolist():
            content = {
                name: value.decode(errors="replace") if isinstance(value, bytes) else value
                for name, value in batch[row : row + 1].to_pylist()[0].items()
            }
            detail = f"{source}: expected {expected}, got {shown(content[source])}"
            self._rejects.add(int(places[row]), reason, detail, content)

    def _label(
        self,
        t: int,
        batch: pa.RecordBatch,
        places: I64,
        good: Bools,
        out: dict[str, pa.Array],
    ) -> None:
        source, op, number = self._labels[t]
        use = f"label.{self._tasks[t].name}"
        column, unfit = Field(use, source, values.label, "numbers").read(batch)
        has_label = ~column.is_null().to_numpy(zero_copy_only=False)
        label = column.to_numpy(zero_copy_only=False)
        expected = "a number"
        with np.errstate(invalid="ignore"):
            if op:
                label = _OPERATORS[op](label, number)
            elif self._tasks[t].loss == "logloss":
                unfit |= has_label & (label != 0) & (label != 1)
                expected = "0 or 1 (or write a comparison, as rating >= 4)"
            else:
                unfit |= has_label & ~(np.abs(label) <= LABEL_MAX)
                expected = f"a number up to {LABEL_MAX:.0e}"
        self._reject("bad-label", batch, places, unfit, good, source, expected)
        out[f"label.{t}"] = pa.array(np.where(has_label, label, np.nan).astype(np.float32))
        out[f"weight.{t}"] = pa.array(has_label.astype(np.float32))

    def _plan(self) -> Iterator[Field]:
        columns = self._columns
        if columns.ts is not None:
            to_ms = partial(values.time_ms, unit=self._settings.replay.ts_unit)
            expected = (
                f"a time from 1970 to 2106, a number in {self._settings.replay.ts_unit} "
                "(replay.ts_unit; write ms for milliseconds) or as 2017-10-01T10:00:00Z"
            )
            yield Field("ts_ms", columns.ts, to_ms, expected)
        if columns.request is not None:
            yield Field("request", columns.request, values.identity, "a request id")
        for target, source in (("user", columns.user), ("item", columns.item)):
            feature = self._features.get(f"{target}_id")
            if source is not None or feature is not None:
                convert, expected = _key(feature)
                yield Field(target, source or f"{target}_id", convert, expected, target == "item")
        for name, feature in self._features.items():
            if name in RESERVED or isinstance(feature, CrossFeature | RecentFeature | LiveFeature):
                continue
            convert, expected = _values_of(feature)
            yield Field(f"feature.{name}", columns.features.get(name, name), convert, expected)

    def _label_of(self, task: TaskSettings) -> tuple[str, str | None, float]:
        """Column, comparison and number; without mapping, the column of the task's own name."""
        text = self._columns.labels.get(task.name, task.name)
        match = cast("re.Match[str]", LABEL.fullmatch(text))  # the settings hold it
        return match["column"], match["op"], float(match["number"] or 0)

    def _is_shared(self, target: str) -> bool:
        feature = self._features.get(target.removeprefix("feature."))
        return getattr(feature, "scope", "") in ("user", "context")


def _key(feature: Feature | None) -> tuple[values.Convert, str]:
    if getattr(feature, "key", "string") == "uint64":
        return values.uint64, "an integer from 0 to 2^64-1"
    return values.text, "a text of at most 256 characters"


def _values_of(feature: Feature) -> tuple[values.Convert, str]:
    if isinstance(feature, BucketFeature):
        return values.number, "a finite number"
    if isinstance(feature, DenseFeature):
        low = 0.0 if feature.transform == "log1p" else -DENSE_MAX
        high = NUMBER_MAX if feature.transform == "log1p" else DENSE_MAX
        return partial(values.number, low=low, high=high), f"a number from {low:g} to {high:g}"
    convert, expected = _key(feature)
    if isinstance(feature, IdListFeature):
        return partial(values.lists, convert=convert), f"a list, each entry {expected}"
    return convert, expected
