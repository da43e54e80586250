"""Raw values -> (slot, 64-bit id) and dense values, once, for the server and the trainer alike.

The service encodes what it scores, the joiner encodes what was logged as served: the same code on
the same values, so training sees what serving saw. Vectorised over the rows of many requests.

The names `user_id` and `item_id` are reserved for the `id` features that take the request's user
and items. Other features read `RequestValues.shared` (scopes user and context, type recent) or
`RequestValues.columns` (scopes item and candidate). A missing name or None means no id, or the
default of a dense feature; that default is a raw value and passes the transform like any other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from freshrank import references
from freshrank.encoding import (
    F64,
    cross_bags,
    optional_numbers,
    repeat_bags,
    shown,
)
from freshrank.errors import ConfigError, DataError
from freshrank.feature_plan import (
    ColumnEncoder,
    column_encoder,
    dense_values,
    is_shared,
    parser,
    schema_hash,
    slots,
    tables,
)
from freshrank.feature_types import I64, Encoded, Problem, RequestValues, Slot, SlotIds, TableSpec
from freshrank.hints import did_you_mean
from freshrank.identities import Identities
from freshrank.messages import Value
from freshrank.settings import (
    CrossFeature,
    DenseFeature,
    LiveFeature,
    RecentFeature,
    Settings,
)

__all__ = [
    "Encoded",
    "FeatureEncoder",
    "Problem",
    "RequestValues",
    "Slot",
    "SlotIds",
    "TableSpec",
]

PROBLEMS_MAX: Final = 20


class FeatureEncoder:
    """Encodes requests for one configuration. Immutable, safe for threads.

    Args:
        settings: The whole configuration; features, tasks, model and salt are read.

    Attributes:
        slots: Embedded features in configuration order.
        tables: Their tables in configuration order.
        dense_names: Dense and live features in configuration order.
        recent: The `recent` features, to be filled from feature state.
        live: The live features, to be filled from feature state.
        schema_hash: 16 hex digits over features, tasks, model and salt: two sides with equal hashes
            read each other's rows.

    Raises:
        ConfigError: a feature refers to one that does not exist or does not fit.

    Example:
        >>> settings = Settings.model_validate({
        ...     "features": [
        ...         {"name": "item_id", "type": "id", "scope": "item", "key": "uint64"},
        ...         {"name": "hour", "type": "bucket", "scope": "context", "boundaries": [6, 12]},
        ...     ],
        ...     "tasks": [{"name": "click", "event": "click"}],
        ... })
        >>> encoder = FeatureEncoder(settings)
        >>> rows = encoder.encode([RequestValues(items=["7", "8"], shared={"hour": 6})])
        >>> rows.slots["item_id"].ids.tolist(), rows.slots["hour"].ids.tolist()
        ([7, 8], [1, 1])
        >>> encoder.check({"huor": 6}, ["context"])[0].detail
        "unknown feature 'huor'; did you mean 'hour'?"
    """

    def __init__(self, settings: Settings) -> None:
        document = settings.model_dump(mode="json", by_alias=True, exclude={"replay"})
        for mistake in references.mistakes(document):
            raise ConfigError(f"{references.path_text(mistake.location)}: {mistake.text}")
        self._features = {feature.name: feature for feature in settings.features}
        self._salt = settings.salt
        self._users = Identities("user_id", self._features.get("user_id"))
        self._items = Identities("item_id", self._features.get("item_id"))
        self._shared = frozenset(
            name for name, feature in self._features.items() if is_shared(feature, self._features)
        )
        self._columns: dict[str, ColumnEncoder] = {}
        self._parsers: dict[str, tuple[str, Callable[[object], object]]] = {}  # with its scope
        for name, feature in self._features.items():
            if encode_column := column_encoder(feature, self._features, settings.salt):
                self._columns[name] = encode_column
            if parse := parser(feature):
                self._parsers[name] = (getattr(feature, "scope", ""), parse)
        self._crosses = tuple(f for f in settings.features if isinstance(f, CrossFeature))
        self._dense = tuple(
            f for f in settings.features if isinstance(f, DenseFeature | LiveFeature)
        )
        self.slots = tuple(slots(self._features))
        self.tables = tuple(tables(settings))
        self.dense_names = tuple(feature.name for feature in self._dense)
        self.recent = tuple(f for f in settings.features if isinstance(f, RecentFeature))
        self.live = tuple(f for f in settings.features if isinstance(f, LiveFeature))
        self.schema_hash = schema_hash(document)

    def encode(self, requests: Sequence[RequestValues]) -> Encoded:
        """All rows of all requests, in order.

        Values of features that the configuration does not have are skipped: an old log stays
        readable when a feature leaves. With transform `log1p`, numbers below 0 count as 0.

        Raises:
            DataError: a value of the wrong type, or a column that has not one entry per item (code
                `bad-value`); `check` says which beforehand.
        """
        return self.assemble(
            _n_items(requests),
            lambda name: self._columns[name](self._raw(name, requests)),
            lambda name, _: optional_numbers(self._raw(name, requests)),
        )

    def ids(self, requests: Sequence[RequestValues], names: Iterable[str]) -> dict[str, SlotIds]:
        """Ids of some features that have a column, a row per item; raises as `encode` does."""
        bags = self._bags(names, lambda name: self._columns[name](self._raw(name, requests)))
        return self._rows(bags, _n_items(requests))

    def assemble(
        self,
        n_items: I64,
        bags_of: Callable[[str], SlotIds],
        numbers_of: Callable[[str, Mapping[str, SlotIds]], F64],
    ) -> Encoded:
        """Rows of the configuration from its columns: repeated, crossed, transformed.

        Args:
            n_items: `int64[r]`, rows of each of r requests.
            bags_of: Ids of a feature that has a column: a row per request when the feature is
                shared, else a row per item.
            numbers_of: `float64` of a dense or live feature likewise, NaN where there is none; it
                is also given the rows' ids so far.

        Raises:
            DataError: what `bags_of` and `numbers_of` raise, with the feature's name.
        """
        bags = self._bags(self._columns, bags_of)
        for cross in self._crosses:
            if cross.name in self._shared:
                left, right = cross.of
                bags[cross.name] = cross_bags(bags[left], bags[right], self._salt)
        rows = self._rows(bags, n_items)
        for cross in self._crosses:
            if cross.name not in rows:
                left, right = cross.of
                rows[cross.name] = cross_bags(rows[left], rows[right], self._salt)
        n_rows = int(n_items.sum())
        dense = np.empty((n_rows, len(self._dense)), np.float32)
        for column, feature in enumerate(self._dense):
            with naming(feature.name):
                values = dense_values(feature, numbers_of(feature.name, rows))
            is_shared = feature.name in self._shared
            dense[:, column] = np.repeat(values, n_items) if is_shared else values
        return Encoded(n_rows, {slot.name: rows[slot.name] for slot in self.slots}, dense)

    def column(self, name: str) -> ColumnEncoder:
        """How a column of the feature becomes ids.

        Raises:
            KeyError: the feature has no column of ids.
        """
        return self._columns[name]

    def is_shared(self, name: str) -> bool:
        """Whether the feature's value belongs to the request, not to each of its rows."""
        return name in self._shared

    def check(self, values: Mapping[str, Value], scopes: Sequence[str]) -> list[Problem]:
        """Unknown features, features of another scope, and values of the wrong type or range.

        Stops at 20 problems: naming the nearest feature for every key of a hostile body would take
        seconds. Values without a problem are values that `encode` takes.
        """
        problems = []
        for name, value in values.items():
            scope, parse = self._parsers.get(name, ("", None))
            if parse is None or scope not in scopes:
                problems.append(Problem(_pointer(name), self._misplaced(name, scopes)))
            elif value is not None:
                try:
                    parse(value)
                except DataError as error:
                    problems.append(Problem(_pointer(name), str(error)))
            if len(problems) == PROBLEMS_MAX:
                break
        return problems

    def canonical_item(self, item: str | int) -> str:
        """The item id's canonical text for the key type of `item_id` (string if there is none).

        A uint64 key takes an integer or its decimal text, without sign or leading zeros; a string
        key takes 1 to 256 characters and brings them to NFC.

        Raises:
            DataError: not legal for the key type (code `bad-id`): -1, 2^64, `007`, an integer for a
                string key, a string longer than 256 characters.
        """
        return self._items.canonical(item)

    def plain_items(self, items: Sequence[str | int]) -> list[str] | None:
        """The canonical texts of many items, fast; None where one needs `canonical_item`."""
        return self._items.plain(items)

    def canonical_user(self, user: str | int) -> str:
        """The same for `user_id`."""
        return self._users.canonical(user)

    def _bags(self, names: Iterable[str], bags_of: Callable[[str], SlotIds]) -> dict[str, SlotIds]:
        bags = {}
        for name in names:
            with naming(name):
                bags[name] = bags_of(name)
        return bags

    def _rows(self, bags: Mapping[str, SlotIds], n_items: I64) -> dict[str, SlotIds]:
        """Bags per request or per item -> per item."""
        return {
            name: repeat_bags(own, n_items) if name in self._shared else own
            for name, own in bags.items()
        }

    def _raw(self, name: str, requests: Sequence[RequestValues]) -> list[Value]:
        """The feature's values: one per request when it is shared, else one per row."""
        if name == "user_id":
            return [request.user for request in requests]
        if name in self._shared:
            return [request.shared.get(name) for request in requests]
        column: list[Value] = []
        for request in requests:
            values = request.items if name == "item_id" else request.columns.get(name)
            if values is None:
                column.extend([None] * len(request.items))
            elif len(values) == len(request.items):
                column.extend(values)
            else:
                raise DataError(f"expected {len(request.items)} values, got {len(values)}")
        return column

    def _misplaced(self, name: str, scopes: Sequence[str]) -> str:
        if name in self._parsers:
            scope, _ = self._parsers[name]
            return f"{shown(name)} is of scope {scope}, expected {' or '.join(scopes)}"
        if name in self._features:
            return f"{shown(name)} is filled in by freshrank: do not send it"
        known = [one for one, (scope, _) in self._parsers.items() if scope in scopes]
        return f"unknown feature {shown(name)}{did_you_mean(name, known)}"


def _n_items(requests: Sequence[RequestValues]) -> I64:
    return np.fromiter((len(request.items) for request in requests), np.int64, len(requests))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says in a DataError which feature it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"feature {name!r}: {error}", code="bad-value") from None


def _pointer(name: str) -> str:
    """The key as a step of an RFC 6901 pointer."""
    return name.replace("~", "~0").replace("/", "~1")
