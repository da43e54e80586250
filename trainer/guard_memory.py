"""What the guard goes by; saved with every checkpoint, so that a restart lets nothing past it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from freshrank import examples
from freshrank.clock import Clock
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from freshrank.verdicts import Hold
from trainer.canary import TIMES, CanarySet

Arrays = dict[str, npt.NDArray[Any]]


class GuardMemory:
    """The canary set, the sizes told, and since when a version is held back.

    Args:
        window_ms: As of `CanarySet`.
        tasks: Names of the tasks, in order.
        slots: Names of the slots, in order.
        clock: How long.

    Attributes:
        canary: Rows with the predictions that were made of them.
        sizes: Root mean square of what was published, by table, and of the dense net.
        hold: Why and for how long nothing is published, as far as a trainer ran.
    """

    def __init__(
        self, window_ms: int, *, tasks: Sequence[str], slots: Sequence[str], clock: Clock
    ) -> None:
        self._tasks = tasks
        self._slots = slots
        self.canary = CanarySet(window_ms)
        self.sizes: dict[str, float] = {}
        self.hold = Hold(clock)

    @classmethod
    def of(cls, settings: Settings, encoder: FeatureEncoder, clock: Clock) -> Self:
        """For a trainer of this configuration."""
        window = settings.join.window + settings.join.max_out_of_order
        return cls(
            round(window.total_seconds() * 1_000),
            tasks=[task.name for task in settings.tasks],
            slots=[slot.name for slot in encoder.slots],
            clock=clock,
        )

    def forget(self) -> None:
        """Nothing that was learned or published before is a measure any more."""
        self.canary.clear()
        self.sizes.clear()

    def state(self) -> Arrays:
        """What a checkpoint keeps."""
        told = {
            "canary": self.canary.counts(),
            "sizes": self.sizes,
            "reason": self.hold.reason,
            "held_s": self.hold.lasts_s,
        }
        arrays: Arrays = {"told": _bytes(json.dumps(told).encode())}
        rows, scores = self.canary.kept()
        if rows is not None:
            arrays |= {"rows": _bytes(examples.encode(rows, self._tasks)), "scores": scores}
        return arrays

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what a checkpoint kept; begin anew where it is of a version that kept none."""
        self.forget()
        self.hold.end()
        if not state:
            return
        told = json.loads(state["told"].tobytes())
        rows = None
        if "rows" in state:
            rows = examples.decode(state["rows"].tobytes(), self._tasks, self._slots)
        self.canary.restore(told["canary"], rows, _scores(state))
        self.sizes.update(told["sizes"])
        self.hold.restore(told["reason"], told["held_s"])


def _scores(state: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32] | None:
    """`float32[n, 4, T]`; checkpoints of before it kept fewer of the four, or the first alone."""
    scores = state["unseen"][:, np.newaxis] if "unseen" in state else state.get("scores")
    if scores is None or scores.shape[1] == TIMES:
        return scores
    n, n_kept, n_tasks = scores.shape
    never = np.full((n, TIMES - n_kept, n_tasks), np.nan, np.float32)
    return np.concatenate((scores, never), axis=1)


def _bytes(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
