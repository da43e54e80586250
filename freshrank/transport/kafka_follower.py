"""One consumer that reads ahead of everybody who reads a log, in a thread of its own.

kafka-python's consumer belongs to one thread and has one position per partition. Here a thread has
it, and fills a `Window` per partition that any thread reads from; a reader elsewhere makes it seek.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kafka.errors import LogTruncationError, OffsetOutOfRangeError

from freshrank.errors import TransportError
from freshrank.transport.base import Record, TopicPartition
from freshrank.transport.checks import check_range
from freshrank.transport.kafka_cluster import FETCH_WAIT_MS, Cluster
from freshrank.transport.kafka_pace import FetchPace
from freshrank.transport.kafka_stall import StallWatch
from freshrank.transport.kafka_window import Window

logger = logging.getLogger(__name__)

# A read fails once the broker has been silent for as long as a request may take, and a bit.
_GRACE_S: Final = 5.0
# kafka-python 3.0 had consumers that stood still (its issues 3106 and 3131): one that does not move
# for so long while its partition grew is replaced.
STALL_S: Final = 30.0
# A topic made anew may be as long as the earlier one was: only its id tells, which is asked for so
# often.
VERIFY_S: Final = 10.0
# How often the end of a partition is asked for that is waited for but followed elsewhere.
_LOOK_S: Final = 0.1
_RETRY_S: Final = 0.5


class Follower:
    """Reads ahead of its readers; safe to call from several threads.

    Args:
        cluster: Where from.
        verify: Asked now and then whether the log is still the one that was opened; what it says
            is the answer to everything from then on.
        stall_s: See `STALL_S`.
        verify_s: How often `verify` is asked.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        verify: Callable[[], TransportError | None],
        stall_s: float = STALL_S,
        verify_s: float = VERIFY_S,
    ) -> None:
        self._cluster = cluster
        self._verify = verify
        self._stalls = StallWatch(stall_s)
        self._verify_s = verify_s
        self._verified_s = time.monotonic()
        self._refusal: TransportError | None = None
        self._changed = threading.Condition()
        self._windows: dict[TopicPartition, Window] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._trouble = ""
        self._is_closed = False
        self._pace = FetchPace()
        self._consumer = cluster.consumer()
        self._asker = cluster.consumer()  # any thread's questions for offsets
        self._thread = threading.Thread(target=self._run, name="kafka-follower", daemon=True)
        self.n_stalls = 0
        self._thread.start()

    def read(
        self, place: TopicPartition, offset: int, *, n_max: int, bytes_max: int
    ) -> list[Record]:
        """Records from `offset` on; see `EventLog.read`."""
        if n_max <= 0:
            return []
        deadline_s = time.monotonic() + self._cluster.timeout_ms / 1_000 + _GRACE_S
        window = self._window(place)
        with window.seeking:
            while (left_s := deadline_s - time.monotonic()) > 0:
                with self._changed:
                    self.check_open()
                    end = self._ends.get(place, 0)
                    if window.serves(offset, end):
                        if records := self._take(window, offset, n_max, bytes_max):
                            return records
                        if max(window.next, offset) >= end:
                            return []
                        self._changed.wait(left_s)
                        continue
                (end,), (start,) = (self.offsets([place], is_end=one) for one in (True, False))
                check_range(_name(place), offset, start, end)
                with self._changed:
                    window.seek(offset)
                    self._changed.notify_all()
        raise TransportError(
            f"{self._cluster} sends nothing of {_name(place)} from offset {offset} on, though its "
            f"end is {self._ends.get(place)}: {self._trouble or 'is it running?'}",
            code="broker-timeout",
        )

    def _take(self, window: Window, offset: int, n_max: int, bytes_max: int) -> list[Record]:
        was_full = window.is_full
        records = window.take(offset, n_max, bytes_max)
        if was_full and not window.is_full:
            self._changed.notify_all()  # there is room to fetch more
        return records

    def wait(self, positions: Mapping[TopicPartition, int], *, timeout_s: float) -> bool:
        """Block until any of the partitions has records beyond its position."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self.check_open()
            for place, offset in positions.items():
                if place not in self._windows:
                    self._windows[place] = window = Window()
                    window.seek(offset)
                    self._changed.notify_all()
        while True:
            with self._changed:
                if self._is_closed:
                    return False
                self.check_open()
                if any(self._is_ahead(place, offset) for place, offset in positions.items()):
                    return True
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                elsewhere = [
                    place
                    for place, at in positions.items()
                    if not self._windows[place].serves(at, self._ends.get(place, 0))
                ]
                self._changed.wait(min(left_s, _LOOK_S) if elsewhere else left_s)
            if elsewhere:
                self.offsets(elsewhere, is_end=True)

    def offsets(self, places: Sequence[TopicPartition], *, is_end: bool) -> list[int]:
        """End (of what is committed) or start of partitions, as the broker says now."""
        asked = [self._cluster.place(place) for place in places]
        ask = self._asker.end_offsets if is_end else self._asker.beginning_offsets
        with self._cluster.errors(f"tell the offsets of {', '.join(map(_name, places))}"):
            found = ask(asked, timeout_ms=self._cluster.timeout_ms)
        if is_end:
            for place, kafka_place in zip(places, asked, strict=True):
                self.note_end(place, found[kafka_place])
        return [found[one] for one in asked]

    def note_end(self, place: TopicPartition, end: int) -> None:
        """Records up to `end` are known to be there: a read does not miss them."""
        with self._changed:
            self._ends[place] = max(end, self._ends.get(place, 0))

    def n_behind(self, place: TopicPartition, offset: int, end: int) -> int:
        """Offsets between `offset` and `end`, or 0 when there is nothing to read among them."""
        with self._changed:
            window = self._windows.get(place)
            is_empty = (
                window is not None
                and window.serves(offset, end)
                and window.next >= end
                and not window.has_after(offset)
            )
        return 0 if is_empty else max(0, end - offset)

    def close(self) -> None:
        """Wake everybody who waits and end the consumer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._consumer.close(timeout_ms=1_000)
        self._asker.close(timeout_ms=1_000)

    def _window(self, place: TopicPartition) -> Window:
        with self._changed:
            return self._windows.setdefault(place, Window())

    def _is_ahead(self, place: TopicPartition, offset: int) -> bool:
        window, end = self._windows[place], self._ends.get(place, 0)
        if window.serves(offset, end):
            return window.has_after(offset) or end > max(window.next, offset)
        return end > offset

    def check_open(self) -> None:
        """Refuse everything once the log is closed or is not what it was.

        Raises:
            TransportError: code `log-closed`, or what `verify` said.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._is_closed:
            raise TransportError(f"the log on {self._cluster} is closed", code="log-closed")

    # What follows runs in the follower's own thread.

    def _run(self) -> None:
        while not self._is_closed and self._refusal is None:
            try:
                self._look()  # first: what stands below may fail for as long as it finds nothing
                if self._aim():
                    batch = self._consumer.poll(timeout_ms=FETCH_WAIT_MS)
                    self._store(batch)
                    self._rest(self._pace.rest_s(sum(map(len, batch.values()))))
                self._replace_if_stalled()
                self._tell("")
            except OffsetOutOfRangeError as error:
                self._lose(error.args[0])
            except LogTruncationError as error:
                self._lose(error.divergent_offsets)
            except Exception as error:
                self._tell(f"{type(error).__name__}: {error}")
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, _RETRY_S)

    def _aim(self) -> bool:
        """Point the consumer where the windows want it. False when there is nothing to fetch."""
        with self._changed:
            windows = {p: w for p, w in self._windows.items() if w.next >= 0}
            if not any(not w.is_full for w in windows.values()):
                self._changed.wait(_LOOK_S)
                return False
            places = {place: self._cluster.place(place) for place in windows}
            if set(places.values()) != self._consumer.assignment():
                fresh = set(places.values()) - self._consumer.assignment()
                self._consumer.assign(list(places.values()))
                for place, window in windows.items():
                    if places[place] in fresh:
                        window.wanted = window.next
            paused = self._consumer.paused()
            for place, window in windows.items():
                if window.wanted is not None:
                    self._consumer.seek(places[place], window.wanted)
                    window.wanted = None
                if window.is_full and places[place] not in paused:
                    self._consumer.pause(places[place])
                elif not window.is_full and places[place] in paused:
                    self._consumer.resume(places[place])
        return True

    def _store(self, batch: Mapping[Any, list[Record]]) -> None:
        is_news = False
        with self._changed:
            for place, window in self._windows.items():
                kafka_place = self._cluster.place(place)
                if window.wanted is not None or kafka_place not in self._consumer.assignment():
                    continue  # somebody wants another place meanwhile
                records = batch.get(kafka_place, ())
                position = self._consumer.position(kafka_place, timeout_ms=0)
                is_news |= window.extend(records, window.next if position is None else position)
            if is_news:
                self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        """Until so much time has passed, or somebody wants another place."""

        def is_wanted() -> bool:
            return self._is_closed or any(w.wanted is not None for w in self._windows.values())

        if seconds > 0:
            with self._changed:
                self._changed.wait_for(is_wanted, seconds)

    def _lose(self, out_of_range: Mapping[Any, Any]) -> None:
        """Retention or a new topic took what was to be read: the next read finds out which."""
        self._verified_s = 0.0
        with self._changed:
            for place, window in self._windows.items():
                if self._cluster.place(place) in out_of_range:
                    window.lose()
            self._changed.notify_all()

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._verified_s < self._verify_s:
            return
        self._verified_s = now_s
        if refusal := self._verify():
            logger.error("consumer=%s state=refused error=%s", self._cluster, refusal)
            with self._changed:
                self._refusal = refusal
                self._changed.notify_all()

    def _replace_if_stalled(self) -> None:
        positions = {
            place: window.next
            for place, window in list(self._windows.items())
            if window.next >= 0 and not window.is_full
        }
        suspects = self._stalls.suspects(positions)
        ends = self.offsets(suspects, is_end=True) if suspects else []
        for place, end in zip(suspects, ends, strict=True):
            if end > positions[place]:
                self.n_stalls += 1
                logger.warning(
                    "partition=%s state=stalled position=%s end=%s action=new-consumer",
                    *(_name(place), positions[place], end),
                )
                self._replace()
                return

    def _replace(self) -> None:
        """Go on with a new consumer where the old one stood."""
        old, self._consumer = self._consumer, self._cluster.consumer()
        old.close(timeout_ms=1_000)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:  # a line per change, not per try
            logger.warning("consumer=%s state=%s", self._cluster, trouble or "recovered")
            self._trouble = trouble


def _name(place: TopicPartition) -> str:
    return f"{place.topic}:{place.partition}"
