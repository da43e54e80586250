"""One short text for all parameters, so that two runs can be compared by eye."""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from embedding_store import Table
from trainer.learner import Learner

Bytes = npt.NDArray[np.uint8]

# Format v1 of a table, embedding_store/FORMAT.md: where the header has clock, counts and what the
# budget has done, and where it ends; bytes of a tombstone, of a waiting id, of a line of the sketch
# and of a row without its floats.
_CLOCK_AT, _COUNTS_AT, _BUDGET_AT, _LINES_AT, _HEADER_BYTES = 272, 328, 392, 424, 440
_TOMBSTONE_BYTES, _WAITING_BYTES, _LINE_BYTES, _ROW_BYTES = 16, 16, 64, 32


def fingerprint(learner: Learner) -> str:
    """BLAKE2b of rows, optimizer state, counts and clocks by ascending id, and of the dense net.

    Left out is what publishing changes: versions and tombstones. Equal fingerprints mean equal
    parameters, bit for bit, that also learn and expire alike from here on.

    Returns:
        32 hex digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, table in sorted(learner.sparse.tables.items()):
        digest.update(name.encode())
        for column in _columns(table):
            digest.update(column.tobytes())
    adam = learner.adam
    for tensor in (adam.parameters, adam.moment1, adam.moment2):
        digest.update(tensor.detach().numpy().tobytes())
    digest.update(np.array([adam.n_steps, learner.clock_s], np.int64).tobytes())
    return digest.hexdigest()


def _columns(table: Table) -> Iterator[Bytes]:
    """Rows by ascending id, without number and version; ids that wait; the sketch; counters."""
    data = np.frombuffer(table.snapshot(), np.uint8)
    n_free = data[_COUNTS_AT + 4 : _COUNTS_AT + 8].view("<u4").item()
    n_waiting, n_tombstones = data[_COUNTS_AT + 8 : _COUNTS_AT + 24].view("<u8").tolist()
    n_lines = data[_LINES_AT : _LINES_AT + 8].view("<u8").item()
    yield data[_CLOCK_AT:_COUNTS_AT]  # draws, totals and the sweep's cursors too
    yield data[_BUDGET_AT : _LINES_AT + 8]
    waiting_at = _HEADER_BYTES + 4 * n_free + _TOMBSTONE_BYTES * n_tombstones
    rows_at = waiting_at + _WAITING_BYTES * n_waiting + _LINE_BYTES * n_lines
    yield data[waiting_at:rows_at]
    row_floats = table.rows_from(0, 0)[2].shape[1]
    rows = _rows(data[rows_at:], _ROW_BYTES + 4 * row_floats)
    rows = rows[np.argsort(np.ascontiguousarray(rows[:, 16:24]).view("<u8").ravel())]
    yield np.concatenate([rows[:, 4:24], rows[:, _ROW_BYTES:]], axis=1)


def _rows(data: Bytes, row_bytes: int) -> Bytes:
    """Rows of all blocks, `uint8[n, row_bytes]`."""
    blocks = [np.empty((0, row_bytes), np.uint8)]
    at = 0
    while n_rows := int.from_bytes(data[at : at + 8].tobytes(), "little"):
        end = at + 8 + n_rows * row_bytes
        blocks.append(data[at + 8 : end].reshape(n_rows, row_bytes))
        at = end
    return np.concatenate(blocks)
