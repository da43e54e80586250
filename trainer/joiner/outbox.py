"""Records on their way to the log: committed with the round that made them, appended afterwards.

Each has a sequence of its topic. The log ignores sequences it already has, so appending twice,
after a crash between append and the next commit, changes nothing.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Final

from freshrank.errors import TransportError
from freshrank.transport.base import (
    ACTIONS,
    DEAD_LETTER_SUFFIX,
    EXAMPLES,
    IMPRESSIONS,
    EventLog,
    NewRecord,
)
from trainer.joiner.ledger import Ledger
from trainer.joiner.state import State

OUTGOING_TOPICS: Final = (
    EXAMPLES,
    IMPRESSIONS + DEAD_LETTER_SUFFIX,
    ACTIONS + DEAD_LETTER_SUFFIX,
)


class Outbox:
    """Outgoing records of one joiner.

    Args:
        log: The event log.
        partition: Where all of them go.
        state: Where they are kept until they are in the log.
        sequences: Topic -> sequence of the next record.

    Raises:
        TransportError: the log has records that the database has not decided yet (`joiner-state`).
    """

    def __init__(
        self, log: EventLog, partition: int, state: State, sequences: Mapping[str, int]
    ) -> None:
        self._log = log
        self._partition = partition
        self._state = state
        self._producer = f"joiner-{partition}"
        self._sequences = dict(sequences)
        self._unsent = state.outbox()
        for topic, sequence in self._sequences.items():
            last = log.last_sequence(topic, partition, self._producer)
            if last >= sequence:
                raise TransportError(
                    f"{topic}:{partition} has sequence {last} of {self._producer}, the database of "
                    f"that joiner only {sequence - 1}: it is older than the log; restore both from "
                    "one back-up",
                    code="joiner-state",
                )

    def put(self, topic: str, value: bytes, ledger: Ledger) -> None:
        """Give a record its sequence and add it to a round."""
        ledger.outbox.append((topic, self._sequences[topic], value))
        self._sequences[topic] += 1
        ledger.meta[f"sequence:{topic}"] = self._sequences[topic]

    def committed(self, ledger: Ledger) -> None:
        """The round is durable: `relay` appends its records."""
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
