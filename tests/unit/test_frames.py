"""Parameter frames: whole round trips, and nothing but SyncError for anything else."""

import random
import struct
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshrank import frames
from freshrank.errors import SyncError
from freshrank.frames import (
    Frame,
    FrameInfo,
    Outcome,
    TableRows,
    decode,
    decode_info,
    encode,
    read_info,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "frames_v1.frame"


def ids(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def small_frame() -> Frame:
    """Every field, an empty table, an odd width, ids at both ends, a dense net of odd length."""
    info = FrameInfo(
        kind="base",
        epoch=3,
        seq=41,
        dense_version=7,
        schema_hash="5ca1ab1e",
        published_at_ms=1_790_000_000_000,
        watermark_ms=1_789_999_999_000,
        examples=123_456,
        offsets={"freshrank.actions:0": 17, "freshrank.impressions:0": 5},
        outcomes=[Outcome("freshrank.actions", 0, 16, "duplicate")],
        action_appended_at_ms=[1_789_999_999_100],
        impression_appended_at_ms=[1_789_999_999_000, 1_789_999_999_050],
        metrics={"click.auc": 0.75},
        untrained=False,
    )
    rows = np.array([[0.0, -1.5, 3.25], [1e-30, 65504.0, -0.0]], dtype=np.float32)
    tables = {
        "user": TableRows(ids(0, 2**64 - 1), rows, ids(1, 2, 3)),
        "item": TableRows(ids(), np.zeros((0, 5), dtype=np.float32), ids()),
    }
    return Frame(info, tables, dense=b"not really ONNX")


def assert_same(one: Frame, other: Frame) -> None:
    assert one.info == other.info
    assert one.dense == other.dense
    assert list(one.tables) == list(other.tables)
    for name, table in one.tables.items():
        twin = other.tables[name]
        for a, b in (
            (table.keys, twin.keys),
            (table.rows, twin.rows),
            (table.tombstones, twin.tombstones),
        ):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.tobytes() == b.tobytes()


def sealed(data: bytearray) -> bytes:
    """`data` with both checksums made right again, as a writer of another version would."""
    n_header = struct.unpack_from("<Q", data, 16)[0]
    end = 24 + (n_header + 7) // 8 * 8
    data[end : end + 16] = blake2b(data[:end], digest_size=16).digest()
    data[-16:] = blake2b(data[:-16], digest_size=16).digest()
    return bytes(data)


def with_header(header: dict[str, Any], sections: bytes = b"") -> bytes:
    """A frame around any header, with right lengths and checksums."""
    body = msgspec.msgpack.encode(header)
    padded = body + bytes(-len(body) % 8)
    n_bytes = 24 + len(padded) + 16 + len(sections) + 16
    prefix = struct.pack("<4sHHQQ", b"FRPF", 1, 0, n_bytes, len(body))
    return sealed(bytearray(prefix + padded + bytes(16) + sections + bytes(16)))


def header_of(frame: Frame) -> dict[str, Any]:
    data = encode(frame)
    n_header = struct.unpack_from("<Q", data, 16)[0]
    header: dict[str, Any] = msgspec.msgpack.decode(data[24 : 24 + n_header])
    return header


def code_of(data: bytes) -> str:
    with pytest.raises(SyncError) as error:
        decode(data)
    return error.value.code


def info_at_the_beginning_of(data: bytes) -> FrameInfo:
    return read_info(lambda n_bytes: data[:n_bytes])


@pytest.fixture(scope="module")
def small() -> bytes:
    return encode(small_frame())


def test_frame_comes_back_whole(small: bytes) -> None:
    assert_same(decode(small), small_frame())


def test_frame_without_tables_and_dense_comes_back() -> None:
    frame = Frame(FrameInfo("delta", 1, 1, 1, "", 0), tables={})
    assert_same(decode(encode(frame)), frame)


def test_info_is_read_alone(small: bytes) -> None:
    assert decode_info(small) == small_frame().info
    assert info_at_the_beginning_of(small) == small_frame().info


@pytest.mark.parametrize("n_outcomes", [0, 10_000])
def test_info_is_read_from_the_beginning_of_a_frame(n_outcomes: int) -> None:
    info = replace(small_frame().info, outcomes=[Outcome("t", 0, 7, "expired")] * n_outcomes)
    keys = np.arange(1 << 16, dtype=np.uint64)
    rows = np.ones((len(keys), 17), np.float32)
    data = encode(replace(small_frame(), info=info, tables={"t": TableRows(keys, rows, ids())}))
    asked: list[int] = []

    def beginning(n_bytes: int) -> bytes:
        asked.append(n_bytes)
        return data[:n_bytes]

    assert read_info(beginning) == info
    n_header = struct.unpack_from("<Q", data, 16)[0]
    assert asked[-1] < max(1 << 15, 4 * n_header) < len(data)


def test_golden_frame_opens_for_ever(request: pytest.FixtureRequest, small: bytes) -> None:
    if request.config.getoption("--update-golden"):
        GOLDEN.write_bytes(small)
    assert_same(decode(GOLDEN.read_bytes()), small_frame())
    assert encode(small_frame()) == GOLDEN.read_bytes()


def test_golden_delta_opens_for_ever(request: pytest.FixtureRequest) -> None:
    """Rows of two widths, a table of tombstones alone, and no net."""
    gone = TableRows(ids(), np.zeros((0, 2), dtype=np.float32), ids(0, 7, 2**64 - 1))
    rows = np.array([[0.5], [-2.0]], dtype=np.float32)
    info = FrameInfo("delta", 3, 42, 7, "5ca1ab1e", 1_790_000_001_000, offsets={"a:0": 18})
    delta = Frame(info, {"user": gone, "item": TableRows(ids(5, 6), rows, ids())})
    path = GOLDEN.with_name("frames_v1_delta.frame")
    if request.config.getoption("--update-golden"):
        path.write_bytes(encode(delta))
    assert_same(decode(path.read_bytes()), delta)
    assert encode(delta) == path.read_bytes()


def test_layout_is_as_documented(small: bytes) -> None:
    magic, version, zero, n_bytes, n_header = struct.unpack_from("<4sHHQQ", small)
    assert (magic, version, zero, n_bytes) == (b"FRPF", 1, 0, len(small))
    end = 24 + (n_header + 7) // 8 * 8
    assert small[end : end + 16] == blake2b(small[:end], digest_size=16).digest()
    assert small[-16:] == blake2b(small[:-16], digest_size=16).digest()
    keys = np.frombuffer(small, "<u8", 2, end + 16)
    assert keys.tolist() == [0, 2**64 - 1]
    tombstones = np.frombuffer(small, "<u8", 3, end + 32)
    assert tombstones.tolist() == [1, 2, 3]
    rows = np.frombuffer(small, "<f4", 6, end + 56)
    assert rows.tobytes() == small_frame().tables["user"].rows.tobytes()
    assert small[end + 80 : end + 95] == b"not really ONNX"
    assert len(small) == end + 96 + 16


def test_arrays_are_aligned_read_only_views(small: bytes) -> None:
    whole = np.frombuffer(small, np.uint8)
    table = decode(small).tables["user"]
    for array in (table.keys, table.rows, table.tombstones):
        assert np.shares_memory(array, whole)
        assert array.flags.aligned
        assert not array.flags.writeable


@pytest.mark.parametrize("order", ["F", "strided"])
def test_rows_in_another_memory_layout_are_written_right(order: str) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    laid_out = np.asfortranarray(rows) if order == "F" else np.repeat(rows, 2, axis=0)[::2]
    info = FrameInfo("delta", 1, 1, 1, "", 0)
    decoded = decode(encode(Frame(info, {"t": TableRows(ids(1, 2, 3), laid_out, ids())})))
    assert decoded.tables["t"].rows.tolist() == rows.tolist()


@pytest.mark.parametrize("read", [decode, decode_info])
def test_truncation_at_every_byte_is_a_checksum_error(read: Any, small: bytes) -> None:
    for n_bytes in range(len(small)):
        with pytest.raises(SyncError) as error:
            read(small[:n_bytes])
        assert error.value.code == "checksum"


def test_bytes_too_many_are_a_checksum_error(small: bytes) -> None:
    assert code_of(small + b"\0") == "checksum"
    assert code_of(small + small) == "checksum"


def test_every_flipped_bit_is_a_checksum_error(small: bytes) -> None:
    damaged = bytearray(small)
    for bit in range(len(small) * 8):
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SyncError) as error:
            decode(bytes(damaged))
        assert error.value.code == "checksum"
        damaged[bit // 8] ^= 1 << bit % 8
    assert bytes(damaged) == small


def test_info_with_a_flipped_bit_is_a_checksum_error(small: bytes) -> None:
    n_header = struct.unpack_from("<Q", small, 16)[0]
    damaged = bytearray(small)
    for bit in range((24 + n_header) * 8):
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SyncError) as error:
            decode_info(bytes(damaged))
        assert error.value.code == "checksum"
        with pytest.raises(SyncError) as error:
            info_at_the_beginning_of(bytes(damaged))
        assert error.value.code == "checksum"
        damaged[bit // 8] ^= 1 << bit % 8


def test_random_bytes_are_checksum_errors() -> None:
    rng = random.Random(905)
    for _ in range(3_000):
        data = rng.randbytes(rng.randrange(300))
        if rng.random() < 0.5:
            data = struct.pack("<4sHHQQ", b"FRPF", 1, 0, 24 + len(data), rng.randrange(300)) + data
        for read in (decode, decode_info, info_at_the_beginning_of):
            with pytest.raises(SyncError) as error:
                read(data)
            assert error.value.code == "checksum"


def test_damage_behind_right_checksums_is_only_ever_a_sync_error(small: bytes) -> None:
    """A writer gone mad: its checksums are right, its lengths and types are not."""
    rng = random.Random(77)
    n_header = struct.unpack_from("<Q", small, 16)[0]
    codes: list[str] = []
    for _ in range(3_000):
        data = bytearray(small)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(24, 24 + n_header)] = rng.randrange(256)
        try:
            decode(sealed(data))
        except SyncError as error:
            codes.append(error.code)
    assert set(codes) == {"malformed", "version"}
    assert len(codes) > 1_000


def test_newer_version_is_told_from_damage(small: bytes) -> None:
    data = bytearray(small)
    data[4] = 2
    newer = sealed(data)
    assert code_of(newer) == "version"
    with pytest.raises(SyncError) as error:
        decode_info(newer)
    assert error.value.code == "version"


def test_rows_of_another_type_ask_for_a_newer_reader() -> None:
    header = header_of(small_frame())
    header["tables"][0]["dtype"] = "int8"
    assert code_of(with_header(header)) == "version"


def test_golden_frame_of_float16_rows_opens_for_ever(request: pytest.FixtureRequest) -> None:
    data = encode(small_frame(), dtype="float16")
    path = GOLDEN.with_name("frames_v1_float16.frame")
    if request.config.getoption("--update-golden"):
        path.write_bytes(data)
    assert data == path.read_bytes()
    expected = small_frame()
    expected.tables["user"].rows[1, 0] = 0.0  # 1e-30 is below what float16 holds
    assert_same(decode(data), expected)


def test_rows_of_float16_are_rounded_and_end_where_it_ends() -> None:
    values = np.array([[0.1, 1e9, -1e9, np.inf, np.nan]], np.float32)
    table = TableRows(ids(1), values, ids())
    data = encode(Frame(small_frame().info, {"user": table}), dtype="float16")
    rows = decode(data).tables["user"].rows
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[np.float16(0.1), 65_504, -65_504, np.inf, np.nan]])


def test_unknown_header_fields_are_skipped() -> None:
    frame = Frame(FrameInfo("delta", 1, 2, 3, "ab", 4), tables={})
    header = header_of(frame) | {"later": [1, 2]}
    header["info"] |= {"canary": "new"}
    assert_same(decode(with_header(header)), frame)


@pytest.mark.parametrize(
    "change",
    [
        {"n_rows": -1},
        {"n_rows": 3},
        {"n_rows": 2**62},
        {"n_tombstones": 2**63 - 1},
        {"n_tombstones": -8},
        {"width": 0},
        {"width": -3},
        {"width": 2**60},
        {"n_rows": 2**32, "width": 2**32},
        {"name": 7},
    ],
)
def test_lengths_that_lie_are_refused(change: dict[str, Any]) -> None:
    header = header_of(small_frame())
    sections = encode(small_frame())[-96:-16]
    assert_same(decode(with_header(header, sections)), small_frame())
    header["tables"][0] |= change
    assert code_of(with_header(header, sections)) == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"info": {"kind": "gamma"}},
        {"info": None},
        {"tables": [{}]},
        {"tables": None},
        {"dense_bytes": -1},
        {"dense_bytes": 1},
        {"dense_bytes": 2**63},
    ],
)
def test_headers_of_the_wrong_shape_are_refused(change: dict[str, Any]) -> None:
    header = header_of(Frame(FrameInfo("delta", 1, 2, 3, "ab", 4), tables={}))
    assert code_of(with_header(header | change)) == "malformed"


def test_bytes_left_over_are_refused() -> None:
    header = header_of(Frame(FrameInfo("delta", 1, 2, 3, "ab", 4), tables={}))
    assert code_of(with_header(header, sections=bytes(8))) == "malformed"


def test_table_without_columns_is_refused() -> None:
    header = header_of(small_frame())
    header["tables"] = [header["tables"][0] | {"width": 0, "n_tombstones": 0}]
    header["dense_bytes"] = None
    assert code_of(with_header(header, sections=ids(1, 2).tobytes())) == "malformed"


def test_table_named_twice_is_refused() -> None:
    header = header_of(small_frame())
    header["tables"] = [header["tables"][1]] * 2
    header["dense_bytes"] = None
    assert code_of(with_header(header)) == "malformed"


@pytest.mark.parametrize(
    ("keys", "tombstones"),
    [
        (ids(2, 1), ids()),
        (ids(1, 1), ids()),
        (ids(1, 2), ids(4, 3)),
        (ids(1, 2), ids(3, 3)),
        (ids(1, 2), ids(2)),
        (ids(1, 2), ids(0, 1, 9)),
    ],
)
def test_keys_out_of_order_are_refused_by_both_sides(
    keys: npt.NDArray[np.uint64], tombstones: npt.NDArray[np.uint64]
) -> None:
    rows = np.ones((2, 2), dtype=np.float32)
    info = FrameInfo("delta", 1, 1, 1, "", 0)
    with pytest.raises(SyncError) as error:
        encode(Frame(info, {"t": TableRows(keys, rows, tombstones)}))
    assert error.value.code == "malformed"
    good = np.arange(10, 10 + len(tombstones), dtype=np.uint64)
    header = header_of(Frame(info, {"t": TableRows(ids(1, 2), rows, good)}))
    sections = keys.tobytes() + tombstones.tobytes() + rows.tobytes()
    assert code_of(with_header(header, sections)) == "malformed"


@pytest.mark.parametrize(
    ("keys", "rows", "tombstones"),
    [
        (np.array([1], np.int64), np.ones((1, 2), np.float32), ids()),
        (ids(1), np.ones((1, 2), np.float64), ids()),
        (ids(1), np.ones((2, 2), np.float32), ids()),
        (ids(1), np.ones(1, np.float32), ids()),
        (ids(1), np.ones((1, 0), np.float32), ids()),
        (ids(1), np.ones((1, 2), np.float32), np.array([3.0])),
        (ids(1).reshape(1, 1), np.ones((1, 2), np.float32), ids()),
    ],
)
def test_arrays_of_the_wrong_type_or_shape_are_not_written(
    keys: Any, rows: Any, tombstones: Any
) -> None:
    frame = Frame(FrameInfo("delta", 1, 1, 1, "", 0), {"t": TableRows(keys, rows, tombstones)})
    with pytest.raises(SyncError) as error:
        encode(frame)
    assert error.value.code == "malformed"


@st.composite
def tables(draw: st.DrawFn) -> TableRows:
    every = sorted(draw(st.sets(st.integers(0, 2**64 - 1), max_size=20)))
    is_row = draw(st.lists(st.booleans(), min_size=len(every), max_size=len(every)))
    keys = [key for key, keep in zip(every, is_row, strict=True) if keep]
    gone = [key for key, keep in zip(every, is_row, strict=True) if not keep]
    width = draw(st.integers(1, 7))
    bits = draw(st.binary(min_size=len(keys) * width * 4, max_size=len(keys) * width * 4))
    rows = np.frombuffer(bits, np.float32).reshape(len(keys), width)
    return TableRows(ids(*keys), rows, ids(*gone))


counts = st.integers(0, 2**63 - 1)
infos = st.builds(
    FrameInfo,
    kind=st.sampled_from(["base", "delta"]),
    epoch=counts,
    seq=counts,
    dense_version=counts,
    schema_hash=st.text(max_size=20),
    published_at_ms=counts,
    watermark_ms=counts,
    examples=counts,
    offsets=st.dictionaries(st.text(max_size=10), counts, max_size=4),
    outcomes=st.lists(st.builds(Outcome, st.text(max_size=5), counts, counts, st.text(max_size=5))),
    action_appended_at_ms=st.lists(counts, max_size=4),
    impression_appended_at_ms=st.lists(counts, max_size=4),
    metrics=st.dictionaries(st.text(max_size=10), st.floats(allow_nan=False), max_size=4),
    untrained=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Frame,
        infos,
        st.dictionaries(st.text(max_size=8), tables(), max_size=3),
        st.none() | st.binary(max_size=40),
    )
)
def test_decode_undoes_encode(frame: Frame) -> None:
    assert_same(decode(encode(frame)), frame)


def test_module_reads_the_version_it_writes(small: bytes) -> None:
    assert struct.unpack_from("<H", small, 4)[0] == frames.VERSION
