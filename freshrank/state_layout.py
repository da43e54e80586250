"""What feature state remembers for a configuration, wherever it is kept."""

from collections.abc import Mapping, Sequence

import numpy as np

from freshrank.encoding import F64, text_ids, uint64_ids
from freshrank.feature_series import series_of
from freshrank.feature_types import U64
from freshrank.settings import IdFeature, IdListFeature, RecentFeature, Settings


class StateLayout:
    """Series and rings of a configuration, and the ids that users and items have in them.

    Args:
        settings: Features and salt are read.

    Attributes:
        salt: Keys the hash of strings.
        series: Series by name.
        ring_lengths: Event -> how many last items of a user some feature reads.
        has_text_items: Items have string ids, which their 64-bit ids do not tell.
        pairs: Series of what a user did last with something else: whoever knows the user alone
            cannot name their keys.
        pairs_ms: How long the longest of them remembers.
    """

    def __init__(self, settings: Settings) -> None:
        self.salt = settings.salt
        self.series = {one.name: one for f in settings.features for one in series_of(f)}
        self.ring_lengths: dict[str, int] = {}
        for feature in settings.features:
            if isinstance(feature, RecentFeature):
                longest = max(feature.max_len, self.ring_lengths.get(feature.event, 1))
                self.ring_lengths[feature.event] = longest
        self.pairs = [
            name
            for name, one in self.series.items()
            if one.kind == "last" and len(one.key) > 1 and "user_id" in one.key
        ]
        self.pairs_ms = max((self.series[name].span_ms for name in self.pairs), default=0.0)
        self._is_uint64 = {
            one.name: one.key == "uint64"
            for one in settings.features
            if isinstance(one, IdFeature | IdListFeature)
        }
        self.has_text_items = not self._is_uint64.get("item_id")

    def keyed_by(self, slot: str) -> list[str]:
        """Series whose keys are ids of this feature alone."""
        return [name for name, one in self.series.items() if one.key == (slot,)]

    def hide(self, values: Mapping[str, F64], before_ms: int, forgotten_ms: int) -> None:
        """Let `pairs` know nothing of what a user did before being forgotten.

        Args:
            values: Series name -> `float64[n]`, seconds since then; changed in place.
            before_ms: When they were read.
            forgotten_ms: Event time of the command.
        """
        for name in values.keys() & set(self.pairs):
            values[name][before_ms - values[name] * 1_000 < forgotten_ms] = np.nan

    def tokens(self, name: str, identities: Sequence[str]) -> U64:
        """The ids that the slot `name` has for canonical ids: `uint64[n]`."""
        if self._is_uint64.get(name):
            return uint64_ids(identities)
        return text_ids(identities, self.salt)
