"""What one round decides, collected until it is committed."""

import logging
from collections import Counter
from typing import Final

from freshrank.errors import DataError
from freshrank.feature_updates import Forgotten
from freshrank.frames import Outcome
from freshrank.transport.base import DEAD_LETTER_SUFFIX, Record
from trainer.dead_letters import dead_letter
from trainer.joiner.requests import (
    HELD,
    NEGATIVE,
    PENDING,
    POSITIVE,
    SAMPLED_OUT,
    Acted,
    Request,
)
from trainer.joiner.rules import Rows, Rules

logger = logging.getLogger(__name__)

TOTALS: Final = (
    "accepted_actions",
    "matched",
    "duplicate",
    "unmatched",
    "late",
    "dead_letter",
    "pending",
    "accepted_impressions",
    "impressions_joined",
    "impressions_duplicate",
    "impressions_dead_letter",
    "impression_items",
    "examples_written",
    "reversals",
    "gap_records",
)


class Ledger:
    """The results of one round.

    Args:
        partition: Of the input topics.

    Attributes:
        rows: Rows that leave, in order.
        n_rows: How many they are.
        outcomes: Decisions that are not simply `trained`.
        totals: By how much each total changes.
        shown: (number in the arena, event time) of items that became live, for feature state.
        acted: Matched actions, for feature state.
        forgotten: Ids that feature state is to forget.
        updates: Number and bytes of what feature state is told; None for nothing.
        letters: Dead letters: topic and value.
        parts: New impression records: request number, part, when it was appended, bytes.
        changed: Requests to write, by number.
        gone: Numbers of requests to remove.
        seen: Key of an event id, or of a user with a quota -> when it is forgotten.
        outbox: Topic, sequence and value of each record to append.
        meta: Offsets, sequences and totals after the round.
        watermark_ms: What it has passed can be swept.
    """

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self.rows: list[Rows] = []
        self.n_rows = 0
        self.outcomes: list[Outcome] = []
        self.totals: Counter[str] = Counter()
        self.shown: list[tuple[int, int]] = []
        self.acted: list[Acted] = []
        self.forgotten: list[Forgotten] = []
        self.updates: tuple[int, bytes] | None = None
        self.letters: list[tuple[str, bytes]] = []
        self.parts: list[tuple[int, int, int, bytes]] = []
        self.changed: dict[int, Request] = {}
        self.gone: list[int] = []
        self.seen: dict[int, int] = {}
        self.outbox: list[tuple[str, int, bytes]] = []
        self.meta: dict[str, int] = {}
        self.watermark_ms = 0

    def leave(self, rows: list[Rows]) -> None:
        """Note rows that leave."""
        for one in rows:
            self.rows.append(one)
            self.n_rows += len(one.rows)

    def tell(self, topic: str, offset: int, outcome: str) -> None:
        """Note what became of a record."""
        self.outcomes.append(Outcome(topic, self._partition, offset, outcome))

    def bury(self, record: Record, error: DataError) -> None:
        """Send a record to the dead letter."""
        # Not its text, which quotes what users sent: that stands in the letter.
        place = (record.topic, self._partition, record.offset, error.code)
        logger.debug("record=refused topic=%s partition=%d offset=%d code=%s", *place)
        letter = dead_letter(record, error.code, str(error), record.value)
        self.tell(record.topic, record.offset, "dead_letter")
        self.letters.append((record.topic + DEAD_LETTER_SUFFIX, letter))

    def count(self, rules: Rules) -> None:
        """Enter rows, and items by status, into the totals as `freshrank.accounting` names them."""
        n_reversals = sum(one.is_reversal for one in self.rows) // 2
        self.totals["examples_written"] += self.n_rows - n_reversals
        self.totals["reversals"] += n_reversals
        self.totals.update(item_totals(rules))


def item_totals(rules: Rules) -> dict[str, int]:
    """By how much items in each status have changed since the last call."""
    totals = {}
    counts = zip(rules.tasks, rules.has_negative, rules.take_counts(), strict=True)
    for task, has_negative, of_task in counts:
        totals[f"{task}.positive"] = of_task[POSITIVE] + of_task[HELD]
        totals[f"{task}.negative"] = of_task[NEGATIVE]
        totals[f"{task}.sampled_out"] = of_task[SAMPLED_OUT]
        # Without a negative rule nothing is waited for: an item stays without a label.
        totals[f"{task}.{'pending' if has_negative else 'unlabelled'}"] = of_task[PENDING]
    return totals
