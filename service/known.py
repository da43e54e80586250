"""What is known of a user and of items besides what a request says: the same for every record.

Rankings and reported impressions are completed here alike, so that training sees what serving uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from freshrank.feature_state import FeatureState
from freshrank.features import FeatureEncoder
from freshrank.messages import Value
from freshrank.settings import CrossFeature, LiveFeature, RecentFeature, Settings

# Entities by scope and id that came earlier in the same request: nobody has read them back yet.
SentTogether = dict[tuple[str, str], Mapping[str, Value]]

_FILLED_IN: Final = ("user_id", "item_id")


@dataclass(frozen=True, slots=True)
class Names:
    """Features that take a value: `shared` once per request, `columns` once per item."""

    shared: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Names":
        """The names of a configuration."""
        names: dict[bool, list[str]] = {True: [], False: []}
        for feature in settings.features:
            filled_in = CrossFeature | RecentFeature | LiveFeature
            if isinstance(feature, filled_in) or feature.name in _FILLED_IN:
                continue
            names[feature.scope in ("user", "context")].append(feature.name)
        return cls(tuple(names[True]), tuple(names[False]))


class KnownFeatures:
    """Completes values with entity features and feature state. Immutable.

    Args:
        settings: The configuration.
        encoder: Its encoder.
        sent: Features by scope and canonical id, as `EntityView.features` has them.
        state: Feature state.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        sent: Callable[[str, str], Mapping[str, Value]],
        state: FeatureState,
    ) -> None:
        self.names = Names.of(settings)
        self._recent = encoder.recent
        self._sent = sent
        self._state = state

    def shared(
        self,
        user: str,
        explicit: Mapping[str, Value],
        *,
        before_ms: int,
        sent: SentTogether | None = None,
    ) -> dict[str, Value]:
        """User and context features, explicit ones winning, and feature state before a time."""
        shared: dict[str, Value] = {**self._features("user", user, sent), **explicit}
        for feature in self._recent:
            shared[feature.name] = list[int | float | str](
                self._state.recent(feature.event, user, before_ms=before_ms, n_max=feature.max_len)
            )
        return shared

    def columns(
        self,
        items: Sequence[str],
        explicit: Sequence[Mapping[str, Value]],
        *,
        sent: SentTogether | None = None,
    ) -> dict[str, list[Value]]:
        """Item and candidate features, explicit ones winning; one entry per item."""
        rows: list[Mapping[str, Value]] = []
        for item, own in zip(items, explicit, strict=True):
            known = self._features("item", item, sent)
            rows.append({**known, **own} if known and own else known or own)
        columns = {name: [row.get(name) for row in rows] for name in self.names.columns}
        return {n: c for n, c in columns.items() if any(value is not None for value in c)}

    def _features(
        self, scope: str, identity: str, sent: SentTogether | None
    ) -> Mapping[str, Value]:
        together = sent.get((scope, identity)) if sent else None
        return self._sent(scope, identity) if together is None else together
