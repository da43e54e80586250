"""What `freshrank.yaml` says of a feature: `freshrank.settings` exports these names.

Three families: features a client sends (`id`, `id_list`, `bucket`, `dense`), features made of
others (`cross`), and live ones, read from feature state, which the stream itself keeps up to date
(`recent`, `rate`, `count`, `seen`).
"""

from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from freshrank.units import Age, Bytes, Dim, HalfLife, Name, Part, Period, Ratio


def _ascending(boundaries: list[float]) -> list[float]:
    if any(a >= b for a, b in pairwise(boundaries)):
        raise ValueError(f"boundaries must ascend, got {boundaries}")
    return boundaries


class Admission(Part):
    """Frequency filter of a slot: a row at the `min_count`-th occurrence, or by chance."""

    min_count: Annotated[int, Field(ge=1, le=65_536)] = 1
    probability: Ratio = 1.0
    # Event time in which occurrences halve, so that seldom ones never add up. None: they stay.
    count_half_life: HalfLife | None = None
    # For counts of ids that wait for a row: exact within, estimated beyond. None: no limit, or an
    # eighth of the rows' where these have one.
    pending_bytes: Annotated[Bytes, Field(ge=1 << 16)] | None = None


class _Embedded(Part):
    name: Name
    dim: Dim = 16
    admission: Admission = Admission()
    expire: Age | None = None
    min_rows: Annotated[int, Field(ge=0, lt=1 << 32)] = 0  # expiry stops at as few
    max_bytes: Bytes | None = None  # of the table, within `store.max_bytes`


class IdFeature(_Embedded):
    """One id. `user_id` takes the request's user and `item_id` the candidate's item."""

    type: Literal["id"]
    scope: Literal["user", "item", "candidate", "context"]
    key: Literal["string", "uint64"] = "string"


class IdListFeature(_Embedded):
    """Several ids, pooled into one vector."""

    type: Literal["id_list"]
    scope: Literal["user", "item", "candidate", "context"]
    key: Literal["string", "uint64"] = "string"
    pooling: Literal["mean", "sum"] = "mean"
    max_len: Annotated[int, Field(ge=1, le=256)] = 32


class BucketFeature(_Embedded):
    """A number cut into buckets at `boundaries`; each bucket has an embedding."""

    type: Literal["bucket"]
    scope: Literal["user", "item", "candidate", "context"]
    boundaries: Annotated[
        list[float], Field(min_length=1, max_length=1_000), AfterValidator(_ascending)
    ]


class DenseFeature(Part):
    """A number that enters the net as it is, or through `transform`, as does its default."""

    type: Literal["dense"]
    name: Name
    scope: Literal["user", "item", "candidate", "context"]
    transform: Literal["none", "log1p"] = "none"
    default: float = 0.0

    @model_validator(mode="after")
    def _default_has_a_logarithm(self) -> Self:
        if self.transform == "log1p" and self.default < 0:
            raise ValueError(f"default {self.default} is below 0: log1p needs a number from 0")
        return self


class CrossFeature(_Embedded):
    """The combination of two features' ids as an id of its own; of lists, that of every pair."""

    type: Literal["cross"]
    of: Annotated[list[Name], Field(min_length=2, max_length=2)]
    pooling: Literal["mean", "sum"] = "mean"


class RecentFeature(Part):
    """The user's last items of an event, read from feature state; it shares the rows of `table`."""

    type: Literal["recent"]
    name: Name
    event: Name
    table: Name = "item_id"
    max_len: Annotated[int, Field(ge=1, le=64)] = 5
    pooling: Literal["mean", "sum"] = "mean"


class RateFeature(Part):
    """Decayed actions ÷ decayed impressions of a key, as log odds relative to `prior`.

    The key is the id of `of`, or of `of` and `by` together. With a actions and n impressions, both
    halved every `half_life`, the rate is (a + prior * strength) / (n + strength): a key of which
    nothing is known has `prior` and enters the net as 0.
    """

    type: Literal["rate"]
    name: Name
    event: Name
    of: Name = "item_id"
    by: Name | None = None
    half_life: Period = timedelta(hours=1)
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.1
    strength: Annotated[float, Field(gt=0)] = 10.0


class CountFeature(Part):
    """Decayed number of actions of a key, or of its impressions; enters the net as log1p."""

    type: Literal["count"]
    name: Name
    event: Name | None = None  # None counts impressions
    of: Name = "item_id"
    by: Name | None = None
    half_life: Period = timedelta(hours=1)


class SeenFeature(Part):
    """What this user did with this item, or how long the item has been around.

    `did`: 1 where the user did `event` with the item within `within`, else 0. `ago`: how recently,
    1 for just now to 0 for `within` ago or never. `age`: how new the item is, 1 at its first
    impression to 0 for `within` later. On a logarithmic scale of time.
    """

    type: Literal["seen"]
    name: Name
    event: Name
    value: Literal["did", "ago", "age"] = "did"
    within: Age = timedelta(days=30)


LiveFeature = RateFeature | CountFeature | SeenFeature

Feature = Annotated[
    IdFeature
    | IdListFeature
    | BucketFeature
    | DenseFeature
    | CrossFeature
    | RecentFeature
    | RateFeature
    | CountFeature
    | SeenFeature,
    Field(discriminator="type"),
]
