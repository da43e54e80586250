"""What is known of a user and of items besides what a request says: the same for every record.

Rankings and reported impressions are completed here alike, so that training sees what serving uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from freshrank.feature_state import StateReader
from freshrank.features import FeatureEncoder, RequestValues
from freshrank.live import LiveFeatures
from freshrank.messages import Value
from freshrank.settings import CrossFeature, LiveFeature, RecentFeature, Settings

# Entities by scope and id that came earlier in the same request: nobody has read them back yet.
SentTogether = dict[tuple[str, str], Mapping[str, Value]]

_FILLED_IN: Final = ("user_id", "item_id")


def nobody_sent(_scope: str, identities: Sequence[str]) -> list[Mapping[str, Value]]:
    """Features of items or users where none were ever sent."""
    return [{} for _ in identities]


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
        sent: Features by scope and canonical ids, as `EntityView.features_of` has them.
        state: Feature state.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        sent: Callable[[str, Sequence[str]], Sequence[Mapping[str, Value]]],
        state: StateReader,
    ) -> None:
        self.names = Names.of(settings)
        self.live = LiveFeatures(settings, encoder)
        self._sent = sent
        self._state = state

    def complete(
        self,
        user: str | None,
        items: Sequence[str],
        shared: Mapping[str, Value],
        columns: Sequence[Mapping[str, Value]],
        *,
        before_ms: int,
        sent: SentTogether | None = None,
    ) -> RequestValues:
        """All values of a request: explicit ones, what was sent before, feature state.

        Args:
            user: Canonical user; None for nobody.
            items: Canonical items.
            shared: Explicit user and context features; they win.
            columns: Explicit item and candidate features of each item; they win.
            before_ms: Time of the request; feature state shows what happened before.
            sent: Entities that came earlier in the same request.

        Raises:
            DataError: a value cannot be encoded.
        """
        known = {} if user is None else self._features("user", [user], sent)[0]
        values = RequestValues(
            items, user, {**known, **shared}, self._columns(items, columns, sent)
        )
        return self.live.fill(values, self._state, before_ms=before_ms)

    def _columns(
        self,
        items: Sequence[str],
        explicit: Sequence[Mapping[str, Value]],
        sent: SentTogether | None,
    ) -> dict[str, list[Value]]:
        """Item and candidate features, one entry per item."""
        rows = [
            {**known, **own} if known and own else known or own
            for known, own in zip(self._features("item", items, sent), explicit, strict=True)
        ]
        columns = {name: [row.get(name) for row in rows] for name in self.names.columns}
        return {n: c for n, c in columns.items() if any(value is not None for value in c)}

    def _features(
        self, scope: str, identities: Sequence[str], sent: SentTogether | None
    ) -> Sequence[Mapping[str, Value]]:
        known = self._sent(scope, identities)
        if not sent:
            return known
        return [sent.get((scope, one), own) for one, own in zip(identities, known, strict=True)]
