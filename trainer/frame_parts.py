"""What a frame is made of: the rows of a base or of a delta, and what it says of itself."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from freshrank import frames
from freshrank.errors import SyncError, TransportError
from freshrank.frames import FrameInfo, TableRows
from freshrank.transport.base import ParameterChannel
from trainer.state import TrainerState
from trainer.tables import SparseTables

logger = logging.getLogger(__name__)

Rows = tuple[dict[str, int], dict[str, TableRows]]


@dataclass(slots=True)
class Told:
    """What the replicas can know: the trainer's totals as of the last frame the channel took."""

    rows: int = -1
    keys_forgotten: int = -1
    offsets: dict[str, int] | None = None
    dense_steps: int = -1
    dense: bytes = b""


def newest(channel: ParameterChannel, dense_version: int) -> FrameInfo | None:
    """What the newest frame in the channel says of itself.

    Args:
        channel: To look into.
        dense_version: To take where the frame cannot be read.

    Raises:
        TransportError: the channel cannot be read.
    """
    head = channel.head()
    if head is None:
        return None
    try:
        data = channel.delta(head.epoch, head.seq)
        if data is not None:
            return frames.decode_info(data)
        # A base has all rows, which say nothing here.
        return frames.read_info(lambda n_bytes: channel.base_beginning(n_bytes) or b"")
    except (SyncError, TransportError) as error:
        if isinstance(error, TransportError) and error.code != "channel-damaged":
            raise
        # Damaged, missing or of a newer program: the numbers in the head still hold.
        logger.warning("channel=unreadable epoch=%d seq=%d error=%s", head.epoch, head.seq, error)
        return FrameInfo("base", head.epoch, head.seq, dense_version, "", 0)


def base_seq(channel: ParameterChannel) -> int:
    """Sequence number of the newest base; -1 where there is none."""
    head = channel.head()
    return -1 if head is None else head.base_seq


def changes(sparse: SparseTables, marks: Mapping[str, int]) -> Rows:
    """What changed in every table since the given versions, and the versions it leads to.

    It closes the current versions.
    """
    new_marks, tables = {}, {}
    for name, table in sparse.tables.items():
        new_marks[name] = table.advance()
        tables[name] = TableRows(*table.delta(marks[name]))
    return new_marks, tables


def whole(sparse: SparseTables) -> Rows:
    """All rows of every table, and the versions that they reach.

    Rows of the current version are in the base and once more in the first delta: it is not closed.
    So a restart, which begins with a base, leaves the tables' bytes as a run without it would.
    """
    marks, tables = {}, {}
    for name, table in sparse.tables.items():
        marks[name] = table.version - 1
        keys, rows, tombstones = table.delta(0)
        # A base is swapped in whole: there is nothing that its tombstones could remove.
        tables[name] = TableRows(keys, rows, tombstones[:0])
    return marks, tables


def describe(
    state: TrainerState,
    kind: Literal["base", "delta"],
    seq: int,
    dense_version: int,
    now_ms: int,
    metrics: dict[str, float],
) -> FrameInfo:
    """What a frame of this kind, sequence and dense net says of what the trainer learned."""
    return FrameInfo(
        kind=kind,
        epoch=state.epoch,
        seq=seq,
        dense_version=dense_version,
        schema_hash=state.schema_hash,
        published_at_ms=now_ms,
        watermark_ms=state.watermark_ms,
        examples=state.counts["examples_learned"],
        offsets=dict(state.offsets),
        outcomes=list(state.outcomes),
        action_appended_at_ms=state.actions.values(),
        impression_appended_at_ms=state.impressions.values(),
        metrics=metrics,
        untrained=not state.has_learned,
    )
