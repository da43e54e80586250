"""What goes into the feature encoder and comes out: `freshrank.features` exports these names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from freshrank.messages import Value

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SlotIds:
    """Ids of one slot for n rows: row i has `ids[offsets[i]:offsets[i + 1]]` (none when missing).

    Attributes:
        ids: `uint64[m]`.
        offsets: `int64[n + 1]`, from 0 to m.
    """

    ids: U64
    offsets: I64


@dataclass(frozen=True, slots=True)
class Encoded:
    """Model input of n rows.

    Attributes:
        n_rows: n.
        slots: Per slot name, its ids; in the order of `FeatureEncoder.slots`.
        dense: `float32[n, k]`, transformed; in the order of `FeatureEncoder.dense_names`.
    """

    n_rows: int
    slots: dict[str, SlotIds]
    dense: F32


@dataclass(frozen=True, slots=True)
class RequestValues:
    """Raw values of one request: what an `Impression` records.

    Attributes:
        items: Canonical item ids, one per row.
        user: Canonical user id, or None.
        shared: Values of user, context and `recent` features.
        columns: Values of item and candidate features, each with one entry per item.
    """

    items: Sequence[str]
    user: str | None = None
    shared: Mapping[str, Value] = field(default_factory=dict)
    columns: Mapping[str, Sequence[Value]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableValues:
    """Raw values of r whole requests with n rows in all, as columns: what a labelled table holds.

    A column is an array of numbers, a `pyarrow` array (strings, dictionary-encoded strings, numbers
    or lists), or a list of values; a null is a missing value.

    Attributes:
        n_items: `int64[r]`, rows of each request; they sum to n.
        ts_ms: `int64[r]`, event time, never falling.
        users: A user per request; None where the table has no users.
        items: An item per row; None where the table has no items.
        shared: Values of user and context features, one per request.
        columns: Values of item and candidate features, one per row.
        acted: Event -> `bool[n]`, rows on which the user did it: what live features learn from.
    """

    n_items: I64
    ts_ms: I64
    users: Any = None
    items: Any = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    acted: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slot:
    """An embedded feature: where its ids go and how they are pooled.

    Attributes:
        name: Feature name.
        table: Name of the table whose rows it reads.
        pooling: `sum` or `mean` over the row's ids.
        is_shared: True when the value belongs to the request (user, context, feature state): an
            occurrence then counts once per request.
    """

    name: str
    table: str
    pooling: str
    is_shared: bool


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One embedding table.

    Attributes:
        name: Table name: that of the feature that declares it.
        index: Number of the table, part of its rows' initialisation.
        dim: Vector length; 0 for logistic regression.
        min_count: Occurrences until an id has a row.
        probability: Chance of admission per occurrence.
        ttl_s: Seconds of event time after which an unseen row goes; 0 for never.
        min_rows: Expiry stops at as few.
        count_half_life_s: Seconds of event time in which occurrences halve; 0 for never.
        pending_bytes: For counts of ids without a row; 0 for no limit.
        max_bytes: Of the whole table; 0 for no limit of its own.
    """

    name: str
    index: int
    dim: int
    min_count: int
    probability: float
    ttl_s: int
    min_rows: int
    count_half_life_s: int
    pending_bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that cannot be used.

    Attributes:
        pointer: Path below the object checked, e.g. `price`.
        detail: What is wrong and what is expected.
    """

    pointer: str
    detail: str
