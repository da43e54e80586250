"""Rounds on Kafka: what a round sends, reads and changes enters in one transaction.

The database is a cache: it is written while the round is on its way and committed after it, stamped
with the offset behind it, and brought up to date from `freshrank.joiner-state` by whoever joins the
partition next. The input offsets are in every round there; the group is told now and then, for
those who watch it.
"""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from freshrank.errors import SchemaError, TransportError
from freshrank.transport.base import (
    ACTIONS,
    IMPRESSIONS,
    JOINER_STATE,
    NewRecord,
    TopicPartition,
)
from trainer.joiner import changelog
from trainer.joiner.changelog import Round
from trainer.joiner.ledger import Ledger
from trainer.joiner.renewal import BYTES_MIN, Renewal
from trainer.joiner.state import State

if TYPE_CHECKING:
    from freshrank.transport.kafka import KafkaLog
    from freshrank.transport.kafka_transactions import Transactions

logger = logging.getLogger(__name__)

GROUP: Final = "joiner"
# In `meta`: the offset behind the last round that is in the database, and the changelog's bytes.
_STAMP, _BYTES = "changelog", "changelog_bytes"
# Before the name of an input in `meta`: the offset that the group was told last.
_TOLD: Final = "told:"
# Rounds written into the database together when it is brought up to date.
_REPLAY_ROUNDS: Final = 16


class Transacted:
    """Commits of one joiner; see `Commits`.

    Args:
        log: The event log.
        partition: Of all topics.
        state: The database.
        transactions: Those of this partition; it stays the caller's to close.
        fingerprint: What the stored requests depend on.
    """

    # The changelog is cut once it has so many bytes, see `Renewal`.
    renewal_bytes_min = BYTES_MIN
    # The group is told as often as by Kafka's consumers. In every round it would cost two requests
    # to the broker more, one after the other.
    tell_every_s = 5.0
    # Before 4.0 a broker may show a group's offsets some time after their transaction.
    group_wait_s = 2.0

    def __init__(
        self,
        log: "KafkaLog",
        partition: int,
        state: State,
        transactions: "Transactions",
        fingerprint: str,
    ) -> None:
        self._log = log
        self._partition = partition
        self._state = state
        self._transactions = transactions
        self._fingerprint = fingerprint
        self._place = TopicPartition(JOINER_STATE, partition)
        inputs = [TopicPartition(topic, partition) for topic in (IMPRESSIONS, ACTIONS)]
        self._inputs = {place: f"{place.topic}:{partition}" for place in inputs}
        self._reached: dict[TopicPartition, int] = {}  # offsets of what is read next
        self._told: dict[TopicPartition, int] = {}  # as the group knows them
        self._tells_at_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether a round is due that tells the group, though nothing new has come."""
        return self._told != self._reached and time.monotonic() >= self._tells_at_s

    def restore(self) -> dict[str, int]:
        """Settle the last transaction, whoever began it, and write what the database lacks."""
        self._transactions.settle()
        self._state.bind(self._log.identity)
        start, end = self._log.start_offset(*self._place), self._log.end_offset(*self._place)
        stamp = self._state.meta().get(_STAMP, 0)
        if stamp > end:
            raise TransportError(
                f"the cache of partition {self._partition} is at offset {stamp} of {JOINER_STATE}, "
                f"which ends at {end}: was the topic made anew? Make all topics anew, or begin "
                "under another log.prefix",
                code="state-mismatch",
            )
        if stamp < start:
            self._state.clear()
            stamp = start
        self._roll_forward(stamp)
        meta = self._state.meta()
        meta.pop(_STAMP, None)
        self._reached = self._offsets(meta)
        told = {place: meta.pop(_TOLD + name, None) for place, name in self._inputs.items()}
        # Rounds of earlier versions do not say: each told the group.
        self._told = {p: at for p, at in told.items() if at is not None} or self._reached
        self._check_group()
        self._renewal = Renewal(self._state, meta.pop(_BYTES, 0), self.renewal_bytes_min)
        return meta

    def put(self, topic: str, value: bytes, ledger: Ledger) -> None:
        """Add a record to a round."""
        ledger.outbox.append((topic, 0, value))

    def commit(self, ledger: Ledger) -> None:
        """Commit the round; the database, written meanwhile, follows."""
        reached = self._offsets(ledger.meta)
        now_s = time.monotonic()
        tells = now_s >= self._tells_at_s
        told = reached if tells else self._told
        ledger.meta[_BYTES] = self._renewal.n_bytes
        ledger.meta |= {_TOLD + self._inputs[place]: at for place, at in told.items()}
        changes = self._state.changes(ledger)
        n_bytes = sum(len(value) for *_, value in changes.parts)  # most of a round
        rows = self._renewal.piece(n_bytes)
        one = Round(self._log.identity, self._fingerprint, rows, changes)
        pieces = changelog.encode(one)
        records = {self._place: pieces}
        for topic, _, value in ledger.outbox:
            place = TopicPartition(topic, self._partition)
            records.setdefault(place, []).append(NewRecord(b"", value))
        with self._state.transaction():
            offsets = self._transactions.commit(
                records,
                group=GROUP,
                offsets=told if tells else {},
                meanwhile=lambda: self._state.write(changes, watermark_ms=ledger.watermark_ms),
            )
            first, last = offsets[self._place][0], offsets[self._place][-1]
            self._state.note(_STAMP, last + 1)
        self._reached, self._told = reached, told
        if tells:
            self._tells_at_s = now_s + self.tell_every_s
        if ledger.forgotten:
            self._renewal.want()
        n_bytes = sum(len(piece.value) for piece in pieces)
        if (cut := self._renewal.committed(first, n_bytes)) is not None:
            self._cut(cut)

    def relay(self) -> None:
        """Nothing: all is in the log once it is committed."""

    def _roll_forward(self, stamp: int) -> None:
        some: list[Round] = []
        for behind, one in changelog.rounds_from(self._log, self._place, stamp):
            self._check(one)
            one.changes.meta[_STAMP] = behind
            some.append(one)
            if len(some) >= _REPLAY_ROUNDS:
                self._state.replay((one.rows, one.changes) for one in some)
                some = []
        self._state.replay((one.rows, one.changes) for one in some)

    def _check(self, one: Round) -> None:
        if one.log != self._log.identity:
            raise TransportError(
                f"{JOINER_STATE}:{self._partition} belongs to topics of identity {one.log}, the "
                f"others are {self._log.identity} now: some were made anew. Make all anew, or "
                "begin under another log.prefix",
                code="state-mismatch",
            )
        if one.fingerprint != self._fingerprint:
            raise SchemaError(
                f"{JOINER_STATE}:{self._partition} was written for fingerprint "
                f"{one.fingerprint!r}, this program and configuration have {self._fingerprint!r}: "
                "start with the earlier ones until the windows are closed, or begin under another "
                "log.prefix",
                code="joiner-state",
            )

    def _check_group(self) -> None:
        """A group that was away for long is forgotten; what it knows is what it was told.

        Or what was reached: of rounds of an earlier version, which told it all.
        """
        deadline_s = time.monotonic() + self.group_wait_s
        while found := self._changed():
            if time.monotonic() >= deadline_s:
                place, at = found
                raise TransportError(
                    f"group {GROUP} has offset {at} of {self._inputs[place]}, the joiner told it "
                    f"{self._told.get(place)}: it was changed by other means. Set the group's "
                    "offset to what it was told, or begin under another log.prefix",
                    code="state-mismatch",
                )
            time.sleep(0.1)

    def _changed(self) -> tuple[TopicPartition, int] | None:
        """An offset of the group that is not the joiner's."""
        group = self._log.committed(GROUP)
        for place in self._inputs.keys() & group.keys():
            if group[place] not in (self._told.get(place), self._reached.get(place)):
                return place, group[place]
        return None

    def _offsets(self, meta: Mapping[str, int]) -> dict[TopicPartition, int]:
        return {place: meta[name] for place, name in self._inputs.items() if name in meta}

    def _cut(self, offset: int) -> None:
        try:
            self._log.remove_before(*self._place, offset)
        except TransportError as error:  # the changelog is longer than it needs to be
            logger.warning("changelog=%s:%d state=not-cut error=%s", *self._place, error)
