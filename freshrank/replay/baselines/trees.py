"""Boosted trees on live counters, retrained every few hours: what Metarank does."""

from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from freshrank.feature_plan import RESERVED
from freshrank.features import Encoded, FeatureEncoder, SlotIds
from freshrank.replay.baselines.base import F32, event_of, missing
from freshrank.replay.baselines.rate import HALF_LIVES, ItemRate
from freshrank.replay.chunks import Chunk
from freshrank.settings import (
    BucketFeature,
    CountFeature,
    DenseFeature,
    IdFeature,
    LiveFeature,
    RateFeature,
    SeenFeature,
    Settings,
)
from freshrank.table_encoder import TableEncoder

if TYPE_CHECKING:
    from lightgbm import Booster

_Field = IdFeature | BucketFeature

_HOUR: Final = timedelta(hours=1)
_MONTH: Final = timedelta(days=30)

# LightGBM's own defaults otherwise: 100 trees of 31 leaves. One thread repeats bit for bit.
_PARAMETERS: Final = {
    "objective": "binary",
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "seed": 1,
    "verbosity": -1,
}
_ROWS_AT_FIRST: Final = 1_000
_BLOCK_ROWS: Final = 1_000  # after which it asks whether to train
# Without a limit each training would take longer than the last: half a million rows take 6 s.
_ROWS_MAX: Final = 500_000
# A stream of months with few rows would train at every chunk, all for nothing.
_NEW_SHARE: Final = 0.1
_FIELDS_MAX: Final = 32
_CODES_MAX: Final = 256


class Trees:
    """LightGBM on counters and plain fields; no ids of users or items, as trees cannot hold them.

    The counters are a fixed set made of the configuration's ids, whichever live features it has of
    its own: what the item did lately, also by each field of context and user, what its fields and
    the user did, how new the item is and when the user acted on it.

    It is trained on the last 500,000 rows as soon as their number has doubled, from 1,000, and
    then every `every`, if a tenth of them is new. Until then the item's rate answers.

    Args:
        settings: Names the fields.
        encoder: Not read: it has its own.
        every: Event time between trainings.

    Raises:
        ConfigError: LightGBM is not installed.
    """

    name = "trees"

    def __init__(
        self, settings: Settings, encoder: FeatureEncoder, every: timedelta = 4 * _HOUR
    ) -> None:
        try:
            import lightgbm
        except ImportError:
            raise missing("lightgbm") from None
        self._lightgbm = lightgbm
        self._every_ms = every / timedelta(milliseconds=1)
        self._item_rate = ItemRate(settings, encoder)
        fields = [f for f in settings.features if isinstance(f, IdFeature | BucketFeature)]
        numbers = [f for f in settings.features if isinstance(f, DenseFeature)]
        counters = _counters(fields, event_of(settings))
        own = settings.model_copy(update={"features": [*fields, *numbers, *counters]})
        self._encoder = TableEncoder(own, FeatureEncoder(own))
        self._codes: dict[str, dict[int, int] | None] = {
            field.name: {} if isinstance(field, IdFeature) else None for field in _plain(fields)
        }
        self._past: deque[tuple[F32, F32]] = deque()  # inputs and labels by block
        self._n_past = self._n_trained = self._n_new = 0
        self._trained_ms = 0
        self._model: Booster | None = None

    def predict_then_learn(self, chunk: Chunk, encoded: Encoded) -> F32:
        """`float32[n]`, probabilities; it trains between blocks of whole requests."""
        own = self._encoder.encode(chunk.values)
        columns = [_column(own.slots[name], codes) for name, codes in self._codes.items()]
        inputs = np.column_stack([own.dense, *columns])
        labels, is_known = chunk.labels[:, 0], chunk.weights[:, 0] > 0
        if self._model is None:
            scores = self._item_rate.predict_then_learn(chunk, encoded)
        else:
            scores = np.empty(chunk.n_rows, np.float32)
        ends = np.cumsum(chunk.values.n_items)
        start = 0
        while start < chunk.n_rows:
            block_end = np.searchsorted(ends[:-1], start + _BLOCK_ROWS)
            end = int(ends[block_end])
            if self._is_due(int(chunk.ts_ms[start])):
                self._train(int(chunk.ts_ms[start]))
            if self._model is not None:
                scores[start:end] = self._model.predict(inputs[start:end], num_threads=1)
            block = np.arange(start, end)[is_known[start:end]]
            self._remember(inputs[block], labels[block])
            start = end
        return scores

    def _remember(self, inputs: F32, labels: F32) -> None:
        self._past.append((inputs, labels))
        self._n_past += len(labels)
        self._n_new += len(labels)
        while self._n_past - len(self._past[0][1]) >= _ROWS_MAX:
            self._n_past -= len(self._past.popleft()[1])

    def _is_due(self, ts_ms: int) -> bool:
        if self._n_past >= max(_ROWS_AT_FIRST, 2 * self._n_trained):
            return True
        has_waited = self._model is not None and ts_ms - self._trained_ms >= self._every_ms
        return has_waited and self._n_new >= _NEW_SHARE * self._n_past

    def _train(self, ts_ms: int) -> None:
        inputs, labels = (np.concatenate(parts) for parts in zip(*self._past, strict=True))
        data = self._lightgbm.Dataset(inputs, labels)
        self._model = self._lightgbm.train(dict(_PARAMETERS), data)
        self._n_trained, self._n_new, self._trained_ms = self._n_past, 0, ts_ms


def _plain(fields: list[_Field]) -> list[_Field]:
    """Those that are neither the user nor the item."""
    return [field for field in fields if field.name not in RESERVED][:_FIELDS_MAX]


def _counters(fields: list[_Field], event: str) -> list[LiveFeature]:
    """The live features: a fixed set, for whatever fields there are."""
    names = {field.name for field in fields}
    has_item, has_user = "item_id" in names, "user_id" in names
    rates: list[tuple[str, str | None, timedelta]] = []  # of, by, half-life
    counters: list[LiveFeature] = []
    if has_item:
        rates += [("item_id", None, half_life) for half_life in HALF_LIVES]
        for number, half_life in enumerate(HALF_LIVES[:2]):
            for counted in (event, None):
                name = f"trees_{'actions' if counted else 'impressions'}_{number}"
                counters.append(
                    CountFeature(name=name, type="count", event=counted, half_life=half_life)
                )
        values: tuple[Literal["age", "ago"], ...] = ("age", "ago") if has_user else ("age",)
        counters += [
            SeenFeature(name=f"trees_{value}", type="seen", event=event, value=value)
            for value in values
        ]
    if has_user:
        rates.append(("user_id", None, _MONTH))
    for field in _plain(fields):
        half_life = _HOUR if field.scope == "context" else _MONTH
        if has_item and field.scope in ("context", "user"):
            rates.append(("item_id", field.name, half_life))
            continue
        rates.append((field.name, None, half_life))
        if has_user and field.scope in ("item", "candidate"):
            rates.append(("user_id", field.name, half_life))
    return counters + [
        RateFeature(
            name=f"trees_rate_{number}", type="rate", event=event, of=of, by=by, half_life=half_life
        )
        for number, (of, by, half_life) in enumerate(rates)
    ]


def _column(bags: SlotIds, codes: dict[int, int] | None) -> F32:
    """A field as a number, NaN where it is missing: its bucket, or its place among ids met."""
    values = np.full(len(bags.offsets) - 1, np.nan, np.float32)
    has_value = np.diff(bags.offsets) > 0
    if codes is None:
        values[has_value] = bags.ids
        return values
    ids, inverse = np.unique(bags.ids, return_inverse=True)
    for one in ids.tolist():
        if len(codes) < _CODES_MAX:
            codes.setdefault(one, len(codes))
    values[has_value] = np.array([codes.get(one, np.nan) for one in ids.tolist()])[inverse]
    return values
