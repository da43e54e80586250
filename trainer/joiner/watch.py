"""What a joiner says of itself in metrics; a round tells it a handful of figures."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from freshrank.accounting import GROWING
from freshrank.clock import Clock
from freshrank.metrics import Reading
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS
from trainer.joiner.arena import Arena
from trainer.joiner.inputs import Inputs
from trainer.joiner.rows import Position
from trainer.joiner.rules import Rows
from trainer.joiner.times import milliseconds

logger = logging.getLogger(__name__)

# Of the rows that leave in a round so many groups are timed, evenly spread: some 40 microseconds.
_SAMPLE_MAX: Final = 32
_LETTERS: Final = {ACTIONS: "dead_letter", IMPRESSIONS: "impressions_dead_letter"}


class Watch:
    """Counts rounds and times events; one thread tells it, any asks.

    Args:
        settings: Join is read.
        partition: Of the joiner.
        clock: Its wall time.
        arena: Knows when impressions were appended.
        progress: Told when events were read and joined.

    Attributes:
        clock_behind_s: How far the clock is behind event time where what happens now is late, else
            0. It was set back, or a service's clock was ahead.
    """

    def __init__(
        self,
        settings: Settings,
        partition: int,
        clock: Clock,
        arena: Arena,
        progress: Progress,
    ) -> None:
        window_ms, out_of_order_ms, lateness_ms, _ = milliseconds(settings)
        self._over_ms = window_ms + out_of_order_ms + lateness_ms
        self.clock_behind_s = 0.0
        self._partition = str(partition)
        self._clock = clock
        self._arena = arena
        self._n_rounds = 0
        self._freshness = progress.freshness

    def began(self, inputs: Inputs) -> None:
        """A round begins: how long the first of its records have waited for it."""
        for kind, source in (("action", inputs.actions), ("negative", inputs.impressions)):
            if source.heads and not source.heads[0].is_tick:
                appended_at_ms = source.heads[0].record.appended_at_ms
                self._freshness["queue"].add(kind, [appended_at_ms], self._clock.now_ms())

    def compared(self, newest_ms: int) -> None:
        """Compare the clock with the newest event time; log when it falls behind or catches up."""
        was_behind, behind_ms = self.clock_behind_s > 0, newest_ms - self._clock.now_ms()
        self.clock_behind_s = behind_ms / 1_000 if behind_ms >= self._over_ms else 0.0
        if self.clock_behind_s and not was_behind:
            logger.warning(
                "partition=%s clock=behind behind_s=%.0f: what happens now is late, not learned, "
                "until the clock has caught up; was it ahead, here or at a service?",
                *(self._partition, self.clock_behind_s),
            )
        elif was_behind and not self.clock_behind_s:
            logger.warning("partition=%s clock=caught-up", self._partition)

    def committed(self, rows: Sequence[Rows]) -> None:
        """A round is committed in which these left."""
        self._n_rounds += 1
        if logger.isEnabledFor(logging.DEBUG):
            for one in rows:
                request_id = one.request.request_id
                logger.debug("request=joined request_id=%s rows=%d", request_id, len(one.rows))
        sample = rows[:: len(rows) // _SAMPLE_MAX + 1]
        acted = [one.appended_at_ms for one in sample if one.appended_at_ms is not None]
        shown = [
            self._arena.appended_at_ms(number)
            for one in sample
            if one.appended_at_ms is None
            for number in one.request.numbers(one.rows[:1])
        ]
        now_ms = self._clock.now_ms()
        self._freshness["join"].add("action", acted, now_ms)
        self._freshness["join"].add("negative", shown, now_ms)

    def readings(
        self, totals: Mapping[str, int], position: Position, n_cached: int
    ) -> list[Reading]:
        """All of them.

        Args:
            totals: As last committed.
            position: How far records are processed.
            n_cached: Requests in memory.
        """
        labels = {"partition": self._partition}
        n_open = sum(n for name, n in totals.items() if name.endswith(".pending"))
        found = [
            Reading("joiner_rounds", self._n_rounds, labels),
            Reading("joiner_cached_requests", n_cached, labels),
            Reading("joiner_pending", totals["pending"], {**labels, "kind": "action"}),
            Reading("joiner_pending", n_open, {**labels, "kind": "item"}),
            Reading("gap_records", totals["gap_records"], {**labels, "stage": "join"}),
        ]
        if position.watermark_ms > 0:
            watermark_s = position.watermark_ms / 1_000
            found.append(Reading("joiner_watermark_timestamp_seconds", watermark_s, labels))
        found += [
            Reading("joiner_examples", totals[outcome], {**labels, "outcome": outcome})
            for outcome in GROWING
        ]
        found += [
            Reading("dead_letters", totals[name], {**labels, "topic": topic.rpartition(".")[2]})
            for topic, name in _LETTERS.items()
        ]
        return found
