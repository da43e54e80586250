"""How far each stage of the loop has come, shared by the parts of one process.

Receipts read it: an event is `joined` once the joiner has decided its offset and `trained` once
the trainer has learned what the joiner made of it. Whether it is `servable` only the applied frame
says.
"""

import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from freshrank.metrics import Freshness, Reading

Stage = Literal["joined", "trained"]


class LoopView(Protocol):
    """What the service may know of a joiner and a trainer that run in its process."""

    def accounting(self) -> dict[str, int]:
        """The joiner's and the trainer's totals; `freshrank.accounting` says how they add up."""

    def inspect(self, table: str, id: int) -> Mapping[str, Any]:
        """What the trainer's table knows of one id, as `embedding_store.Table.inspect` has it."""

    def is_learning(self) -> bool:
        """False once a joiner or the trainer has stopped, by itself or because it failed."""

    def statistics(self) -> dict[str, float]:
        """Gauges such as `auc`, `rows`, `filtered`, `examples_per_second`."""

    def readings(self) -> list[Reading]:
        """Their metrics."""

    def snapshots(self) -> list[dict[str, Any]]:
        """The trainer's checkpoints, kept ones first, then oldest first.

        Each has name, saved_at and bytes; epoch, seq and rows_learned unless it is damaged.
        """


class Progress:
    """Next offsets per stage and `topic:partition`; offsets only grow. Safe for threads.

    Attributes:
        freshness: How old events were when they had passed each stage of this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offsets: dict[Stage, dict[str, int]] = {"joined": {}, "trained": {}}
        self.freshness = {stage: Freshness(stage) for stage in ("queue", "join", "train")}

    def reach(self, stage: Stage, offsets: Mapping[str, int]) -> None:
        """Record that every record before these offsets has passed `stage`."""
        with self._lock:
            known = self._offsets[stage]
            for log, offset in offsets.items():
                known[log] = max(known.get(log, 0), offset)

    def offset(self, stage: Stage, topic: str, partition: int) -> int:
        """The next offset of the stage in one log; 0 when nothing passed yet."""
        with self._lock:
            return self._offsets[stage].get(f"{topic}:{partition}", 0)

    def readings(self) -> list[Reading]:
        """Metrics of `freshness`."""
        return [reading for stage in self.freshness.values() for reading in stage.readings()]
