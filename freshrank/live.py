"""Live features of rows: which keys they have, what is read for them, what impressions change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedding_store import mix_ids
from freshrank.encoding import F64
from freshrank.feature_series import raw_values, series_of
from freshrank.feature_state import Did, FeatureUpdates, StateQuery, StateReader
from freshrank.feature_types import I64, U64, RequestValues, SlotIds
from freshrank.features import FeatureEncoder
from freshrank.messages import Value
from freshrank.settings import Settings

Bools = npt.NDArray[np.bool_]
Slots = Mapping[str, SlotIds]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of n rows.

    Attributes:
        ids: `uint64[m]`, those of the rows that have one.
        has_key: `bool[n]`; None when all have.
    """

    ids: U64
    has_key: Bools | None

    def of_rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Those of n values that belong to rows with a key."""
        return values if self.has_key is None else values[self.has_key]

    def to_rows(self, values: F64) -> F64:
        """Values of m keys -> n rows, NaN in rows without a key."""
        if self.has_key is None:
            return values
        rows = np.full(len(self.has_key), np.nan)
        rows[self.has_key] = values
        return rows


class LiveFeatures:
    """Live and recent features of one configuration. Immutable, safe for threads.

    Args:
        settings: The configuration.
        encoder: Its encoder.

    Attributes:
        series: What the features remember, each once.
        key_slots: Features whose ids make keys.
        counts_impressions: Some series remember what was shown.
        events: Actions they want to hear of, `recent` features included.
    """

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        self._encoder = encoder
        self._salt = settings.salt
        self.series: Final = tuple(
            {spec.name: spec for feature in encoder.live for spec in series_of(feature)}.values()
        )
        self.key_slots: Final = tuple(
            dict.fromkeys(name for spec in self.series for name in spec.key)
        )
        self.counts_impressions: Final = any(spec.event is None for spec in self.series)
        self._recent_events = frozenset(feature.event for feature in encoder.recent)
        wanted = {spec.event for spec in self.series if spec.event is not None}
        self.events = frozenset(wanted | self._recent_events)

    def keys(self, slots: Slots) -> dict[tuple[str, ...], Keys]:
        """The rows' keys, by the features that make them.

        Args:
            slots: Ids of the rows, of at least the features that make keys.
        """
        found: dict[tuple[str, ...], Keys] = {}
        for key in dict.fromkeys(spec.key for spec in self.series):
            bags = [slots[name] for name in key]
            lengths = [np.diff(own.offsets) for own in bags]
            has_key = np.logical_and.reduce([one > 0 for one in lengths])
            if has_key.all():
                ids = [own.ids for own in bags]
                found[key] = Keys(self._mixed(ids), None)
            else:
                ids = [own.ids[own.offsets[:-1][has_key]] for own in bags]
                found[key] = Keys(self._mixed(ids), has_key)
        return found

    def raw(self, keys: Mapping[tuple[str, ...], Keys], known: Mapping[str, F64]) -> dict[str, F64]:
        """Raw values by feature: `float64[n]`, NaN for nothing.

        Args:
            keys: Keys of n rows.
            known: Series name -> what is known of its keys.
        """
        return {
            feature.name: keys[series_of(feature)[0].key].to_rows(raw_values(feature, known))
            for feature in self._encoder.live
        }

    def fill(self, values: RequestValues, state: StateReader, *, before_ms: int) -> RequestValues:
        """The request with its recent items and live values, all read at once.

        Args:
            values: Of one request, ids of `key_slots` among them.
            state: What is known.
            before_ms: The request's time: what happened earlier is visible.

        Raises:
            DataError: a value does not fit its feature.
        """
        if not self.series and not self._recent_events:
            return values
        keys = self.keys(self._encoder.ids([values], self.key_slots))
        asked = {spec.name: keys[spec.key].ids for spec in self.series}
        answer = state.read(StateQuery(before_ms, asked, values.user))
        shared = dict(values.shared)
        if values.user is not None:
            for feature in self._encoder.recent:
                items = answer.recent.get(feature.event, [])[: feature.max_len]
                shared[feature.name] = list[int | float | str](items)
        columns: dict[str, Sequence[Value]] = dict(values.columns)
        for name, raw in self.raw(keys, answer.values).items():
            columns[name] = [None if one != one else one for one in raw.tolist()]
        return replace(values, shared=shared, columns=columns)

    def updates_of_impressions(self, slots: Slots, ts_ms: I64) -> FeatureUpdates:
        """What items that became live change.

        Args:
            slots: Ids of their n rows, as encoded, for `key_slots`.
            ts_ms: `int64[n]`, event time of each row's impression.
        """
        keys = self.keys(slots)
        return FeatureUpdates(
            {
                spec.name: (keys[spec.key].ids, keys[spec.key].of_rows(ts_ms))
                for spec in self.series
                if spec.event is None
            }
        )

    def updates_of_actions(
        self,
        slots: Slots,
        events: Sequence[str],
        ts_ms: I64,
        event_ids: Sequence[str],
        users: Sequence[str | None],
        items: Sequence[str],
    ) -> FeatureUpdates:
        """What matched actions change, on the rows they were matched with.

        Args:
            slots: Ids of their n rows, as encoded, for `key_slots`.
            events: What was done.
            ts_ms: `int64[n]`, event time of each action.
            event_ids: Identity of each action.
            users: Canonical user of the action, or else of the impression; None for nobody.
            items: Canonical item.
        """
        if "user_id" in self.key_slots:
            slots = {**slots, "user_id": self._encoder.column("user_id")(users)}
        keys = self.keys(slots)
        updates = FeatureUpdates()
        for spec in self.series:
            if spec.event in events:
                own = keys[spec.key]
                is_own = np.array([event == spec.event for event in events])
                chosen = own.of_rows(is_own)
                updates.events[spec.name] = (own.ids[chosen], own.of_rows(ts_ms)[chosen])
        for event, ts, event_id, user, item in zip(
            events, ts_ms.tolist(), event_ids, users, items, strict=True
        ):
            if user is not None and event in self._recent_events:
                updates.did.append((event, user, Did(ts, event_id, item)))
        return updates

    def _mixed(self, ids: Sequence[U64]) -> U64:
        return ids[0] if len(ids) == 1 else mix_ids(ids[0], ids[1], self._salt)
