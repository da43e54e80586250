"""The feature encoder: every rule once, on values small enough to see."""

import math
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from freshrank.errors import ConfigError, DataError
from freshrank.features import FeatureEncoder, Problem, RequestValues, Slot
from freshrank.messages import Value
from freshrank.settings import Settings

Golden = Callable[[str, Any], None]

Spec = dict[str, Any]

USER: Spec = {"name": "user_id", "type": "id", "scope": "user"}
ITEM: Spec = {"name": "item_id", "type": "id", "scope": "item"}
ITEM_64: Spec = ITEM | {"key": "uint64"}
CATEGORY: Spec = {"name": "category", "type": "id", "scope": "item"}
DEVICE: Spec = {"name": "device", "type": "id", "scope": "context"}
SHOP: Spec = {"name": "shop", "type": "id", "scope": "candidate", "key": "uint64"}
TAGS: Spec = {"name": "tags", "type": "id_list", "scope": "item", "max_len": 2}
HOUR: Spec = {"name": "hour", "type": "bucket", "scope": "context", "boundaries": [6, 12, 18]}
PRICE: Spec = {
    "name": "price",
    "type": "dense",
    "scope": "item",
    "transform": "log1p",
    "default": 1.0,
}
AGE: Spec = {"name": "age", "type": "dense", "scope": "user"}
RECENT: Spec = {"name": "recent_items", "type": "recent", "event": "click", "max_len": 3}
USER_DEVICE: Spec = {"name": "user_x_device", "type": "cross", "of": ["user_id", "device"]}
TAGS_HOUR: Spec = {"name": "tags_x_hour", "type": "cross", "of": ["tags", "hour"]}
RECENT_ITEM: Spec = {"name": "recent_x_item", "type": "cross", "of": ["recent_items", "item_id"]}
ALL: list[Spec] = [
    *(USER, ITEM, CATEGORY, DEVICE, SHOP, TAGS, HOUR, PRICE, AGE, RECENT),
    *(USER_DEVICE, TAGS_HOUR, RECENT_ITEM),
]


def encoder(*features: Spec, **more: Any) -> FeatureEncoder:
    document = {"features": list(features), "tasks": [{"name": "click", "event": "click"}]}
    return FeatureEncoder(Settings.model_validate(document | more))


def ids(features: FeatureEncoder, slot: str, *requests: RequestValues) -> list[list[int]]:
    """The slot's ids, row by row."""
    column = features.encode(requests).slots[slot]
    assert column.ids.dtype == np.uint64
    assert column.offsets.dtype == np.int64
    rows = zip(column.offsets[:-1], column.offsets[1:], strict=True)
    return [column.ids[start:end].tolist() for start, end in rows]


def refusal(features: FeatureEncoder, request: RequestValues) -> str:
    with pytest.raises(DataError) as caught:
        features.encode([request])
    assert caught.value.code == "bad-value"
    return str(caught.value)


def test_ids_stay_those_of_the_golden_file(golden: Golden) -> None:
    features = encoder(*ALL, salt=17)
    request = RequestValues(
        items=["i1", "café"],
        user="u42",
        shared={"device": "ios", "hour": 12, "recent_items": ["i7", "i1"], "age": 33},
        columns={
            "category": ["jazz", None],
            "shop": [2**64 - 1, "12"],
            "tags": [["a", "b", "c"], []],
            "price": [9.5, None],
        },
    )
    encoded = features.encode([request])
    slots = {
        name: {"ids": [str(one) for one in column.ids.tolist()], "offsets": column.offsets.tolist()}
        for name, column in encoded.slots.items()
    }
    dense = [[round(float(one), 6) for one in row] for row in encoded.dense]
    golden(
        "features_v1.json",
        {"schema_hash": features.schema_hash, "slots": slots, "dense": dense},
    )


def test_the_encoder_describes_its_slots_tables_and_dense_features() -> None:
    item = ITEM | {"admission": {"min_count": 3, "probability": 0.5}, "expire": "1500ms"}
    features = encoder(PRICE, item, RECENT, RECENT_ITEM, USER_DEVICE, USER, DEVICE, TAGS)
    assert features.slots == (
        Slot("item_id", "item_id", "sum", False),
        Slot("recent_items", "item_id", "mean", True),
        Slot("recent_x_item", "recent_x_item", "mean", False),
        Slot("user_x_device", "user_x_device", "mean", True),
        Slot("user_id", "user_id", "sum", True),
        Slot("device", "device", "sum", True),
        Slot("tags", "tags", "mean", False),
    )
    names = [(table.name, table.index) for table in features.tables]
    assert names == [
        (name, index)
        for index, name in enumerate(
            ["item_id", "recent_x_item", "user_x_device", "user_id", "device", "tags"]
        )
    ]
    first = features.tables[0]
    assert (first.dim, first.min_count, first.probability, first.ttl_s) == (16, 3, 0.5, 2)
    assert features.tables[1].ttl_s == 0
    assert features.dense_names == ("price",)
    assert [recent.name for recent in features.recent] == ["recent_items"]


def test_logistic_tables_hold_first_order_weights_only() -> None:
    features = encoder(USER, ITEM, model={"kind": "logistic"})
    assert [table.dim for table in features.tables] == [0, 0]


def test_uint64_ids_are_the_numbers_themselves() -> None:
    features = encoder(ITEM_64)
    numbers = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    request = RequestValues(items=[features.canonical_item(number) for number in numbers])
    assert ids(features, "item_id", request) == [[number] for number in numbers]


def test_uint64_features_take_integers_and_their_decimal_text() -> None:
    columns: list[list[Value]] = [
        [7, "7", "18446744073709551615"],
        [7, 7, 2**64 - 1],
        ["7", "7", "18446744073709551615"],
    ]
    for column in columns:
        request = RequestValues(items=["a", "b", "c"], columns={"shop": column})
        assert ids(encoder(ITEM, SHOP), "shop", request) == [[7], [7], [2**64 - 1]]


@pytest.mark.parametrize(
    "value",
    [-1, 2**64, "007", "+7", "-7", " 7", "7.0", "", "18446744073709551616", 7.0, True, "\u0667"],
)
def test_what_is_no_uint64_is_refused(value: Any) -> None:
    features = encoder(ITEM_64, SHOP)
    with pytest.raises(DataError) as caught:
        features.canonical_item(value)
    assert caught.value.code == "bad-id"
    assert "shop" in refusal(features, RequestValues(items=["1"], columns={"shop": [value]}))
    assert [one.pointer for one in features.check({"shop": value}, ["candidate"])] == ["shop"]


def test_strings_equal_in_nfc_are_one_id() -> None:
    features = encoder(ITEM, CATEGORY)
    composed, decomposed = "Caf\u00e9", unicodedata.normalize("NFD", "Caf\u00e9")
    assert composed != decomposed
    request = RequestValues(items=["a", "b"], columns={"category": [composed, decomposed]})
    first, second = ids(features, "category", request)
    assert first == second
    assert features.canonical_item(decomposed) == composed


def test_the_salt_changes_every_string_id() -> None:
    request = RequestValues(items=["a", "b"])
    plain = ids(encoder(ITEM), "item_id", request)
    salted = ids(encoder(ITEM, salt=1), "item_id", request)
    assert plain[0] != salted[0]
    assert plain[1] != salted[1]


@pytest.mark.parametrize("value", ["x" * 257, "\ud800", "Ω\udfff", 7, True, ["a"], "\u0958" * 256])
def test_what_is_no_string_key_is_refused(value: Any) -> None:
    features = encoder(ITEM, USER, CATEGORY)
    for canonical in (features.canonical_item, features.canonical_user):
        with pytest.raises(DataError, match="expected"):
            canonical(value)
    refusal(features, RequestValues(items=["a"], columns={"category": [value]}))
    assert len(features.check({"category": value}, ["item"])) == 1


def test_the_longest_string_is_accepted() -> None:
    features = encoder(ITEM, CATEGORY)
    assert features.canonical_item("x" * 256) == "x" * 256
    assert features.check({"category": "é" * 256}, ["item"]) == []


def test_an_empty_identity_is_refused() -> None:
    with pytest.raises(DataError, match="non-empty"):
        encoder(ITEM).canonical_item("")


def test_users_are_strings_where_no_user_feature_is_declared() -> None:
    features = encoder(ITEM_64)
    assert features.canonical_user("u1") == "u1"
    with pytest.raises(DataError, match="expected a string"):
        features.canonical_user(7)


def test_a_missing_value_has_no_id_and_a_dense_one_its_default() -> None:
    features = encoder(*ALL)
    nothing = RequestValues(items=["a", "b"])
    none = RequestValues(
        items=["a", "b"],
        shared=dict.fromkeys(("device", "hour", "recent_items", "age")),
        columns={name: [None, None] for name in ("category", "shop", "tags", "price")},
    )
    for request in (nothing, none):
        encoded = features.encode([request])
        for name, column in encoded.slots.items():
            assert len(column.ids) == (2 if name == "item_id" else 0), name
            assert column.offsets.tolist() == ([0, 1, 2] if name == "item_id" else [0, 0, 0])
        expected = np.array([[math.log1p(1.0), 0.0]] * 2, np.float32)
        np.testing.assert_array_equal(encoded.dense, expected)


def test_no_items_and_no_requests_make_no_rows() -> None:
    features = encoder(*ALL)
    for requests in ([], [RequestValues(items=[], user="u", shared={"hour": 3, "device": "ios"})]):
        encoded = features.encode(requests)
        assert encoded.n_rows == 0
        assert encoded.dense.shape == (0, 2)
        assert [column.offsets.tolist() for column in encoded.slots.values()] == [[0]] * 11


def test_lists_are_cut_to_their_first_entries() -> None:
    features = encoder(ITEM, TAGS)
    long = RequestValues(items=["a"], columns={"tags": [["x", "y", "z"]]})
    short = RequestValues(items=["a"], columns={"tags": [["x", "y"]]})
    assert ids(features, "tags", long) == ids(features, "tags", short)


def test_bucket_boundaries_belong_to_the_upper_bucket() -> None:
    hours = [-1, 5.9, 6, 11, 12, 18, 99]
    requests = [RequestValues(items=["a"], shared={"hour": hour}) for hour in hours]
    assert ids(encoder(ITEM, HOUR), "hour", *requests) == [[0], [0], [1], [1], [2], [3], [3]]


def test_dense_values_are_transformed() -> None:
    request = RequestValues(
        items=["a", "b", "c"], shared={"age": 7}, columns={"price": [0, 9, 2.5]}
    )
    dense = encoder(ITEM, PRICE, AGE).encode([request]).dense
    expected = [[math.log1p(price), 7.0] for price in (0, 9, 2.5)]
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def test_log1p_takes_numbers_below_0_as_0_and_check_reports_them() -> None:
    features = encoder(ITEM, PRICE)
    assert features.encode([RequestValues(items=["a"], columns={"price": [-3]})]).dense == [[0.0]]
    expected = Problem("price", "expected a number from 0, got -3")
    assert features.check({"price": -3}, ["item"]) == [expected]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400, True, "3", [3]])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    features = encoder(ITEM, AGE, HOUR)
    for name in ("age", "hour"):
        assert name in refusal(features, RequestValues(items=["a"], shared={name: value}))
    assert len(features.check({"age": value}, ["user"])) == 1
    assert len(features.check({"hour": value}, ["context"])) == 1


def test_recent_items_have_the_ids_of_their_table() -> None:
    for item, names in ((ITEM, ["i1", "i2", "i3", "i4"]), (ITEM_64, ["1", "2", "3", "4"])):
        features = encoder(item, RECENT)
        recent_names: list[int | float | str] = [*names]
        request = RequestValues(items=names, shared={"recent_items": recent_names})
        own = ids(features, "item_id", request)
        recent = ids(features, "recent_items", request)
        assert recent == [[one for row in own[:3] for one in row]] * 4


RATE = {"name": "ctr", "type": "rate", "event": "click", "prior": 0.2}
COUNT = {"name": "shown", "type": "count"}
SEEN = {"name": "ago", "type": "seen", "event": "click", "value": "ago", "within": "99s"}
NEW = {"name": "new", "type": "seen", "event": "click", "value": "age", "within": "99s"}


def test_live_values_enter_the_net_relative_to_knowing_nothing() -> None:
    features = encoder(USER, ITEM, RATE, COUNT, SEEN, NEW)
    assert features.dense_names == ("ctr", "shown", "ago", "new")
    assert [slot.name for slot in features.slots] == ["user_id", "item_id"]
    columns: dict[str, list[Any]] = {
        "ctr": [0.2, 0.5, None, 1.0],
        "shown": [0, 3.0, None, 0],
        "ago": [0, 9.0, None, 1e9],
        "new": [0, 9.0, None, 1e9],
    }
    dense = features.encode([RequestValues(items=["a", "b", "c", "d"], columns=columns)]).dense
    expected = np.array(
        [
            [0.0, 0.0, 1.0, 1.0],
            [math.log(4), math.log(4), 0.5, 0.5],
            [0.0, 0.0, 0.0, 1.0],
            [math.log(999_999 * 4), 0.0, 0.0, 0.0],
        ]
    )
    np.testing.assert_allclose(dense.astype(np.float64), expected, rtol=1e-5, atol=1e-6)
    problem = Problem("ctr", "'ctr' is filled in by freshrank: do not send it")
    assert features.check({"ctr": 0.5}, ["item"]) == [problem]


def test_a_cross_pools_as_it_is_told() -> None:
    for pooling in ("mean", "sum"):
        features = encoder(ITEM, TAGS, HOUR, TAGS_HOUR | {"pooling": pooling})
        assert features.slots[-1].pooling == pooling


def test_a_cross_has_one_id_per_pair() -> None:
    features = encoder(ITEM, TAGS, HOUR, RECENT, TAGS_HOUR, RECENT_ITEM)
    request = RequestValues(
        items=["a", "b"],
        shared={"hour": 7, "recent_items": ["c", "d"]},
        columns={"tags": [["x", "y"], ["y"]]},
    )
    (x_7, y_7), (also_y_7,) = ids(features, "tags_x_hour", request)
    assert y_7 == also_y_7 != x_7
    pairs = [pair for row in ids(features, "recent_x_item", request) for pair in row]
    assert len(set(pairs)) == 4


def test_a_cross_of_swapped_features_has_other_ids() -> None:
    swapped = USER_DEVICE | {"name": "swapped", "of": ["device", "user_id"]}
    features = encoder(USER, ITEM, DEVICE, USER_DEVICE, swapped)
    request = RequestValues(items=["a"], user="u", shared={"device": "ios"})
    assert ids(features, "user_x_device", request) != ids(features, "swapped", request)


def test_other_features_and_their_order_leave_ids_alone() -> None:
    request = RequestValues(
        items=["a", "b"],
        user="u",
        shared={"hour": 7, "device": "ios", "recent_items": ["b"]},
        columns={"tags": [["x"], ["y", "z"]], "shop": [1, 2]},
    )
    forward, backward = encoder(*ALL), encoder(*reversed(ALL))
    for slot in forward.slots:
        assert ids(forward, slot.name, request) == ids(backward, slot.name, request), slot.name
    few = encoder(USER, DEVICE, USER_DEVICE)
    assert ids(few, "user_x_device", request) == ids(forward, "user_x_device", request)
    assert forward.schema_hash != backward.schema_hash


def test_a_column_needs_one_value_per_item() -> None:
    request = RequestValues(items=["a", "b"], columns={"category": ["x"]})
    assert "expected 2 values, got 1" in refusal(encoder(ITEM, CATEGORY), request)


def test_the_schema_hash_follows_what_rows_mean() -> None:
    base = encoder(USER, ITEM).schema_hash
    assert base == encoder(USER, ITEM, sync={"sparse_every": "5s"}).schema_hash
    policy = {"admission": {"min_count": 5}, "expire": "1h", "min_rows": 9, "max_bytes": "1GiB"}
    assert base == encoder(USER, ITEM | policy).schema_hash
    others = {
        encoder(USER, ITEM, salt=1).schema_hash,
        encoder(USER, ITEM | {"key": "uint64"}).schema_hash,
        encoder(USER, ITEM, model={"hidden": [8]}).schema_hash,
        encoder(USER, ITEM, tasks=[{"name": "buy", "event": "buy"}]).schema_hash,
    }
    assert len(others | {base}) == 5
    assert len(base) == 16


def test_check_names_what_is_wrong_and_what_is_expected() -> None:
    features = encoder(*ALL)
    values: dict[str, Value] = {
        "categry": "jazz",
        "hour": 7,
        "category": 7,
        "item_id": "i1",
        "recent_items": ["i1"],
        "tags": ["a", 7],
        "price": None,
        "a/b~c": 1,
    }
    assert features.check(values, ["item", "candidate"]) == [
        Problem("categry", "unknown feature 'categry'; did you mean 'category'?"),
        Problem("hour", "'hour' is of scope context, expected item or candidate"),
        Problem("category", "expected a string, got 7"),
        Problem("item_id", "'item_id' is filled in by freshrank: do not send it"),
        Problem("recent_items", "'recent_items' is filled in by freshrank: do not send it"),
        Problem("tags", "entry 1: expected a string, got 7"),
        Problem("a~1b~0c", "unknown feature 'a/b~c'"),
    ]


@pytest.mark.parametrize("value", ["abc", {"a": 1}, ["x"] * 257, ["x", None], ["x", ["y"]]])
def test_what_is_no_list_of_keys_is_refused(value: Any) -> None:
    features = encoder(ITEM, TAGS | {"max_len": 256})
    assert len(features.check({"tags": value}, ["item"])) == 1
    refusal(features, RequestValues(items=["a"], columns={"tags": [value]}))


def test_check_stops_before_a_hostile_body_costs_seconds() -> None:
    features = encoder(ITEM, CATEGORY)
    values = {f"categor{index}": 1 for index in range(100_000)}
    assert len(features.check(values, ["item"])) == 20
    (problem,) = features.check({"x" * 1_000_000: 1}, ["item"])
    assert len(problem.detail) < 100


def test_an_encoder_refuses_references_that_do_not_hold() -> None:
    with pytest.raises(ConfigError, match=r"features\.1\.of\.0: unknown feature 'user_id'"):
        encoder(ITEM, {"name": "x", "type": "cross", "of": ["user_id", "item_id"]})
