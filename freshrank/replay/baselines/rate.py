"""The item's decayed action rate: what "popular now" means where nobody learns anything."""

from datetime import timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from freshrank.encoding import F64
from freshrank.features import Encoded, FeatureEncoder
from freshrank.replay.baselines.base import F32, event_of
from freshrank.replay.chunks import Chunk
from freshrank.settings import CountFeature, Settings
from freshrank.table_encoder import TableEncoder

# From a news portal's minutes to a film's years; the stream itself says which.
HALF_LIVES: Final = (
    timedelta(minutes=5),
    timedelta(hours=1),
    timedelta(days=1),
    timedelta(days=30),
    timedelta(days=365),
)
_STRENGTH: Final = 10.0  # impressions that the rate of all rows weighs
_EDGE: Final = 1e-6  # keeps the loss of a certainty finite


class ItemRate:
    """Decayed actions ÷ decayed impressions of the item, drawn to the rate of all rows so far.

    With a actions and n impressions, both halved every half-life, and the rate r of all rows
    learned, the score is (a + 10 r) / (n + 10). Of several half-lives the one with the lowest log
    loss so far answers. A row without an item, or of a configuration without `item_id`, has r.

    Args:
        settings: Its `item_id` feature says how items are keyed.
        encoder: Not read: what is counted here does not depend on the model's features.
    """

    name = "rate"

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        event = event_of(settings)
        items = [feature for feature in settings.features if feature.name == "item_id"]
        counts = [
            CountFeature(name=f"{name}_{number}", type="count", event=counted, half_life=half_life)
            for name, counted in (("actions", event), ("impressions", None))
            for number, half_life in enumerate(HALF_LIVES if items else ())
        ]
        own = settings.model_copy(update={"features": [*items, *counts]})
        self._encoder = TableEncoder(own, FeatureEncoder(own))
        self._losses = np.zeros(max(1, len(counts) // 2))  # of each half-life
        self._seen = np.array([0.5, 1.0])  # actions and rows; the first row of all meets a coin

    def predict_then_learn(self, chunk: Chunk, encoded: Encoded) -> F32:
        """`float32[n]`, probabilities."""
        starts = np.repeat(np.cumsum(chunk.values.n_items), chunk.values.n_items)
        starts -= np.repeat(chunk.values.n_items, chunk.values.n_items)  # of each row's request
        is_known = chunk.weights[:, :1] > 0
        is_action = (chunk.labels[:, :1] > 0) & is_known
        seen = _before(self._seen, np.hstack([is_action, is_known]))
        mean = (seen[:, :1] / seen[:, 1:])[starts]
        counts = np.expm1(self._encoder.encode(chunk.values).dense.astype(np.float64))
        n_actions, n_impressions = np.split(counts, 2, axis=1)
        rates = (n_actions + mean * _STRENGTH) / (n_impressions + _STRENGTH)
        rates = np.clip(rates if rates.size else mean, _EDGE, 1 - _EDGE)
        losses = -np.log(np.where(is_action, rates, 1 - rates)) * is_known
        known_losses = _before(self._losses, losses)
        best = known_losses[starts].argmin(axis=1)
        self._seen, self._losses = seen[-1], known_losses[-1]
        scores: F32 = rates[np.arange(len(rates)), best].astype(np.float32)
        return scores


def _before(total: F64, more: npt.NDArray[Any]) -> F64:
    """`float64[n + 1, k]`: the total `float64[k]`, before each row of `more` and after the last."""
    return np.cumsum(np.vstack([total, more]), axis=0)
