"""Parameter frames: what the trainer publishes and a replica applies.

A frame holds absolute values, never gradients, so applying one twice changes nothing. A base (kind
`base`) is the whole model at (epoch, seq); a delta leads from seq - 1 to seq of the same epoch.

Format v1, little-endian, every section at a multiple of 8 bytes and padded with zeros:

| bytes | content |
|---|---|
| 4 | `FRPF` |
| 2 | format version, 1 |
| 2 | zero |
| 8 | length of the whole frame |
| 8 | length of the header |
| … | header: msgpack map `{info, tables, dense_bytes, canary}`; padding |
| 16 | blake2b-128 of everything before it, so that `decode_info` reads no further |
| … | per table of the header, in its order: keys `uint64[n]`, tombstones `uint64[k]`, rows |
| … | dense net, when there is one |
| 16 | blake2b-128 of everything before it |

A table entry is `{name, dtype, width, n_rows, n_tombstones}`; `dtype` is `float32` or `float16`,
rows of another type come under a new name that old readers refuse. Everything up to the header's
checksum, and the last checksum, stay as they are in every version, so a reader can tell a newer
frame from a damaged one. Unknown header fields are skipped; `canary` is left out where there is
none, as before there was such a thing.
"""

import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final, Literal, TypeVar, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from freshrank.errors import SyncError
from freshrank.frame_types import Frame, FrameInfo, Outcome, TableRows

__all__ = [
    "VERSION",
    "Frame",
    "FrameInfo",
    "Outcome",
    "TableRows",
    "decode",
    "decode_info",
    "encode",
    "read_info",
]

VERSION: Final = 1
_MAGIC: Final = b"FRPF"
_PREFIX: Final = struct.Struct("<4sHHQQ")
_DIGEST_BYTES: Final = 16
_U64: Final[np.dtype[np.uint64]] = np.dtype("<u8")
_F32: Final[np.dtype[np.float32]] = np.dtype("<f4")
_F16: Final[np.dtype[np.float16]] = np.dtype("<f2")
_F16_MAX: Final = float(np.finfo(np.float16).max)
_U8: Final[np.dtype[np.uint8]] = np.dtype("u1")
_Number = TypeVar("_Number", np.uint64, np.float32, np.float16, np.uint8)
RowType = Literal["float32", "float16"]


class _TableEntry(msgspec.Struct):
    name: str
    dtype: str
    width: int
    n_rows: int
    n_tombstones: int


class _Header(msgspec.Struct, omit_defaults=True):
    info: FrameInfo
    tables: list[_TableEntry]
    dense_bytes: int | None
    canary: bytes | None = None


def encode(frame: Frame, *, dtype: RowType = "float32") -> bytes:
    """The frame's bytes.

    Args:
        frame: Its rows are float32.
        dtype: How rows are written. To float16 they are rounded; it ends at 65,504, and so does
            what is finite.

    Raises:
        SyncError: code `malformed` when keys or tombstones are not ascending and disjoint or an
            array has the wrong shape or type: a bug of the writer that no replica should meet.

    Example:
        >>> info = FrameInfo("delta", 1, 2, dense_version=1, schema_hash="ab", published_at_ms=0)
        >>> decode(encode(Frame(info, tables={}))).info == info
        True
    """
    entries = [_entry(name, table, dtype) for name, table in frame.tables.items()]
    dense_bytes = None if frame.dense is None else len(frame.dense)
    header = msgspec.msgpack.encode(_Header(frame.info, entries, dense_bytes, frame.canary))
    sections = list(_sections(frame, dtype))
    n_bytes = _PREFIX.size + _padded(len(header)) + _DIGEST_BYTES
    n_bytes += sum(_padded(section.nbytes) for section in sections) + _DIGEST_BYTES
    head = _PREFIX.pack(_MAGIC, VERSION, 0, n_bytes, len(header)) + header + _padding(len(header))
    parts: list[bytes | memoryview] = [head, _digest(head)]
    for section in sections:
        parts += [section, _padding(section.nbytes)]
    parts.append(_digest(*parts))
    return b"".join(parts)


def decode(data: bytes) -> Frame:
    """Read a frame; its arrays are read-only views of `data`, but rows of float16 a copy.

    Raises:
        SyncError: code `checksum` when a bit differs or bytes are missing, `version` when a newer
            program wrote it, `malformed` when the checksum is right and the content is not.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size + 2 * _DIGEST_BYTES:
        raise _checksum_error(f"{len(view)} bytes are too few for one")
    if _digest(view[:-_DIGEST_BYTES]) != view[-_DIGEST_BYTES:]:
        raise _checksum_error("its checksum does not fit its content")
    header, position = _read_header(view)
    tables: dict[str, TableRows] = {}
    reader = _SectionReader(view[:-_DIGEST_BYTES], position)
    for entry in header.tables:
        if entry.dtype not in get_args(RowType):
            raise _too_new(f"rows of type {entry.dtype!r} in table {entry.name!r}")
        if entry.name in tables or entry.width < 1:
            raise _malformed(f"table entry {entry}")
        keys = reader.take(_U64, entry.n_rows)
        tombstones = reader.take(_U64, entry.n_tombstones)
        rows = _read_rows(reader, entry)
        tables[entry.name] = table = TableRows(keys, rows, tombstones)
        _check_order(entry.name, table)
    dense = None
    if header.dense_bytes is not None:
        dense = reader.take(_U8, header.dense_bytes).tobytes()
    reader.expect_end()
    return Frame(header.info, tables, dense, header.canary)


def _read_rows(reader: "_SectionReader", entry: _TableEntry) -> npt.NDArray[np.float32]:
    n_values = entry.n_rows * entry.width
    if entry.dtype == "float16":
        values = reader.take(_F16, n_values).astype(_F32)
    else:
        values = reader.take(_F32, n_values)
    return values.reshape(entry.n_rows, entry.width)


def decode_info(data: bytes) -> FrameInfo:
    """Read what a frame says of itself; its rows are neither read nor checked.

    Raises:
        SyncError: as `decode`, for a length that differs or a header that is damaged.
    """
    return _read_header(memoryview(data))[0].info


def read_info(beginning: Callable[[int], bytes]) -> FrameInfo:
    """Read what a frame says of itself, and no more of it than that takes.

    Args:
        beginning: Returns at least so many bytes from the frame's start, or all where it has fewer.

    Raises:
        SyncError: as `decode`, for a header that is damaged or not there.
    """
    n_bytes = 1 << 14
    while len(data := beginning(n_bytes)) >= n_bytes and _n_bytes_of_header(data) > n_bytes:
        n_bytes *= 4
    return _read_header(memoryview(data), is_whole=False)[0].info


class _SectionReader:
    """Takes one section after another, never beyond the end."""

    def __init__(self, view: memoryview, position: int) -> None:
        self._view = view
        self._position = position

    def take(self, dtype: np.dtype[_Number], n_values: int) -> npt.NDArray[_Number]:
        n_bytes = n_values * dtype.itemsize
        end = self._position + _padded(n_bytes)
        if n_values < 0 or end > len(self._view):
            raise _malformed(f"a section of {n_values} values does not fit in")
        array = np.frombuffer(self._view, dtype, n_values, self._position)
        self._position = end
        return array

    def expect_end(self) -> None:
        if self._position != len(self._view):
            raise _malformed(f"{len(self._view) - self._position} bytes are left over")


def _n_bytes_of_header(data: bytes | memoryview) -> int:
    """Of a frame with nothing else: what both checksums take is in."""
    n_header: int = _PREFIX.unpack_from(data)[4]
    return _PREFIX.size + _padded(n_header) + 2 * _DIGEST_BYTES


def _read_header(view: memoryview, *, is_whole: bool = True) -> tuple[_Header, int]:
    """The header and the position of the first section."""
    if len(view) < _PREFIX.size + 2 * _DIGEST_BYTES:
        raise _checksum_error(f"{len(view)} bytes are too few for one")
    magic, version, _, n_bytes, n_header = _PREFIX.unpack_from(view)
    if magic != _MAGIC or (is_whole and n_bytes != len(view)):
        raise _checksum_error(f"it should have {n_bytes} bytes and has {len(view)}")
    if _n_bytes_of_header(view) > len(view):
        raise _checksum_error(f"a header of {n_header} bytes does not fit in")
    end = _PREFIX.size + _padded(n_header)
    if _digest(view[:end]) != view[end : end + _DIGEST_BYTES]:
        raise _checksum_error("the checksum of its header does not fit")
    if version != VERSION:
        raise _too_new(f"format {version} where this program reads {VERSION}")
    try:
        header = msgspec.msgpack.decode(view[_PREFIX.size : _PREFIX.size + n_header], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"its header: {error}") from error
    return header, end + _DIGEST_BYTES


def _entry(name: str, table: TableRows, dtype: RowType) -> _TableEntry:
    is_typed = (
        table.keys.dtype == np.uint64
        and table.tombstones.dtype == np.uint64
        and table.rows.dtype == np.float32
    )
    shapes = (table.keys.ndim, table.tombstones.ndim, table.rows.ndim)
    is_shaped = shapes == (1, 1, 2) and len(table.rows) == len(table.keys)
    if not is_typed or not is_shaped or table.rows.shape[1] < 1:
        raise _malformed(
            f"table {name!r} needs keys uint64[n], rows float32[n, width] and tombstones "
            f"uint64[k], not {table.keys.dtype}{table.keys.shape}, {table.rows.dtype}"
            f"{table.rows.shape}, {table.tombstones.dtype}{table.tombstones.shape}"
        )
    _check_order(name, table)
    n_rows, width = table.rows.shape
    return _TableEntry(name, dtype, width, n_rows, len(table.tombstones))


def _check_order(name: str, table: TableRows) -> None:
    keys, tombstones = table.keys, table.tombstones
    is_ascending = bool((keys[1:] > keys[:-1]).all() and (tombstones[1:] > tombstones[:-1]).all())
    if not is_ascending:
        raise _malformed(f"keys or tombstones of table {name!r} are not ascending")
    if len(keys) and len(tombstones):
        places = np.searchsorted(keys, tombstones)
        if (keys[np.minimum(places, len(keys) - 1)] == tombstones).any():
            raise _malformed(f"table {name!r} has a key both as row and as tombstone")


def _sections(frame: Frame, dtype: RowType) -> Iterator[memoryview]:
    for table in frame.tables.values():
        yield _bytes_of(table.keys, _U64)
        yield _bytes_of(table.tombstones, _U64)
        if dtype == "float16":
            is_finite = np.isfinite(table.rows)
            rows = np.clip(table.rows, -_F16_MAX, _F16_MAX, out=table.rows.copy(), where=is_finite)
            yield _bytes_of(rows.astype(_F16), _F16)
        else:
            yield _bytes_of(table.rows, _F32)
    if frame.dense is not None:
        yield memoryview(frame.dense)


def _bytes_of(array: npt.NDArray[_Number], dtype: np.dtype[_Number]) -> memoryview:
    """The array's bytes, little-endian; copied only when it is not laid out like that."""
    return np.ascontiguousarray(array, dtype).reshape(-1).view(_U8).data


def _digest(*parts: bytes | memoryview) -> bytes:
    hasher = blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def _padded(n_bytes: int) -> int:
    return (n_bytes + 7) & ~7


def _padding(n_bytes: int) -> bytes:
    return bytes(-n_bytes % 8)


def _checksum_error(text: str) -> SyncError:
    return SyncError(f"damaged frame: {text}; fetch it again or load the base", code="checksum")


def _malformed(text: str) -> SyncError:
    return SyncError(
        f"malformed frame: {text}; its writer is wrong, keep the frame and report it",
        code="malformed",
    )


def _too_new(text: str) -> SyncError:
    return SyncError(f"frame with {text}: upgrade replicas before the trainer", code="version")
