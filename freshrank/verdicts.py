"""Whether scores of labelled rows are too bad to be served; trainer and replicas judge alike.

A bound is broken where its excess is more than four standard errors: few rows prove nothing. What
breaks one but foresees the rows about as well as their share of positives would is in doubt rather
than sick: it may be the world that has changed, or a model that no longer knows noise by heart.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank.clock import Clock
from freshrank.guard_settings import GuardSettings

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# How long a version is held back that is only in doubt: a sick one has shown itself by then.
DOUBT_S: Final = 60.0
REASONS: Final = ("nonfinite", "norm", "logloss", "calibration")
# Once in 30,000 versions that stand at the bound, and healthy ones are far from it.
_ERRORS: Final = 4.0
# Worse by less is the same: a replica rounds otherwise than the trainer, whose scores it is told.
_TOLERANCE: Final = 1e-3
_PROBABILITY_MIN: Final = 1e-7
_UNTRAINED: Final = float(np.log(2))  # log loss of a coin


class Hold:
    """Since when versions are held back, and why the newest one is.

    Args:
        clock: Its monotonic time.

    Attributes:
        reason: One of `REASONS`; "" while none is held back.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = 0.0
        self.reason = ""

    @property
    def lasts_s(self) -> float:
        """For how long; 0 while none is held back."""
        return self._clock.monotonic_s() - self._since_s if self.reason else 0.0

    def go_on(self, reason: str) -> None:
        """One more version is held back; the time runs from the first one."""
        if not self.reason:
            self._since_s = self._clock.monotonic_s()
        self.reason = reason

    def end(self) -> None:
        """A version is not."""
        self.reason = ""

    def restore(self, reason: str, lasts_s: float) -> None:
        """Go on from what `reason` and `lasts_s` said."""
        self._since_s = self._clock.monotonic_s() - lasts_s
        self.reason = reason


def reason_against(
    settings: GuardSettings,
    losses: Sequence[str],
    labels: F32,
    weights: F32,
    new: F32,
    beside: Sequence[tuple[F32, F32 | None]],
    *,
    is_held: bool = False,
    held_s: float = 0.0,
) -> str:
    """Why scores of n rows are too bad, one of `REASONS`, or "".

    Where positives come alone at first, as no window is over yet, each row is foreseen better than
    one model could score all of them, and one version swings beside the next: sick is what is worse
    than both of a pair.

    Args:
        settings: Bounds.
        losses: Of each of T tasks.
        labels: `float32[n, T]`.
        weights: `float32[n, T]`, what each row stands for; 0 where it says nothing of the task.
        new: `float32[n, T]`, scores to be judged.
        beside: Pairs of scores, each `float32[n, T]`: to be worse than both of one pair is too bad.
            Rows without a score (NaN) count for nothing, so where few have one nothing is worse;
            None asks for the other alone.
        is_held: The version before was held back.
        held_s: For how long versions have been held back: `DOUBT_S` is enough for one in doubt.
    """
    if not np.isfinite(new[weights > 0]).all():
        return "nonfinite"
    bounds = _halved(settings) if is_held else settings

    def against(scores: F32) -> str:
        known = np.where(np.isnan(scores), np.float32(0), weights)
        for t in np.flatnonzero(np.array(losses) == "logloss"):
            own = known[:, t] > 0
            if own.sum() >= settings.rows_min:
                weight = known[own, t].astype(np.float64)
                rows = labels[own, t], weight, new[own, t]
                found = verdict(bounds, *rows, scores[own, t])
                if found and (held_s < DOUBT_S or not _is_in_doubt(settings, *rows)):
                    return found
        return ""

    for old, usual in beside:
        if (found := against(old)) and (usual is None or (found := against(usual))):
            return found
    return ""


def _halved(settings: GuardSettings) -> GuardSettings:
    """Half of each bound, of ratios their roots.

    What comes after a version that was held back has to be well: at the bound itself a few other
    rows would decide, and let poison pass that has gone on.
    """
    low, high = map(math.sqrt, settings.calibration)
    update = {"logloss_rise": settings.logloss_rise / 2, "calibration": [low, high]}
    return settings.model_copy(update=update)


def verdict(settings: GuardSettings, label: F32, weight: F64, new: F32, old: F32) -> str:
    """Why probabilities of n rows are too bad: "logloss", "calibration" or "".

    Args:
        settings: Bounds.
        label: `float32[n]`.
        weight: `float64[n]`.
        new: `float32[n]`, of the version that is judged.
        old: `float32[n]`, of what it is compared with.
    """
    bound = 1 + settings.logloss_rise
    loss, before = _losses(label, new), _losses(label, old)
    # Worse than a coin is sick as well, but not where it mends what is sicker.
    if _is_above_zero(loss - bound * before, weight) or (
        _is_above_zero(loss - bound * _UNTRAINED, weight)
        and _is_above_zero(loss - (1 + _TOLERANCE) * before, weight)
    ):
        return "logloss"
    observed = float(label @ weight)
    predicted, told = (max(float(p @ weight), _PROBABILITY_MIN) for p in (new, old))
    low, high = settings.calibration
    if observed <= 0 or low <= predicted / observed <= high:
        return ""
    error = float(np.sqrt(np.sum((weight * (new - label)) ** 2)))
    is_worse = abs(np.log(predicted / observed)) > abs(np.log(told / observed)) + _TOLERANCE
    return "calibration" if is_worse and abs(predicted - observed) > _ERRORS * error else ""


def _is_in_doubt(settings: GuardSettings, label: F32, weight: F64, score: F32) -> bool:
    """Whether rows are foreseen about as well as by their share of positives."""
    share = np.full_like(label, np.average(label, weights=weight))
    bound = 1 + settings.logloss_rise
    return not _is_above_zero(_losses(label, score) - bound * _losses(label, share), weight)


def _is_above_zero(excess: F64, weight: F64) -> bool:
    mean = float(np.average(excess, weights=weight))
    error = float(np.sqrt(np.sum((weight * (excess - mean)) ** 2))) / float(weight.sum())
    return mean > _ERRORS * error


def _losses(label: F32, score: F32) -> F64:
    """Log loss of each row: `float64[n]`."""
    y = label.astype(np.float64)
    p = score.astype(np.float64).clip(_PROBABILITY_MIN, 1 - _PROBABILITY_MIN)
    loss: F64 = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return loss
