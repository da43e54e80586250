"""The two input topics of a partition, and when they get ticks."""

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Final

from freshrank.clock import Clock
from freshrank.transport.base import ACTIONS, IMPRESSIONS, EventLog, Record, TopicPartition
from trainer.joiner.merge import Head, Source, releasing_ticks

logger = logging.getLogger(__name__)

# How often time passes by itself while a window is open: a negative leaves at most this late, for
# ten ticks a second.
TICK_EVERY_MS: Final = 200


def first_offsets(
    log: EventLog, partition: int, meta: MutableMapping[str, int], *, allow_gaps: bool
) -> dict[str, int]:
    """Where to go on in both topics: where `meta` says, or at their start.

    Args:
        log: The event log.
        partition: Partition of both topics.
        meta: What is committed. Its offsets are taken out; `gap_records` grows by what is skipped,
            which enters the state with the next round.
        allow_gaps: Skip what retention removed; else the first read is refused.

    Returns:
        Topic -> the first record to process.
    """
    offsets = {}
    for topic in (IMPRESSIONS, ACTIONS):
        start = log.start_offset(topic, partition)
        offset = meta.pop(f"{topic}:{partition}", start)
        if offset < start and allow_gaps:
            logger.error("%s:%d gap=%d..%d: not joined", topic, partition, offset, start - 1)
            meta["gap_records"] = meta.get("gap_records", 0) + start - offset
            offset = start
        offsets[topic] = offset
    return offsets


class Inputs:
    """Reads both topics and appends ticks to them where the merge would stand still.

    Args:
        log: The event log.
        partition: Partition of both topics.
        clock: Says what time a tick tells.
        offsets: Topic -> the first record to process.
        judge: Decodes and checks records.
    """

    def __init__(
        self,
        log: EventLog,
        partition: int,
        clock: Clock,
        offsets: Mapping[str, int],
        judge: Callable[[Sequence[Record]], list[Head]],
    ) -> None:
        self.impressions, self.actions = (
            Source(log, topic, partition, offsets[topic], judge) for topic in (IMPRESSIONS, ACTIONS)
        )
        self._log = log
        self._partition = partition
        self._clock = clock
        self._last_tick_ms = 0

    def fill(self, n_max: int) -> None:
        """Read on, and append ticks to a drained topic when records of the other wait for it."""
        both = (self.impressions, self.actions)
        for source in both:
            source.fill(n_max)
        for drained, other in (both, both[::-1]):
            if not drained.heads and other.has_news:
                drained.tick(releasing_ticks(drained, other, self._clock.now_ms()))
                drained.fill(n_max)

    def pass_time(self, newest_ms: int, n_max: int) -> None:
        """Append ticks to both topics if nothing else has told the time lately.

        Args:
            newest_ms: The newest event time processed.
            n_max: Bound of a read.
        """
        now_ms = self._clock.now_ms()
        if self.has_news or now_ms <= newest_ms or now_ms < self._last_tick_ms + TICK_EVERY_MS:
            return
        self._last_tick_ms = now_ms
        self.tick(now_ms)
        self.fill(n_max)

    def tick(self, time_ms: int) -> None:
        """Append a tick to both topics, unless one that is left there says the same."""
        for source in (self.actions, self.impressions):
            if not source.heads or source.heads[-1].time_ms < time_ms:
                source.tick([time_ms])

    def next(self) -> Source | None:
        """The source whose head is processed next; None when one of them has none."""
        shown, acted = self.impressions.heads, self.actions.heads
        if not shown or not acted:
            return None
        # By (time, topic, offset): of topics, actions come first.
        return self.actions if acted[0].time_ms <= shown[0].time_ms else self.impressions

    def heads(self) -> list[Head]:
        """All records read but not processed."""
        return [*self.impressions.heads, *self.actions.heads]

    @property
    def first_row(self) -> int:
        """First encoded row of the impressions that are read but not processed."""
        rows = (head.first_row for head in self.impressions.heads if head.first_row >= 0)
        return next(rows, sys.maxsize)

    @property
    def has_news(self) -> bool:
        """True when a record other than a tick is waiting."""
        return self.impressions.has_news or self.actions.has_news

    def offsets(self) -> dict[str, int]:
        """`topic:partition` -> next record to process."""
        return {
            f"{source.topic}:{self._partition}": source.offset
            for source in (self.impressions, self.actions)
        }

    def positions(self) -> dict[TopicPartition, int]:
        """The next record to read of each topic."""
        return {
            TopicPartition(source.topic, self._partition): source.position
            for source in (self.impressions, self.actions)
        }

    def wait(self, timeout_s: float) -> bool:
        """Block until one of the topics grows."""
        return self._log.wait(self.positions(), timeout_s=timeout_s)
