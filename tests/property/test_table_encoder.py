"""Tables by column against the feature encoder, request by request, and a slow feature state."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshrank.errors import DataError
from freshrank.feature_types import TableValues
from freshrank.features import Encoded, FeatureEncoder, RequestValues
from freshrank.settings import Settings
from freshrank.table_encoder import TableEncoder
from tests.slow_state import SlowState

SETTINGS = Settings.model_validate(
    {
        "salt": 5,
        "features": [
            {"name": "user_id", "type": "id", "scope": "user", "key": "uint64"},
            {"name": "item_id", "type": "id", "scope": "item"},
            {"name": "shop", "type": "id", "scope": "candidate", "key": "uint64"},
            {"name": "tags", "type": "id_list", "scope": "item", "max_len": 2},
            {"name": "groups", "type": "id_list", "scope": "user", "key": "uint64", "max_len": 3},
            {"name": "hour", "type": "bucket", "scope": "context", "boundaries": [6, 12.5]},
            {"name": "price", "type": "dense", "scope": "item", "transform": "log1p"},
            {"name": "age", "type": "dense", "scope": "user", "default": 30.0},
            {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 2},
            {"name": "last_click", "type": "recent", "event": "click", "max_len": 1},
            {"name": "last_buys", "type": "recent", "event": "buy", "max_len": 1},
            {"name": "tags_x_groups", "type": "cross", "of": ["tags", "groups"], "pooling": "sum"},
            {"name": "last_x_item", "type": "cross", "of": ["last_clicks", "item_id"]},
            {"name": "ctr", "type": "rate", "event": "click", "half_life": "3s"},
            {"name": "by_hour", "type": "rate", "event": "buy", "of": "shop", "by": "hour"},
            {"name": "shown", "type": "count", "half_life": "2s"},
            {"name": "buys", "type": "count", "event": "buy", "of": "shop"},
            {"name": "did", "type": "seen", "event": "click", "within": "4s"},
            {"name": "ago", "type": "seen", "event": "buy", "value": "ago", "within": "4s"},
            {"name": "new", "type": "seen", "event": "buy", "value": "age", "within": "4s"},
        ],
        "tasks": [{"name": "click", "event": "click"}],
    }
)
ENCODER = FeatureEncoder(SETTINGS)
EVENTS = ("click", "buy")
H = 3_600_000.0


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


PER_REQUEST = {
    "groups": st.lists(st.integers(0, 2**64 - 1), max_size=4),
    "hour": st.integers(0, 23) | st.floats(0, 24),
    "age": st.integers(0, 99),
}
PER_ROW = {
    "shop": st.integers(0, 3),
    "tags": st.lists(st.sampled_from(["a", "bé", "c"]), max_size=3),
    "price": st.floats(0, 100, width=32),
}


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    values = {name: draw(maybe(one)) for name, one in PER_ROW.items()}
    acted = {event: draw(st.booleans()) for event in EVENTS}
    return {"item": draw(st.sampled_from(["i1", "i2", "é3"])), "values": values, "acted": acted}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    values = {name: draw(maybe(one)) for name, one in PER_REQUEST.items()}
    return {
        "wait_ms": draw(st.sampled_from([0, 1, 700, 5_000])),
        "user": draw(maybe(st.integers(0, 2))),
        "values": values,
        "rows": draw(st.lists(rows(), max_size=4)),
    }


def slow_raw(
    slow: SlowState, user: Any, item: str, ts: int, raw: Mapping[str, Any]
) -> dict[str, Any]:
    """Live values of one row, from the definitions."""
    shop, hour = raw["shop"], raw["hour"]
    bucket = None if hour is None else (hour >= 6) + (hour >= 12.5)
    pair = None if shop is None or bucket is None else (shop, bucket)

    def rate(event: str, key: Any, half_life_ms: float) -> float:
        acted = slow.sum((event, key), ts, half_life_ms)
        shown = slow.sum(("shown", key), ts, half_life_ms)
        return min(max((acted + 1.0) / (shown + 10.0), 1e-6), 1 - 1e-6)

    pairing = None if user is None else (user, item)
    return {
        "ctr": rate("click", ("item", item), 3_000),
        "by_hour": None if pair is None else rate("buy", pair, H),
        "shown": slow.sum(("shown", ("item", item)), ts, 2_000),
        "buys": None if shop is None else slow.sum(("buy", ("shop", shop)), ts, H),
        "did": None
        if user is None
        else float(slow.last_s(("click", pairing), ts, 4_000) is not None),
        "ago": None if user is None else slow.last_s(("buy", pairing), ts, 4_000),
        "new": slow.first_s(("shown", ("item", item)), ts, 4_000),
    }


def expected(table: list[dict[str, Any]]) -> list[Encoded]:
    """Each request by the feature encoder, with live values and recent items of the slow state."""
    slow, encoded, ts, tie = SlowState(), [], 0, 0
    for request in table:
        ts += request["wait_ms"]
        user = request["user"]
        shared = {k: v for k, v in request["values"].items() if v is not None}
        columns = {name: [row["values"][name] for row in request["rows"]] for name in PER_ROW}
        if user is not None:
            clicks = slow.recent(("click", user), ts, 2)
            shared |= {"last_clicks": clicks, "last_click": clicks[:1]}
            shared["last_buys"] = slow.recent(("buy", user), ts, 1)
        raws = [
            slow_raw(slow, user, row["item"], ts, {**request["values"], **row["values"]})
            for row in request["rows"]
        ]
        for feature in ENCODER.live:
            columns[feature.name] = [raw[feature.name] for raw in raws]
        items = [row["item"] for row in request["rows"]]
        identity = None if user is None else str(user)
        encoded.append(ENCODER.encode([RequestValues(items, identity, shared, columns)]))
        for row in request["rows"]:
            hour, shop = request["values"]["hour"], row["values"]["shop"]
            bucket = None if hour is None else (hour >= 6) + (hour >= 12.5)
            for event in ("shown", *(one for one in EVENTS if row["acted"][one])):
                slow.add((event, ("item", row["item"])), ts)
                slow.add((event, ("shop", shop)), ts)
                slow.add((event, (shop, bucket)), ts)
                slow.add((event, (user, row["item"])), ts)
                if event != "shown":
                    slow.act((event, user), ts, tie, row["item"])
            tie += 1
    return encoded


TYPES = {
    "groups": pa.list_(pa.uint64()),
    "tags": pa.list_(pa.string()),
    "shop": pa.int64(),
    "price": pa.float32(),
    "hour": pa.float64(),
    "age": pa.int32(),
    "user": pa.uint64(),
    "item": pa.string(),
}


def column(name: str, values: list[Any], form: str) -> Any:
    """The values as a list or in one of the forms a table may have them in."""
    if form == "list":
        return [str(one) if name == "user" and one is not None else one for one in values]
    if form == "numpy" and None not in values and name not in ("groups", "tags", "item"):
        return np.array(values, TYPES[name].to_pandas_dtype())
    array = pa.array(values, TYPES[name])
    if form == "dictionary" and not pa.types.is_list(array.type):
        return array.dictionary_encode()
    return pa.chunked_array([array[:1], array[1:]]) if form == "chunked" else array


def as_table(table: list[dict[str, Any]], ts: list[int], form: str) -> TableValues:
    every = [row for request in table for row in request["rows"]]
    return TableValues(
        n_items=np.array([len(request["rows"]) for request in table], np.int64),
        ts_ms=np.array(ts, np.int64),
        users=column("user", [request["user"] for request in table], form),
        items=column("item", [row["item"] for row in every], form),
        shared={n: column(n, [r["values"][n] for r in table], form) for n in PER_REQUEST},
        columns={n: column(n, [r["values"][n] for r in every], form) for n in PER_ROW},
        acted={e: np.array([row["acted"][e] for row in every], np.bool_) for e in EVENTS},
    )


FORMS = st.sampled_from(["list", "arrow", "numpy", "dictionary", "chunked"])


@given(st.lists(requests(), min_size=1, max_size=8), st.data())
@settings(max_examples=200)
def test_tables_encode_like_requests_however_they_are_cut(
    table: list[dict[str, Any]], data: st.DataObject
) -> None:
    times = np.cumsum([request["wait_ms"] for request in table]).tolist()
    encoder = TableEncoder(SETTINGS, ENCODER)
    found = []
    start = 0
    while start < len(table):
        end = data.draw(st.integers(start + 1, len(table)))
        chunk = as_table(table[start:end], times[start:end], data.draw(FORMS))
        found.append(encoder.encode(chunk))
        start = end
    wanted = expected(table)
    for name in (slot.name for slot in ENCODER.slots):
        for_each = [[e.slots[name].ids for e in one] for one in (found, wanted)]
        assert np.concatenate(for_each[0]).tolist() == np.concatenate(for_each[1]).tolist(), name
        lengths = [
            np.concatenate([np.diff(e.slots[name].offsets) for e in one]) for one in (found, wanted)
        ]
        assert lengths[0].tolist() == lengths[1].tolist(), name
    np.testing.assert_allclose(
        np.concatenate([e.dense for e in found]),
        np.concatenate([e.dense for e in wanted]),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": {"shop": pa.array([1, -2, 3])}}, "'shop': row 1: expected an integer from 0"),
        ({"columns": {"shop": np.array([1.0, 2.0, 3.0])}}, "'shop': row 0: expected an integer"),
        ({"columns": {"price": np.array([1.0, 2.0, math.nan])}}, "'price': row 2"),
        ({"columns": {"tags": pa.array([["a"], ["b"], ["x" * 257]])}}, "'tags': row 2"),
        ({"columns": {"tags": pa.array([["a"], None, ["a"] * 257])}}, "'tags': row 2"),
        ({"columns": {"tags": pa.array([["a"], None, [None]])}}, "'tags': row 2"),
        ({"shared": {"age": pa.array(["old"])}}, "'age': row 0: expected a number"),
        ({"shared": {"age": pa.array([1, 2])}}, "'age': expected 1 values, got 2"),
        ({"items": np.array([1, 2, 3])}, "'item_id': row 0: expected a string, got 1"),
        ({"users": pa.array([True])}, "'user_id': row 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(change: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {
        "n_items": np.array([3]),
        "ts_ms": np.array([0]),
        "items": pa.array(["a", "b", "c"]),
    }
    with pytest.raises(DataError) as caught:
        TableEncoder(SETTINGS, ENCODER).encode(TableValues(**values | change))
    assert words in str(caught.value)
