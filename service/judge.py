"""A replica's own guard: no version answers that scores known rows far worse than the one before.

The trainer has judged what it publishes; this finds what went wrong between its parameters and the
answers, and a trainer that judges nothing. A frame that brings a dense net brings labelled rows,
and what earlier versions made of them. They are scored by what serves and by what would, on a copy
of the rows they read: nothing changes before the verdict. A base loaded before anything serves is
only asked for finite scores.
"""

import logging
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank import canaries
from freshrank.canaries import Canary
from freshrank.clock import Clock
from freshrank.errors import SyncError
from freshrank.features import FeatureEncoder
from freshrank.frames import Frame
from freshrank.settings import Settings
from freshrank.verdicts import Hold, reason_against
from service.dense import DenseNet
from service.excerpt import Excerpt
from service.model import Model
from service.scorer import Scorer

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

# Of the root mean squares that are compared: rows of a small table jump.
_SIZE_MIN: Final = 1.0


class Judge:
    """Judges frames before they serve, by the settings of the trainer's guard.

    Args:
        settings: Tasks and bounds.
        encoder: Slots and dense values.
        clock: How long a version is refused.
    """

    def __init__(self, settings: Settings, encoder: FeatureEncoder, clock: Clock) -> None:
        self._settings = settings.guard
        self._hold_s = settings.guard.hold.total_seconds()
        self._losses = [task.loss for task in settings.tasks]
        self._slots = encoder.slots
        self._n_dense = len(encoder.dense_names)
        self._scorer = Scorer(settings, encoder)
        self._sizes: dict[str, float] = {}
        self._hold = Hold(clock)

    @property
    def reason(self) -> str:
        """Why the newest version is refused; "" while none is."""
        return self._hold.reason

    def check_delta(self, model: Model, frame: Frame, net: DenseNet) -> None:
        """Judge what a delta would make of the model.

        Args:
            model: What serves.
            frame: A delta that fits it.
            net: The dense net that would be in force.

        Raises:
            SyncError: it must not serve; the code is one of `freshrank.verdicts.REASONS`, or
                `malformed`.
        """
        reason = ""
        if canary := self._canary(frame):
            trial = Excerpt(model, self._ids(canary))
            old = self._score(trial, canary)
            trial.apply(frame.tables, net)
            reason = self._compare(canary, self._score(trial, canary), old)
        self._decide(frame, reason)

    def check_base(self, model: Model, frame: Frame, served: Model | None) -> None:
        """Judge a base against what serves; raises as `check_delta`."""
        reason = ""
        if canary := self._canary(frame):
            ids = self._ids(canary)
            old = [] if served is None else [self._score(Excerpt(served, ids), canary)]
            reason = self._compare(canary, self._score(Excerpt(model, ids), canary), *old)
        else:
            # After a roll-back, or a guard that gave in: the parameters are meant to be others.
            self._sizes.clear()
        self._decide(frame, reason)

    def _canary(self, frame: Frame) -> Canary | None:
        if frame.canary is None:
            return None
        slots = [slot.name for slot in self._slots]
        return canaries.decode(
            frame.canary, slots, n_dense=self._n_dense, n_tasks=len(self._losses)
        )

    def _ids(self, canary: Canary) -> dict[str, U64]:
        """What the rows read, by table."""
        ids: dict[str, list[U64]] = {}
        for slot in self._slots:
            ids.setdefault(slot.table, []).append(canary.values.slots[slot.name].ids)
        return {name: np.unique(np.concatenate(own)) for name, own in ids.items()}

    def _score(self, version: Excerpt, canary: Canary) -> F32:
        return self._scorer.score(version, canary.values).predictions.astype(np.float32)

    def _compare(self, canary: Canary, new: F32, *old: F32) -> str:
        rows = canary.labels, canary.weights
        return reason_against(
            *(self._settings, self._losses, *rows, new, [(one, canary.mean) for one in old]),
            is_held=bool(self.reason),
            held_s=self._hold.lasts_s,
        )

    def _decide(self, frame: Frame, reason: str) -> None:
        sizes = {name: _size(table.rows) for name, table in frame.tables.items() if len(table.rows)}
        bound = self._settings.norm_jump
        for name, size in sizes.items():
            told = self._sizes.get(name)
            if told is not None and not size <= bound * max(told, _SIZE_MIN):
                reason = reason or "norm"
        if reason and not self._gives_in(reason):
            self._hold.go_on(reason)
            raise SyncError(
                f"frame {frame.info.version} is worse than what serves ({reason}): it stays out; "
                "see freshrank_sync_refused_total of the trainer, whose guard let it through",
                code=reason,
            )
        self._hold.end()
        # Of a base: its size is no measure for the rows of a delta, but where there is none.
        is_base = frame.info.kind == "base"
        self._sizes |= {n: s for n, s in sizes.items() if not is_base or n not in self._sizes}

    def _gives_in(self, reason: str) -> bool:
        """Whether a version was refused for so long that the world must have changed."""
        gives_in = reason != "nonfinite" and self._hold.lasts_s > self._hold_s
        if gives_in:
            logger.error("replica=forced reason=%s held_s=%d", reason, self._hold.lasts_s)
        return gives_in


def _size(rows: F32) -> float:
    """Root mean square."""
    # Not `np.dot` or `np.linalg.norm`: BLAS would wake threads that spin beside requests.
    return float(np.sqrt(np.einsum("ij,ij->", rows, rows) / max(rows.size, 1)))
