"""One short text for all parameters, so that two runs can be compared by eye."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from embedding_store import Table
from trainer.learner import Learner

Bytes = npt.NDArray[np.uint8]

# Format v1 of a table, embedding_store/FORMAT.md: where the header has clock, counts and what the
# budget has done, where the sections begin, and how many bytes of checksum follow them.
_CLOCK_AT, _COUNTS_AT, _BUDGET_AT, _HEADER_BYTES, _CHECKSUM_BYTES = 272, 328, 392, 432, 8


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
    """Ids, times, occurrences, weights and state of rows; ids, counts and times of waiting ids."""
    data = np.frombuffer(table.snapshot(), np.uint8)
    n_used, n_free = data[_COUNTS_AT : _COUNTS_AT + 8].view("<u4").tolist()
    n_waiting, n_tombstones = data[_COUNTS_AT + 8 : _COUNTS_AT + 24].view("<u8").tolist()
    n_rows, n_lines = n_used - n_free, data[_HEADER_BYTES - 8 : _HEADER_BYTES].view("<u8").item()
    yield data[_CLOCK_AT:_COUNTS_AT]  # draws, totals and the sweep's cursors too
    yield data[_BUDGET_AT:_HEADER_BYTES]
    begin = _HEADER_BYTES + 4 * n_free
    sketch_end = len(data) - _CHECKSUM_BYTES - 16 * n_tombstones
    end = sketch_end - 64 * n_lines - 16 * n_waiting
    value_bytes = (end - begin) // n_rows - 28 if n_rows else 0
    keys, _, *rest = _split(data[begin:], n_rows, (8, 8, 4, 4, 4, value_bytes))
    order = np.argsort(keys.view("<u8").ravel())
    yield from (column[order] for column in (keys, *rest))
    yield data[end:sketch_end]  # ids that wait, in ascending order already


def _split(data: Bytes, n: int, sizes: Sequence[int]) -> list[Bytes]:
    """Columns that stand one after the other, as `uint8[n, size]` each."""
    ends = n * np.cumsum(sizes)
    parts = np.split(data[: ends[-1]], ends[:-1])
    return [
        np.ascontiguousarray(part).reshape(n, size) for part, size in zip(parts, sizes, strict=True)
    ]
