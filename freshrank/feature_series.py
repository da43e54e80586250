"""What live features remember, what they read of it, and what the net gets.

A rate or a count reads decayed sums; `seen` reads the last or the first time. What is read is raw:
a rate, a count, seconds. It stands so in impressions, and `net_values` makes the net's input of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np

from freshrank.encoding import F64
from freshrank.settings import CountFeature, Feature, LiveFeature, RateFeature, SeenFeature

# A rate stays this far from 0 and 1, so that its log odds stay below 14. Several actions on one
# impression may outnumber impressions.
RATE_EDGE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class SeriesSpec:
    """One kind of memory that live features share.

    Attributes:
        kind: `sum`, `last` or `first`, as `freshrank._live.Series` has them.
        event: What is remembered; None for impressions.
        key: Features whose ids make the key.
        span_ms: Half-life of a sum; how long a last or first time is known.
    """

    kind: str
    event: str | None
    key: tuple[str, ...]
    span_ms: float

    @property
    def name(self) -> str:
        """Its name in updates and files: another meaning is another name."""
        return f"{self.kind}:{self.event or ''}:{','.join(self.key)}:{self.span_ms:g}"


def series_of(feature: Feature) -> tuple[SeriesSpec, ...]:
    """What a live feature reads; none for other features.

    Example:
        >>> from freshrank.settings import CountFeature
        >>> clicks = CountFeature(name="clicks", type="count", event="click")
        >>> [series.name for series in series_of(clicks)]
        ['sum:click:item_id:3.6e+06']
    """
    if isinstance(feature, SeenFeature):
        within_ms = feature.within / timedelta(milliseconds=1)
        if feature.value == "age":
            return (SeriesSpec("first", None, ("item_id",), within_ms),)
        return (SeriesSpec("last", feature.event, ("user_id", "item_id"), within_ms),)
    if not isinstance(feature, RateFeature | CountFeature):
        return ()
    key = (feature.of,) if feature.by is None else (feature.of, feature.by)
    half_life_ms = feature.half_life / timedelta(milliseconds=1)
    events = (feature.event, None) if isinstance(feature, RateFeature) else (feature.event,)
    return tuple(SeriesSpec("sum", event, key, half_life_ms) for event in events)


def raw_values(feature: LiveFeature, known: Mapping[str, F64]) -> F64:
    """What the feature reads, as impressions have it; NaN for nothing.

    Args:
        feature: A live feature.
        known: Series name -> `float64[n]`, as `Series.read` gives it.
    """
    values = [known[spec.name] for spec in series_of(feature)]
    if isinstance(feature, RateFeature):
        n_actions, n_impressions = values
        prior = feature.prior * feature.strength
        return np.clip(
            (n_actions + prior) / (n_impressions + feature.strength), RATE_EDGE, 1 - RATE_EDGE
        )
    if isinstance(feature, SeenFeature) and feature.value == "did":
        return (~np.isnan(values[0])).astype(np.float64)
    return values[0]


def net_values(feature: LiveFeature, raw: F64) -> F64:
    """What the net gets of raw values; of NaN the value of a key of which nothing is known."""
    unknown = 0.0
    if isinstance(feature, RateFeature):
        rate = np.clip(raw, RATE_EDGE, 1 - RATE_EDGE)
        net = np.log(rate / (1 - rate)) - np.log(feature.prior / (1 - feature.prior))
    elif isinstance(feature, CountFeature):
        net = np.log1p(np.maximum(raw, 0.0))
    elif feature.value == "did":
        net = raw
    else:
        within_s = feature.within / timedelta(seconds=1)
        net = np.clip(1 - np.log1p(np.maximum(raw, 0.0)) / np.log1p(within_s), 0.0, 1.0)
        unknown = float(feature.value == "age")  # never shown before is as new as can be
    return np.where(np.isnan(raw), unknown, net)
