"""What feature state remembers for a configuration, wherever it is kept."""

from collections.abc import Sequence

from freshrank.encoding import text_ids, uint64_ids
from freshrank.feature_series import series_of
from freshrank.feature_types import U64
from freshrank.settings import IdFeature, RecentFeature, Settings


class StateLayout:
    """Series and rings of a configuration, and the ids that users and items have in them.

    Args:
        settings: Features and salt are read.

    Attributes:
        salt: Keys the hash of strings.
        series: Series by name.
        ring_lengths: Event -> how many last items of a user some feature reads.
        has_text_items: Items have string ids, which their 64-bit ids do not tell.
    """

    def __init__(self, settings: Settings) -> None:
        self.salt = settings.salt
        self.series = {one.name: one for f in settings.features for one in series_of(f)}
        self.ring_lengths: dict[str, int] = {}
        for feature in settings.features:
            if isinstance(feature, RecentFeature):
                longest = max(feature.max_len, self.ring_lengths.get(feature.event, 1))
                self.ring_lengths[feature.event] = longest
        self._is_uint64 = {
            one.name: one.key == "uint64" for one in settings.features if isinstance(one, IdFeature)
        }
        self.has_text_items = not self._is_uint64.get("item_id")

    def tokens(self, name: str, identities: Sequence[str]) -> U64:
        """The ids that the slot `name` has for canonical ids: `uint64[n]`."""
        if self._is_uint64.get(name):
            return uint64_ids(identities)
        return text_ids(identities, self.salt)
