"""Messages: round trips, golden bytes of version 1, and only DataError for anything else."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshrank.errors import DataError
from freshrank.messages import (
    VERSION,
    Action,
    Control,
    DeadLetter,
    Entity,
    Impression,
    Message,
    Tick,
    decode,
    decode_all,
    decode_noting,
    encode,
    entity_key,
)

GOLDEN = Path(__file__).parents[1] / "golden"

# One of each type, every field set to something that is not its default.
EXAMPLES: dict[str, Message] = {
    "impression": Impression(
        event_id="i-1",
        ts_ms=1_790_000_000_000,
        received_at_ms=1_790_000_000_007,
        request_id="r-1",
        items=["7", "18446744073709551615"],
        user="ünal",
        shared={"user_id": "ünal", "hour": 23, "mobile": True, "recent": [1, "b", 0.5], "no": None},
        columns={"price": [9.5, None], "tags": [["x"], []]},
        served={"click": [0.125, 0.5]},
        positions=[1, 2],
        version="d3-s41",
        source="client",
        part=1,
        parts=2,
    ),
    "action": Action(
        event_id="a-1",
        ts_ms=1_790_000_001_000,
        received_at_ms=1_790_000_001_007,
        request_id="r-1",
        item="7",
        event="buy",
        user="ünal",
        value=19.75,
    ),
    "entity": Entity(
        event_id="e-1",
        ts_ms=1_790_000_002_000,
        received_at_ms=1_790_000_002_007,
        scope="user",
        id="ünal",
        features={"age": 44, "plan": "gold", "taste": ["jazz", 3]},
    ),
    "control": Control(
        event_id="c-1",
        ts_ms=1_790_000_003_000,
        received_at_ms=1_790_000_003_007,
        command="resume",
        reason="maintenance is over",
    ),
    "control_rollback": Control(
        event_id="c-2",
        ts_ms=1_790_000_004_000,
        received_at_ms=1_790_000_004_000,
        command="rollback",
        reason="poison",
        to="kept-good",
        relearn=True,
    ),
    "control_forget": Control(
        event_id="c-3",
        ts_ms=1_790_000_005_000,
        received_at_ms=1_790_000_005_000,
        command="forget",
        slot="user_id",
        id=(1 << 64) - 1,
        marks={"freshrank.actions:0": 7, "freshrank.actions:1": 0},
    ),
    "tick": Tick(event_id="t-1", ts_ms=1_790_000_004_000, received_at_ms=1_790_000_004_007),
}


def fields_of(value: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.msgpack.decode(value)
    return fields


# Fields were added since.
WRITTEN_BEFORE = ("control", "control_rollback")


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_message_is_read_for_ever(name: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"messages_v1_{name}.msgpack"
    if request.config.getoption("--update-golden") and name not in WRITTEN_BEFORE:
        path.write_bytes(encode(EXAMPLES[name]))
    assert decode(path.read_bytes()) == EXAMPLES[name]
    if name not in WRITTEN_BEFORE:
        assert encode(EXAMPLES[name]) == path.read_bytes()


def test_golden_dead_letter_is_read_for_ever(request: pytest.FixtureRequest) -> None:
    path = GOLDEN / "dead_letter_v1.msgpack"
    letter = DeadLetter(
        topic="freshrank.actions",
        partition=1,
        offset=41,
        code="malformed",
        reason="not a freshrank message: ünknown",
        value=b"\xff\x00rubbish",
    )
    if request.config.getoption("--update-golden"):
        path.write_bytes(encode(letter))
    assert msgspec.msgpack.decode(path.read_bytes(), type=DeadLetter) == letter
    assert encode(letter) == path.read_bytes()


def test_every_message_type_has_a_golden_file() -> None:
    assert {type(message) for message in EXAMPLES.values()} == set(Message.__args__)
    assert {path.name for path in GOLDEN.glob("messages_v1_*.msgpack")} == {
        f"messages_v1_{name}.msgpack" for name in EXAMPLES
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_envelope_names_version_type_identity_and_times(name: str) -> None:
    fields = fields_of(encode(EXAMPLES[name]))
    assert fields["v"] == VERSION == 1
    assert fields["type"] == name.split("_")[0]
    assert fields["event_id"] == EXAMPLES[name].event_id
    assert fields["ts"] == EXAMPLES[name].ts_ms
    assert fields["received_at"] == EXAMPLES[name].received_at_ms


texts = st.text(max_size=12)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False)
values = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    floats,
    texts,
    st.lists(integers | floats | texts, max_size=4),
)
features = st.dictionaries(texts, values, max_size=4)
envelope: dict[str, st.SearchStrategy[Any]] = {
    "event_id": texts,
    "ts_ms": st.integers(-(2**63), 2**63 - 1),
    "received_at_ms": st.integers(-(2**63), 2**63 - 1),
}
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Impression,
        **envelope,
        request_id=texts,
        items=st.lists(texts, max_size=4),
        user=st.none() | texts,
        shared=features,
        columns=st.dictionaries(texts, st.lists(values, max_size=4), max_size=3),
        served=st.dictionaries(texts, st.lists(floats, max_size=4), max_size=3),
        positions=st.lists(st.integers(1, 1_000), max_size=4),
        version=texts,
        source=st.sampled_from(["rank", "client"]),
        part=st.integers(0, 100),
        parts=st.integers(1, 100),
    ),
    st.builds(
        Action,
        **envelope,
        request_id=texts,
        item=texts,
        event=texts,
        user=st.none() | texts,
        value=floats,
    ),
    st.builds(
        Entity, **envelope, scope=st.sampled_from(["item", "user"]), id=texts, features=features
    ),
    st.builds(Control, **envelope, command=st.sampled_from(["pause", "resume"]), reason=texts),
    st.builds(Tick, **envelope),
)


@settings(max_examples=300, deadline=None)
@given(messages)
def test_decode_undoes_encode(message: Message) -> None:
    decoded = decode(encode(message))
    assert decoded == message
    assert repr(decoded) == repr(message)  # 1, 1.0 and True are equal, and not the same


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_data_errors(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(data)


def test_damaged_messages_are_read_or_are_data_errors() -> None:
    rng = random.Random(905)
    codes: list[str] = []
    for _ in range(4_000):
        data = bytearray(encode(rng.choice(list(EXAMPLES.values()))))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            decode(bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data))
        except DataError as error:
            codes.append(error.code)
    assert set(codes) == {"malformed", "newer-version"}
    assert len(codes) > 1_000


def test_deep_nesting_is_a_data_error() -> None:
    with pytest.raises(DataError):
        decode(b"\x91" * 100_000 + b"\xc0")
    tail = encode(EXAMPLES["tick"])[1:]
    with pytest.raises(DataError):
        decode(b"\x86\xa1x" + b"\x91" * 100_000 + b"\xc0" + tail)


@pytest.mark.parametrize("name", EXAMPLES)
def test_newer_version_is_refused_by_its_own_code(name: str) -> None:
    newer = fields_of(encode(EXAMPLES[name])) | {"v": VERSION + 1}
    with pytest.raises(DataError, match="version 2") as error:
        decode(msgspec.msgpack.encode(newer))
    assert error.value.code == "newer-version"


def test_newer_version_that_this_one_cannot_read_is_told_from_garbage() -> None:
    fields = fields_of(encode(EXAMPLES["action"]))
    for change in ({"type": "unheard-of"}, {"item": {"id": 7}}, {"ts": "noon"}):
        with pytest.raises(DataError) as newer:
            decode(msgspec.msgpack.encode(fields | change | {"v": 3}))
        assert newer.value.code == "newer-version"
        with pytest.raises(DataError) as malformed:
            decode(msgspec.msgpack.encode(fields | change))
        assert malformed.value.code == "malformed"


@pytest.mark.parametrize("name", EXAMPLES)
def test_unknown_fields_are_skipped(name: str) -> None:
    later = fields_of(encode(EXAMPLES[name])) | {"added_later": {"deep": [1, 2]}}
    record = msgspec.msgpack.encode(later)
    assert decode(record) == EXAMPLES[name]
    assert type(decode(record)) is type(EXAMPLES[name])
    known = encode(EXAMPLES[name])
    assert decode_noting(record) == (EXAMPLES[name], True)
    assert decode_noting(known) == (EXAMPLES[name], False)
    assert decode_all([known, record, known]) == ([EXAMPLES[name]] * 3, 1)


def test_missing_field_is_named() -> None:
    fields = fields_of(encode(EXAMPLES["action"]))
    del fields["item"]
    with pytest.raises(DataError, match="item") as error:
        decode(msgspec.msgpack.encode(fields))
    assert error.value.code == "malformed"


def test_fields_with_a_default_may_be_missing() -> None:
    short = {
        "type": "action",
        "event_id": "e",
        "ts": 1,
        "received_at": 2,
        "request_id": "r",
        "item": "i",
        "event": "click",
    }
    message = decode(msgspec.msgpack.encode(short))
    assert message == Action(
        event_id="e", ts_ms=1, received_at_ms=2, request_id="r", item="i", event="click"
    )


def test_entity_key_keeps_scopes_apart() -> None:
    assert entity_key("item", "7") == b"item:7"
    assert entity_key("user", "ü") == "user:ü".encode()
