"""What every log refuses alike."""

from collections.abc import Sequence

from freshrank.errors import TransportError
from freshrank.transport.base import RECORD_BYTES_MAX, TOPICS, NewRecord
from freshrank.transport.records import KEY_BYTES_MAX, PRODUCER_BYTES_MAX


def check_topic(topic: str) -> None:
    """Refuse a topic that is none of ours.

    Raises:
        TransportError: code `unknown-topic`.
    """
    if topic not in TOPICS:
        raise TransportError(
            f"unknown topic {topic!r}; it is one of {', '.join(TOPICS)}", code="unknown-topic"
        )


def check_partition(topic: str, partition: int, n_partitions: int) -> None:
    """Refuse a partition that the topic does not have.

    Raises:
        TransportError: code `unknown-partition`.
    """
    if not 0 <= partition < n_partitions:
        raise TransportError(
            f"{topic} has no partition {partition}, only 0 to {n_partitions - 1}",
            code="unknown-partition",
        )


def check_range(name: str, offset: int, start: int, end: int) -> None:
    """Refuse to read outside a partition.

    Raises:
        TransportError: code `offset-removed` or `offset-beyond-end`.
    """
    if offset < start:
        raise TransportError(
            f"{name} begins at offset {start}, {offset} was removed by retention: read on from "
            f"{start} and count what is lost, or take a checkpoint that is newer",
            code="offset-removed",
        )
    if offset > end:
        raise TransportError(
            f"{name} ends at offset {end}, {offset} lies behind it: was the topic made anew? Its "
            "earlier offsets mean nothing then",
            code="offset-beyond-end",
        )


def check_append(
    topic: str,
    records: Sequence[NewRecord],
    partition: int | None,
    producer: str | None,
    first_sequence: int | None,
) -> None:
    """Refuse an append that breaks the rules of `EventLog.append`.

    Raises:
        TransportError: code `bad-append` or `record-too-large`.
    """
    if producer is not None or first_sequence is not None:
        if producer is None or partition is None or first_sequence is None:
            raise TransportError(
                "an idempotent append needs producer, first_sequence and partition together",
                code="bad-append",
            )
        if first_sequence < 0 or not 0 < len(producer.encode()) <= PRODUCER_BYTES_MAX:
            raise TransportError(
                f"producer {producer!r} with first_sequence {first_sequence}: the name has 1 to "
                f"{PRODUCER_BYTES_MAX} bytes, a sequence counts from 0",
                code="bad-append",
            )
    for index, record in enumerate(records):
        if len(record.value) >= RECORD_BYTES_MAX or len(record.key) > KEY_BYTES_MAX:
            raise TransportError(
                f"record {index} for {topic}: its value has {len(record.value)} bytes and must "
                f"stay below {RECORD_BYTES_MAX}, its key {len(record.key)} of at most "
                f"{KEY_BYTES_MAX}; split it under the same key",
                code="record-too-large",
            )
