"""What the configuration means for each feature: slot, table, column encoder, value check."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from freshrank.encoding import (
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

RESERVED: Final = ("user_id", "item_id")

ColumnEncoder = Callable[[Sequence[Value]], SlotIds]
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


def column_encoder(feature: Feature, features: Features, salt: int) -> ColumnEncoder | None:
    """How a column of the feature's values becomes ids; None where it has no column or no ids."""
    if isinstance(feature, DenseFeature | LiveFeature | CrossFeature):
        return None
    owner = features[feature.table] if isinstance(feature, RecentFeature) else feature
    key = owner.key if isinstance(owner, IdFeature | IdListFeature) else ""
    ids_of = uint64_ids if key == "uint64" else partial(text_ids, salt=salt)
    if isinstance(feature, BucketFeature):
        boundaries = np.array(feature.boundaries)
        return partial(single_bags, ids_of=partial(bucket_ids, boundaries=boundaries))
    if isinstance(feature, IdListFeature | RecentFeature):
        return partial(list_bags, max_len=feature.max_len, ids_of=ids_of)
    return partial(single_bags, ids_of=ids_of)


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


def tables(settings: Settings) -> Iterator[TableSpec]:
    """The tables that the features declare."""
    without = DenseFeature | RecentFeature | LiveFeature
    embedded = [f for f in settings.features if not isinstance(f, without)]
    for index, feature in enumerate(embedded):
        # Part of a second rounds up: 0 would mean that rows never expire.
        ttl_s = 0 if feature.expire is None else math.ceil(feature.expire.total_seconds())
        yield TableSpec(
            name=feature.name,
            index=index,
            dim=feature.dim if settings.model.kind == "deepfm" else 0,
            min_count=feature.admission.min_count,
            probability=feature.admission.probability,
            ttl_s=ttl_s,
        )
