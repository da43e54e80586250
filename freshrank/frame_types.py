"""What a parameter frame is made of; `freshrank.frames` turns it into bytes and back."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TableRows:
    """Changed rows of one table.

    Attributes:
        keys: `uint64[n]`, ascending: ids whose row is given.
        rows: `float32[n, width]`, the weights as the trainer has them.
        tombstones: `uint64[k]`, ascending, disjoint from `keys`: ids whose row is gone.
    """

    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.float32]
    tombstones: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one action when that is not simply `trained`."""

    topic: str
    partition: int
    offset: int
    outcome: str


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """What a frame says of itself; small, decoded without touching the rows.

    Attributes:
        kind: `base` or `delta`.
        epoch: Lineage of the trainer that wrote it.
        seq: Sparse sequence number this frame leads to.
        dense_version: Number of the dense net in force at this frame.
        schema_hash: Of features, tasks and model; a replica with another one refuses.
        published_at_ms: When the trainer wrote it.
        watermark_ms: Newest event time that the parameters reflect; 0 before the first example.
        examples: Examples learned so far along this lineage.
        offsets: `topic:partition` -> next offset: every earlier record is decided and learned.
        outcomes: Decisions since the previous frame that are not `trained`.
        action_appended_at_ms: A sample of the append times of the actions learned since the
            previous frame: the replica turns them into event-to-servable times.
        impression_appended_at_ms: The same for negatives.
        metrics: Progressive metrics at this frame, e.g. `click.auc`.
        untrained: True while no example has been learned.
    """

    kind: Literal["base", "delta"]
    epoch: int
    seq: int
    dense_version: int
    schema_hash: str
    published_at_ms: int
    watermark_ms: int = 0
    examples: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    action_appended_at_ms: list[int] = field(default_factory=list)
    impression_appended_at_ms: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    untrained: bool = False

    @property
    def version(self) -> str:
        """The name of this version as answers carry it."""
        return f"d{self.dense_version}-s{self.seq}"


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame.

    Attributes:
        info: Its header.
        tables: Per table name, the rows that changed (in a base: all rows).
        dense: The dense net as ONNX bytes when this frame carries one; every base does.
        canary: Labelled rows to judge it by, as `freshrank.canaries` encodes them.
    """

    info: FrameInfo
    tables: dict[str, TableRows]
    dense: bytes | None = None
    canary: bytes | None = None
