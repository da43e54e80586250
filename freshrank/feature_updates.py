"""What is said to feature state: rounds of updates, and one question per request."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import numpy as np

from freshrank.encoding import F64
from freshrank.errors import SchemaError
from freshrank.feature_types import I64, U64

FORMAT: Final = 2
_PLAIN: Final = 1  # the same where nothing is to be forgotten


@dataclass(frozen=True, slots=True, order=True)
class Did:
    """One action of a user.

    Attributes:
        ts_ms: Event time.
        event_id: Identity of the action.
        item: Canonical item id.
    """

    ts_ms: int
    event_id: str
    item: str


class Forgotten(NamedTuple):
    """An id of which nothing is to be known any more.

    Attributes:
        slot: Its feature.
        id: The 64-bit id.
        ts_ms: Event time of the command.
    """

    slot: str
    id: int
    ts_ms: int


@dataclass(slots=True)
class FeatureUpdates:
    """What some impressions and actions change.

    Attributes:
        events: Series name -> keys `uint64[n]` and times `int64[n]` of its events.
        did: Event, canonical user and action, for `recent` features.
        marks: `topic:partition` -> offset through which the joiner has decided with this round.
        forgotten: Ids that are forgotten before any of it is known.
    """

    events: dict[str, tuple[U64, I64]] = field(default_factory=dict)
    did: list[tuple[str, str, Did]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    forgotten: list[Forgotten] = field(default_factory=list)

    @classmethod
    def together(
        cls, parts: Sequence["FeatureUpdates"], marks: Mapping[str, int]
    ) -> "FeatureUpdates":
        """One round of several parts."""
        events: dict[str, list[tuple[U64, I64]]] = {}
        for part in parts:
            for name, pair in part.events.items():
                events.setdefault(name, []).append(pair)
        return cls(
            {
                name: (np.concatenate([k for k, _ in pairs]), np.concatenate([t for _, t in pairs]))
                for name, pairs in events.items()
            },
            [one for part in parts for one in part.did],
            dict(marks),
            [one for part in parts for one in part.forgotten],
        )

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it, for the joiner's database."""
        events = {name: [k.tobytes(), t.tobytes()] for name, (k, t) in self.events.items()}
        did = [(event, user, d.ts_ms, d.event_id, d.item) for event, user, d in self.did]
        if not self.forgotten:
            return msgspec.msgpack.encode([_PLAIN, events, did, self.marks])
        return msgspec.msgpack.encode([FORMAT, events, did, self.marks, self.forgotten])

    @classmethod
    def from_bytes(cls, value: bytes) -> "FeatureUpdates":
        """The updates that `to_bytes` wrote.

        Raises:
            SchemaError: another version wrote it.
        """
        version, *content = msgspec.msgpack.decode(value)
        if version not in (_PLAIN, FORMAT):
            raise SchemaError(
                f"a round of feature updates has format {version}, this program reads {FORMAT}: "
                "start the version that wrote it, or begin with a new data directory",
                code="joiner-state",
            )
        events, did, marks, *forgotten = content
        return cls(
            {
                n: (np.frombuffer(k, np.uint64), np.frombuffer(t, np.int64))
                for n, (k, t) in events.items()
            },
            [(event, user, Did(*one)) for event, user, *one in did],
            marks,
            [Forgotten(*one) for one in itertools.chain(*forgotten)],
        )


@dataclass(frozen=True, slots=True)
class StateQuery:
    """What one request asks.

    Attributes:
        before_ms: Its time: what happened before is visible.
        keys: Series name -> `uint64[n]`.
        user: Canonical user, whose recent items are asked for; None for nobody's.
    """

    before_ms: int
    keys: Mapping[str, U64]
    user: str | None = None


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """What feature state knows.

    Attributes:
        values: Series name -> `float64[n]`: the sum, or seconds since then, NaN where unknown.
        recent: Event -> the user's last items, newest first.
    """

    values: dict[str, F64]
    recent: dict[str, list[str]]
