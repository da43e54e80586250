"""The encoder against a reference that takes one feature of one row at a time."""

import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import hash_strings, mix_ids
from freshrank.errors import DataError
from freshrank.features import Encoded, FeatureEncoder, RequestValues
from freshrank.settings import CrossFeature, Settings

SALT = 5
SETTINGS = Settings.model_validate(
    {
        "salt": SALT,
        "features": [
            {"name": "user_id", "type": "id", "scope": "user", "key": "uint64"},
            {"name": "item_id", "type": "id", "scope": "item"},
            {"name": "shop", "type": "id", "scope": "candidate", "key": "uint64"},
            {"name": "tags", "type": "id_list", "scope": "item", "max_len": 3},
            {"name": "groups", "type": "id_list", "scope": "user", "key": "uint64", "max_len": 2},
            {"name": "hour", "type": "bucket", "scope": "context", "boundaries": [6, 12.5]},
            {"name": "size", "type": "bucket", "scope": "item", "boundaries": [0]},
            {"name": "price", "type": "dense", "scope": "item", "transform": "log1p"},
            {"name": "age", "type": "dense", "scope": "user", "default": 30.0},
            {"name": "recent_items", "type": "recent", "event": "click", "max_len": 2},
            {"name": "groups_x_hour", "type": "cross", "of": ["groups", "hour"]},
            {"name": "tags_x_groups", "type": "cross", "of": ["tags", "groups"]},
            {"name": "recent_x_item", "type": "cross", "of": ["recent_items", "item_id"]},
        ],
        "tasks": [{"name": "click", "event": "click"}],
    }
)
CROSSES = {f.name: f.of for f in SETTINGS.features if isinstance(f, CrossFeature)}
ENCODER = FeatureEncoder(SETTINGS)
ENCODER_OF_NUMBERS = FeatureEncoder(
    Settings.model_validate(
        {
            "features": [{"name": "item_id", "type": "id", "scope": "item", "key": "uint64"}],
            "tasks": [{"name": "click", "event": "click"}],
        }
    )
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
uint64s = st.integers(0, 2**64 - 1)
numbers = st.integers(-50, 50) | st.floats(-1e30, 1e30)


@st.composite
def requests(draw: st.DrawFn) -> RequestValues:
    n_items = draw(st.integers(0, 4))

    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | values)

    columns = {
        "shop": uint64s | uint64s.map(str),
        "tags": st.lists(texts, max_size=5),
        "size": numbers,
        "price": numbers,
    }
    shared = {
        "groups": st.lists(uint64s, max_size=4),
        "hour": numbers,
        "age": numbers,
        "recent_items": st.lists(texts, max_size=4),
    }
    return RequestValues(
        items=[ENCODER.canonical_item(draw(texts)) for _ in range(n_items)],
        user=maybe(uint64s.map(str)),
        shared={name: maybe(values) for name, values in shared.items() if draw(st.booleans())},
        columns={
            name: [maybe(values) for _ in range(n_items)]
            for name, values in columns.items()
            if draw(st.booleans())
        },
    )


def rows_of(encoded: Encoded) -> list[tuple[dict[str, list[int]], list[float]]]:
    """Per row: the ids of every slot, and the dense values."""
    return [
        (
            {
                name: column.ids[column.offsets[row] : column.offsets[row + 1]].tolist()
                for name, column in encoded.slots.items()
            },
            encoded.dense[row].tolist(),
        )
        for row in range(encoded.n_rows)
    ]


def text_id(value: Any) -> int:
    return int(hash_strings([unicodedata.normalize("NFC", value)], SALT)[0])


def expected_ids(name: str, raw: Mapping[str, Any]) -> list[int]:
    """Ids of one feature in one row, straight from the rules."""
    value = raw.get(name)
    if name in CROSSES:
        left, right = CROSSES[name]
        return [
            int(mix_ids(np.array([one], np.uint64), np.array([other], np.uint64), SALT)[0])
            for one in expected_ids(left, raw)
            for other in expected_ids(right, raw)
        ]
    if value is None:
        return []
    if name in ("user_id", "shop"):
        return [int(value)]
    if name == "item_id":
        return [text_id(value)]
    if name == "tags":
        return [text_id(one) for one in value[:3]]
    if name == "recent_items":
        return [text_id(one) for one in value[:2]]
    if name == "groups":
        return [int(one) for one in value[:2]]
    boundaries: list[float] = [6, 12.5] if name == "hour" else [0]
    return [len([boundary for boundary in boundaries if boundary <= value])]


def expected_dense(raw: Mapping[str, Any]) -> list[float]:
    price, age = raw.get("price"), raw.get("age")
    logarithm = math.log1p(max(0.0, price or 0.0))
    return [float(np.float32(logarithm)), float(np.float32(30.0 if age is None else age))]


@given(st.lists(requests(), max_size=4))
def test_rows_equal_those_of_the_reference(batch: list[RequestValues]) -> None:
    rows = iter(rows_of(ENCODER.encode(batch)))
    for request in batch:
        for index, item in enumerate(request.items):
            columns = {name: values[index] for name, values in request.columns.items()}
            raw = {"user_id": request.user, "item_id": item, **request.shared, **columns}
            slots, dense = next(rows)
            assert slots == {slot.name: expected_ids(slot.name, raw) for slot in ENCODER.slots}
            np.testing.assert_allclose(dense, expected_dense(raw), rtol=1e-6)
    assert next(rows, None) is None


@given(st.lists(requests(), max_size=5))
def test_many_requests_encode_like_each_alone(batch: list[RequestValues]) -> None:
    together = rows_of(ENCODER.encode(batch))
    alone = [row for request in batch for row in rows_of(ENCODER.encode([request]))]
    assert together == alone


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
scopes = st.sampled_from(["shop", "tags", "size", "price", "groups", "hour", "age"])


def refusal_code(call: Callable[[], object]) -> str | None:
    """The code of the DataError that the call raises; every other error is the test's failure."""
    try:
        call()
    except DataError as error:
        return error.code
    return None


@given(scopes, anything)
@settings(max_examples=300)
def test_encode_takes_whatever_check_passes(name: str, value: Any) -> None:
    problems = ENCODER.check({name: value}, ["user", "item", "candidate", "context"])
    request = RequestValues(items=["a"], shared={name: value}, columns={name: [value]})
    code = refusal_code(lambda: ENCODER.encode([request]))
    assert code in ((None, "bad-value") if problems else (None,))


@given(st.text(st.characters(codec=None), max_size=300) | st.integers())
def test_canonical_text_is_canonical_again(value: str | int) -> None:
    for canonical in (ENCODER.canonical_item, ENCODER.canonical_user):
        code = refusal_code(lambda canonical=canonical: canonical(value))  # type: ignore[misc]
        assert code in (None, "bad-id")
        if code is None:
            text = canonical(value)
            assert canonical(text) == text


almost_numbers = st.text("0179_ +-", max_size=3)


@given(st.lists(uint64s | uint64s.map(str) | almost_numbers | anything, max_size=6))
def test_items_that_are_plain_are_those_one_by_one(items: list[Any]) -> None:
    for encoder in (ENCODER, ENCODER_OF_NUMBERS):
        plain = encoder.plain_items(items)
        if plain is not None:
            assert plain == [encoder.canonical_item(one) for one in items]


@given(st.lists(st.text("ab7_-", min_size=1)), st.lists(uint64s))
def test_ids_as_shops_have_them_are_plain(names: list[str], numbers: list[int]) -> None:
    texts = list(map(str, numbers))
    assert ENCODER.plain_items(names) == names
    assert ENCODER_OF_NUMBERS.plain_items(texts) == texts
    assert ENCODER_OF_NUMBERS.plain_items(numbers) == texts


@given(uint64s, uint64s)
def test_uint64_ids_are_one_to_one(first: int, second: int) -> None:
    batch = [RequestValues(items=["a"], columns={"shop": [value]}) for value in (first, second)]
    assert ENCODER.encode(batch).slots["shop"].ids.tolist() == [first, second]
