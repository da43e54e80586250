"""Rounds on a local log: committed in the database with the records they send, appended afterwards.

Each record has a sequence of its topic. The log ignores sequences it already has, so appending
twice, after a crash between append and the next commit, changes nothing.
"""

import sqlite3
from contextlib import closing
from itertools import groupby
from pathlib import Path

from freshrank.errors import TransportError
from freshrank.transport.base import EventLog, NewRecord, TopicPartition
from freshrank.transport.local_copy import Limit
from trainer.joiner.commits import OUTGOING_TOPICS
from trainer.joiner.ledger import Ledger
from trainer.joiner.state import State


class Outbox:
    """Commits of one joiner; see `Commits`.

    Args:
        log: The event log.
        partition: Where all records go.
        state: Where they are kept until they are in the log.
    """

    def __init__(self, log: EventLog, partition: int, state: State) -> None:
        self._log = log
        self._partition = partition
        self._state = state
        self._producer = _producer(partition)
        self._sequences: dict[str, int] = {}
        self._unsent: list[tuple[str, int, bytes]] = []

    @property
    def is_due(self) -> bool:
        """Never: who watches asks the joiner."""
        return False

    def restore(self) -> dict[str, int]:
        """Start from the database; the log may lack records of its last round, but has no more."""
        meta = self._state.meta()
        self._sequences = {topic: meta.pop(f"sequence:{topic}", 0) for topic in OUTGOING_TOPICS}
        self._unsent = self._state.outbox()
        for topic, sequence in self._sequences.items():
            last = self._log.last_sequence(topic, self._partition, self._producer)
            if last >= sequence:
                raise TransportError(
                    f"{topic}:{self._partition} has sequence {last} of {self._producer}, the "
                    f"database of that joiner only {sequence - 1}: it is older than the log; "
                    "restore both from one backup",
                    code="joiner-state",
                )
        return meta

    def put(self, topic: str, value: bytes, ledger: Ledger) -> None:
        """Give a record its sequence and add it to a round."""
        ledger.outbox.append((topic, self._sequences[topic], value))
        self._sequences[topic] += 1
        ledger.meta[f"sequence:{topic}"] = self._sequences[topic]

    def commit(self, ledger: Ledger) -> None:
        """Make the round durable; `relay` appends its records."""
        changes = self._state.changes(ledger)
        with self._state.transaction():
            self._state.write(changes, watermark_ms=ledger.watermark_ms, outbox=ledger.outbox)
        self._unsent += ledger.outbox

    def relay(self) -> None:
        """Append what is committed, in order."""
        while self._unsent:
            topic, first = self._unsent[0][:2]
            _, group = next(groupby(self._unsent, key=lambda entry: entry[0]))
            records = [NewRecord(b"", value) for _, _, value in group]
            self._log.append(
                topic,
                records,
                partition=self._partition,
                producer=self._producer,
                first_sequence=first,
            )
            self._state.relayed(topic, first + len(records) - 1)
            del self._unsent[: len(records)]


def known(database: Path, partition: int) -> dict[TopicPartition, Limit]:
    """How far a joiner's database knows the log: a copy of the log beside it must end there.

    Args:
        database: A copy of it, that nobody writes.
        partition: Of the joiner.
    """
    with closing(sqlite3.connect(database)) as connection:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
    return {
        TopicPartition(topic, partition): Limit(
            _producer(partition), meta.get(f"sequence:{topic}", 0)
        )
        for topic in OUTGOING_TOPICS
    }


def _producer(partition: int) -> str:
    return f"joiner-{partition}"
