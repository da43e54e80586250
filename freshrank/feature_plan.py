"""What the configuration means for each feature: slot, table, column encoder, value check."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from freshrank.encoding import (
    F64,
    IdsOf,
    bucket_ids,
    list_bags,
    parse_list,
    parse_nonnegative,
    parse_number,
    parse_text,
    parse_uint64,
    single_bags,
    text_ids,
    uint64_ids,
)
from freshrank.feature_series import net_values
from freshrank.feature_types import Slot, SlotIds, TableSpec
from freshrank.messages import Value
from freshrank.settings import (
    BucketFeature,
    CrossFeature,
    DenseFeature,
    Feature,
    IdFeature,
    IdListFeature,
    LiveFeature,
    RecentFeature,
    Settings,
)
from freshrank.units import whole_seconds

RESERVED: Final = ("user_id", "item_id")

Features = Mapping[str, Feature]


def is_shared(feature: Feature, features: Features) -> bool:
    """Whether the value belongs to the request, not to each of its rows."""
    if isinstance(feature, CrossFeature):
        return all(is_shared(features[part], features) for part in feature.of)
    if isinstance(feature, LiveFeature):
        return False
    return isinstance(feature, RecentFeature) or feature.scope in ("user", "context")


def slots(features: Features) -> Iterator[Slot]:
    """Every feature that has ids."""
    for feature in features.values():
        if isinstance(feature, DenseFeature | LiveFeature):
            continue
        pooling = "sum"  # of one id: its vector
        if isinstance(feature, IdListFeature | RecentFeature | CrossFeature):
            pooling = feature.pooling
        table = feature.table if isinstance(feature, RecentFeature) else feature.name
        yield Slot(feature.name, table, pooling, is_shared(feature, features))


@dataclass(frozen=True, slots=True)
class ColumnEncoder:
    """How a column of a feature's values becomes ids.

    Attributes:
        ids_of: Ids of values that are there.
        max_len: Ids a row may have; None where a value is one id, not a list.
    """

    ids_of: IdsOf
    max_len: int | None = None

    def __call__(self, values: Sequence[Value]) -> SlotIds:
        """Bags of a list of values; None is a missing one."""
        if self.max_len is None:
            return single_bags(values, self.ids_of)
        return list_bags(values, self.max_len, self.ids_of)


def column_encoder(feature: Feature, features: Features, salt: int) -> ColumnEncoder | None:
    """The feature's column encoder; None where it has no column or no ids."""
    if isinstance(feature, DenseFeature | LiveFeature | CrossFeature):
        return None
    owner = features[feature.table] if isinstance(feature, RecentFeature) else feature
    key = owner.key if isinstance(owner, IdFeature | IdListFeature) else ""
    if isinstance(feature, BucketFeature):
        return ColumnEncoder(partial(bucket_ids, boundaries=np.array(feature.boundaries)))
    max_len = feature.max_len if isinstance(feature, IdListFeature | RecentFeature) else None
    return ColumnEncoder(uint64_ids if key == "uint64" else partial(text_ids, salt=salt), max_len)


def parser(feature: Feature) -> Callable[[object], object] | None:
    """What accepts one value as sent, or raises DataError; None where the feature is never sent."""
    if feature.name in RESERVED or isinstance(feature, CrossFeature | RecentFeature | LiveFeature):
        return None
    if isinstance(feature, DenseFeature) and feature.transform == "log1p":
        return parse_nonnegative
    if isinstance(feature, DenseFeature | BucketFeature):
        return parse_number
    parse_key = parse_uint64 if feature.key == "uint64" else parse_text
    return partial(parse_list, parse=parse_key) if isinstance(feature, IdListFeature) else parse_key


def dense_values(feature: DenseFeature | LiveFeature, raw: F64) -> F64:
    """What the net gets of raw values; NaN is a missing one."""
    if isinstance(feature, LiveFeature):
        return net_values(feature, raw)
    values = np.where(np.isnan(raw), feature.default, raw)
    return np.log1p(np.maximum(values, 0.0)) if feature.transform == "log1p" else values


def tables(settings: Settings) -> Iterator[TableSpec]:
    """The tables that the features declare."""
    without = DenseFeature | RecentFeature | LiveFeature
    embedded = [f for f in settings.features if not isinstance(f, without)]
    for index, feature in enumerate(embedded):
        admission = feature.admission
        yield TableSpec(
            name=feature.name,
            index=index,
            dim=feature.dim if settings.model.kind == "deepfm" else 0,
            min_count=admission.min_count,
            probability=admission.probability,
            ttl_s=whole_seconds(feature.expire),
            min_rows=feature.min_rows,
            count_half_life_s=whole_seconds(admission.count_half_life),
            pending_bytes=admission.pending_bytes or 0,
            max_bytes=feature.max_bytes or 0,
        )


# What may change while a model lives: who gets a row and for how long, how hard a task pulls and
# which share of negatives is kept say nothing about what a row means.
_POLICY: Final = {
    "features": ("admission", "expire", "min_rows", "max_bytes"),
    "tasks": ("weight", "negative"),
}


def schema_hash(document: dict[str, Any]) -> str:
    """16 hex digits over what two sides must agree on to read each other's rows."""
    schema = {part: document[part] for part in ("model", "salt")}
    for part, policy in _POLICY.items():
        schema[part] = [
            {name: value for name, value in entry.items() if name not in policy}
            for entry in document[part]
        ]
    canonical = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
