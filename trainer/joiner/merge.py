"""The order in which the records of two topics are processed, and the ticks that keep it moving.

A record is processed only when both topics have an unread one to compare: the smaller of
(event time, topic, offset) goes first. So the order is a function of the two logs. Where one topic
has nothing more, the joiner appends a `Tick` to it; from then on the tick is part of the log and
every replay finds it at the same place.
"""

import heapq
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self

import msgspec

from freshrank import messages
from freshrank.errors import DataError
from freshrank.messages import Impression, Message, Tick
from freshrank.transport.base import EventLog, NewRecord, Record

# Bounds one read and with it a round: 4 MiB of impressions are about 3,000 of ten items.
READ_BYTES_MAX: Final = 4 << 20
# A record whose time is unknown is processed at once and moves no watermark.
NO_TIME: Final = -1

Due = tuple[int, str]  # when, which request


class Shown(msgspec.Struct, gc=False):
    """What is left to decide on of an impression once its features are encoded."""

    event_id: str
    request_id: str
    user: str | None
    items: list[str]
    source: str
    part: int
    parts: int

    @classmethod
    def of(cls, one: Impression) -> Self:
        """Of an impression."""
        return cls(
            one.event_id, one.request_id, one.user, one.items, one.source, one.part, one.parts
        )


class Head(msgspec.Struct, gc=False):
    """A record that was read but not yet processed.

    Attributes:
        record: As it stands in the log.
        time_ms: Event time, `min(ts, received_at)`; `NO_TIME` when it cannot be told.
        message: What it says; None when `error` is given.
        error: Why it goes to the dead letter.
        first_row: An impression's first row in the arena, -1 when it has none.
        key: Of an action's event id; of an impression's user, where users have a quota; else 0.
    """

    record: Record
    time_ms: int
    message: Message | Shown | None
    error: DataError | None = None
    first_row: int = -1
    key: int = 0

    @property
    def is_tick(self) -> bool:
        """True for time passing."""
        return type(self.message) is Tick


class Source:
    """One topic's unread records.

    Args:
        log: The event log.
        topic: One of the two input topics.
        partition: Partition of it.
        offset: The first record to process.
        judge: Decodes and checks records.
    """

    def __init__(
        self,
        log: EventLog,
        topic: str,
        partition: int,
        offset: int,
        judge: Callable[[Sequence[Record]], list[Head]],
    ) -> None:
        self.topic = topic
        self.offset = offset  # next to process
        self.position = offset  # next to read
        self.heads: deque[Head] = deque()
        self._log = log
        self._partition = partition
        self._judge = judge

    def fill(self, n_max: int) -> None:
        """Read on when nothing but ticks is left over."""
        if self.has_news:
            return
        records = self._log.read(
            self.topic, self._partition, self.position, n_max=n_max, bytes_max=READ_BYTES_MAX
        )
        if records:
            self.heads.extend(self._judge(records))
            self.position = records[-1].offset + 1

    def pop(self) -> Head:
        """The next record, which now counts as processed."""
        head = self.heads.popleft()
        self.offset = head.record.offset + 1
        return head

    @property
    def has_news(self) -> bool:
        """True when a record other than a tick is waiting."""
        return any(not head.is_tick for head in self.heads)

    def tick(self, times_ms: Iterable[int]) -> None:
        """Append ticks to this topic; those that stand where it is read next count as read."""
        ticks = [
            Tick(event_id=f"tick-{time_ms}", ts_ms=time_ms, received_at_ms=time_ms)
            for time_ms in times_ms
        ]
        if not ticks:
            return
        new = [NewRecord(b"", messages.encode(tick)) for tick in ticks]
        places = self._log.append(self.topic, new, partition=self._partition)
        for tick, one, (partition, offset) in zip(ticks, new, places, strict=True):
            if offset != self.position:
                break  # behind records that are not read yet
            record = Record(self.topic, partition, offset, one.key, one.value, tick.ts_ms)
            self.heads.append(Head(record, tick.ts_ms, tick))
            self.position = offset + 1


def releasing_ticks(drained: Source, other: Source, now_ms: int) -> list[int]:
    """Times of the ticks that let every waiting record of `other` pass a drained topic.

    A tick says "now", or the record's own time where the clock is behind it (a replay). With a
    clock that stands still they depend on the records alone, however many are read at a time.
    """
    # At the same time a tick of the topic that sorts first would be processed first and be no help.
    ahead_ms = 0 if drained.topic > other.topic else 1
    times_ms: list[int] = []
    n_released = 0  # ticks that only wait behind the last record need no help
    for head in other.heads:
        needed_ms = head.time_ms + ahead_ms
        if not times_ms or needed_ms > times_ms[-1]:
            times_ms.append(max(now_ms, needed_ms))
        if not head.is_tick:
            n_released = len(times_ms)
    return times_ms[:n_released]


class Timers:
    """What falls due in a round, in the order (due time, request).

    Args:
        loaded: The first of those in the database, in order.
        is_complete: False when the database has more: nothing after the last one may fire yet.
        until_ms: The latest time that the round can reach: what falls due later is left to the
            database.

    Attributes:
        next_ms: When the first falls due, or must wait for the next round.
    """

    def __init__(self, loaded: Sequence[Due], *, is_complete: bool, until_ms: int = 0) -> None:
        self._heap = list(loaded)  # sorted, hence a heap
        self._horizon = None if is_complete or not loaded else loaded[-1]
        self._until_ms = until_ms
        self.next_ms = loaded[0][0] if loaded else sys.maxsize

    def push(self, due: Due) -> None:
        """Add one; a request may have several, of which the last that was added holds."""
        if due[0] <= self._until_ms:
            heapq.heappush(self._heap, due)
            self.next_ms = min(self.next_ms, due[0])

    def pop(self, until_ms: int) -> Due | None:
        """The first that is due by `until_ms`; None when there is none, or not in this round."""
        if not self._heap or self._heap[0][0] > until_ms:
            return None
        if self._horizon is not None and self._heap[0] > self._horizon:
            return None
        due = heapq.heappop(self._heap)
        self.next_ms = self._heap[0][0] if self._heap else sys.maxsize
        if self._horizon is not None:
            self.next_ms = min(self.next_ms, self._horizon[0])
        return due
