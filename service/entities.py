"""Item and user features sent once: this process' view of `freshrank.entities`."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from freshrank.clock import Clock
from freshrank.errors import DataError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.messages import Entity, Value, decode
from freshrank.transport.base import ENTITIES, EventLog, Record, TopicPartition
from service.follower import Follower
from service.learned import OffsetHistory, Reached
from service.signal import Signal

# About 1 KiB each: a gigabyte per scope. Beyond it the longest unchanged leave, counted.
ENTITIES_MAX: Final = 1_000_000
_NONE: Final[Mapping[str, Value]] = {}


class EntityView(Follower):
    """The last features of every item and user, read from the start of the log.

    Attributes:
        n_skipped: Records that were no entity, and values that the configuration does not take.
        n_dropped: Entities that left because there were too many.
    """

    def __init__(
        self, encoder: FeatureEncoder, log: EventLog, clock: Clock, changed: Signal
    ) -> None:
        super().__init__("entities")
        self._encoder = encoder
        self._log = log
        self._clock = clock
        self._changed = changed
        self._lock = threading.Lock()
        self._features: dict[str, OrderedDict[str, Mapping[str, Value]]] = {
            "item": OrderedDict(),
            "user": OrderedDict(),
        }
        n_partitions = log.n_partitions(ENTITIES)
        self._histories = [OffsetHistory() for _ in range(n_partitions)]
        self._positions = [log.start_offset(ENTITIES, p) for p in range(n_partitions)]
        # What was written before this process began is not waited for by anybody here.
        self._old_ends = [log.end_offset(ENTITIES, p) for p in range(n_partitions)]
        self.n_skipped = 0
        self.n_dropped = 0

    @property
    def is_caught_up(self) -> bool:
        """True once everything written before this process began was read."""
        return all(at >= end for at, end in zip(self._positions, self._old_ends, strict=True))

    def features(self, scope: str, identity: str) -> Mapping[str, Value]:
        """Features of an item or user; none when nobody sent any."""
        return self.features_of(scope, [identity])[0]

    def features_of(self, scope: str, identities: Sequence[str]) -> list[Mapping[str, Value]]:
        """The same of many, in order."""
        with self._lock:
            known = self._features[scope]
            return [known.get(one, _NONE) for one in identities]

    def sample(self, scope: str, n: int) -> list[tuple[str, Mapping[str, Value]]]:
        """The first n entities of a scope."""
        with self._lock:
            return list(islice(self._features[scope].items(), n))

    def __len__(self) -> int:
        return sum(map(len, self._features.values()))

    def offset(self, partition: int) -> int:
        """The next offset to read."""
        return self._positions[partition]

    def reached(self, partition: int, offset: int) -> Reached | None:
        """When the record at `offset` was read; None while it is not."""
        with self._lock:
            return self._histories[partition].reached(offset)

    def step(self, timeout_s: float) -> int:
        """Read what is new, or wait for it. Returns records read.

        Raises:
            TransportError: the log cannot be read.
        """
        n_read = sum(self._read(partition) for partition in range(len(self._positions)))
        if n_read:
            self._changed.notify()
        else:
            ends = {TopicPartition(ENTITIES, p): at for p, at in enumerate(self._positions)}
            self._log.wait(ends, timeout_s=timeout_s)
        return n_read

    def _read(self, partition: int) -> int:
        start, old_end = self._positions[partition], self._old_ends[partition]
        try:
            records = self._log.read(ENTITIES, partition, start)
        except TransportError as error:
            if error.code != "offset-removed":  # retention took what was not read yet
                raise
            start = self._log.start_offset(ENTITIES, partition)
            records = self._log.read(ENTITIES, partition, start)
        entities = [entity for record in records if (entity := self._entity(record))]
        # Offsets without a record are marks of transactions and what compaction left out: none of
        # them is waited for.
        end = records[-1].offset + 1 if records else max(start, old_end)
        is_old = end <= old_end
        now_ms = None if is_old else self._clock.now_ms()
        with self._lock:
            for entity in entities:
                self._put(entity)
            self._histories[partition].reach(end, Reached(now_ms, now_ms))
        self._positions[partition] = end
        return len(records)

    def _entity(self, record: Record) -> Entity | None:
        try:
            message = decode(record.value)
        except DataError:
            self.n_skipped += 1
            return None
        return message if isinstance(message, Entity) else None

    def _put(self, entity: Entity) -> None:
        # The configuration may have changed since the record was accepted.
        # One by one, as the check names the first 20 problems only.
        check, scopes = self._encoder.check, [entity.scope]
        features = {name: v for name, v in entity.features.items() if not check({name: v}, scopes)}
        self.n_skipped += len(entity.features) - len(features)
        known = self._features[entity.scope]
        known[entity.id] = features
        if len(known) > ENTITIES_MAX:
            known.popitem(last=False)
            self.n_dropped += 1
