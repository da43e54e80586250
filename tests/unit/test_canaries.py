"""Labelled rows of frames: whole round trips, and nothing but SyncError for anything else."""

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freshrank import canaries, frames
from freshrank.canaries import Canary
from freshrank.errors import SyncError
from freshrank.features import Encoded, SlotIds
from freshrank.frames import Frame, FrameInfo

GOLDEN = Path(__file__).parents[1] / "golden"


def small() -> Canary:
    """Three rows, two tasks, a slot with an empty bag and ids at both ends, one without any."""
    tags = SlotIds(np.array([0, 2**64 - 1, 7], np.uint64), np.array([0, 2, 2, 3], np.int64))
    none = SlotIds(np.empty(0, np.uint64), np.zeros(4, np.int64))
    return Canary(
        labels=np.array([[1, 0], [0, 2.5], [0, 0]], np.float32),
        weights=np.array([[1, 0], [10, 1], [1, 1]], np.float32),
        values=Encoded(3, {"tags": tags, "none": none}, np.array([[0.5], [-1], [3]], np.float32)),
    )


def decoded(data: bytes) -> Canary:
    return canaries.decode(data, ["tags", "none"], n_dense=1, n_tasks=2)


def assert_same(one: Canary, other: Canary) -> None:
    pairs = [(one.labels, other.labels), (one.weights, other.weights)]
    pairs.append((one.values.dense, other.values.dense))
    assert (one.mean is None) == (other.mean is None)
    if one.mean is not None and other.mean is not None:
        pairs.append((one.mean, other.mean))
    assert list(one.values.slots) == list(other.values.slots)
    for name, column in one.values.slots.items():
        twin = other.values.slots[name]
        np.testing.assert_array_equal(column.ids, twin.ids)
        np.testing.assert_array_equal(column.offsets, twin.offsets)
    for a, b in pairs:
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def scored() -> Canary:
    """These rows with what versions made of two of them."""
    mean = np.array([[0.5, 1], [np.nan, np.nan], [0, 0.25]], np.float32)
    return replace(small(), mean=mean)


CANARIES = pytest.mark.parametrize("canary", [small(), scored()], ids=["rows", "scored"])


@CANARIES
def test_rows_come_back_whole(canary: Canary) -> None:
    assert_same(decoded(canaries.encode(canary)), canary)


@CANARIES
def test_golden_frame_with_rows_opens_for_ever(
    canary: Canary, request: pytest.FixtureRequest
) -> None:
    suffix = "" if canary.mean is None else "_scored"  # the field came later
    golden = GOLDEN / f"frames_v1_canary{suffix}.frame"
    info = FrameInfo("delta", 1, 2, dense_version=3, schema_hash="ab", published_at_ms=4)
    data = frames.encode(Frame(info, {}, b"not really ONNX", canaries.encode(canary)))
    if request.config.getoption("--update-golden"):
        golden.write_bytes(data)
    frame = frames.decode(golden.read_bytes())
    assert frame.dense == b"not really ONNX"
    assert frame.canary is not None
    assert_same(decoded(frame.canary), canary)
    assert data == golden.read_bytes()


@pytest.mark.parametrize(
    ("slots", "n_dense", "n_tasks"), [(["gone"], 1, 2), (["tags"], 2, 2), (["tags"], 1, 4)]
)
def test_rows_of_another_shape_are_refused(slots: list[str], n_dense: int, n_tasks: int) -> None:
    with pytest.raises(SyncError) as error:
        canaries.decode(canaries.encode(small()), slots, n_dense=n_dense, n_tasks=n_tasks)
    assert error.value.code == "malformed"


@pytest.mark.parametrize("offsets", [[], [0, 2, 3], [1, 2, 2, 3], [0, 2, 1, 3], [0, 2, 2, 4]])
def test_offsets_that_lie_are_refused(offsets: list[int]) -> None:
    wire = msgspec.msgpack.decode(canaries.encode(small()))
    wire["slots"]["tags"][1] = np.array(offsets, np.int64).tobytes()
    with pytest.raises(SyncError) as error:
        decoded(msgspec.msgpack.encode(wire))
    assert error.value.code == "malformed"


def test_scores_of_other_rows_are_refused() -> None:
    canary = replace(small(), mean=np.zeros((2, 2), np.float32))
    with pytest.raises(SyncError) as error:
        decoded(canaries.encode(canary))
    assert error.value.code == "malformed"


def test_damage_is_only_ever_a_sync_error() -> None:
    rng, data = random.Random(8), canaries.encode(scored())
    codes: list[str] = []
    for _ in range(3_000):
        damaged = bytearray(data[: rng.choice((len(data), rng.randrange(len(data))))])
        for _ in range(rng.randint(1, 4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            decoded(bytes(damaged))
        except SyncError as error:
            codes.append(error.code)
    assert set(codes) == {"malformed"}
    assert len(codes) > 1_000
