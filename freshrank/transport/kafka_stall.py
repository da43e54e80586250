"""Notices partitions whose consumer does not move."""

import time
from collections.abc import Mapping

from freshrank.transport.base import TopicPartition


class StallWatch:
    """Knows since when each position is what it is.

    Args:
        stall_s: A position that stays for so long is suspect; again after as long.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._since: dict[TopicPartition, tuple[int, float]] = {}

    def suspects(self, positions: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        """Partitions that have not moved: at their end, or stalled."""
        now_s = time.monotonic()
        found = []
        for place, position in positions.items():
            before, since_s = self._since.get(place, (-1, now_s))
            is_suspect = position == before and now_s - since_s >= self._stall_s
            if is_suspect:
                found.append(place)
            if is_suspect or position != before:
                self._since[place] = (position, now_s)
        return found
