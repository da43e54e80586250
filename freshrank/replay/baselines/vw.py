"""Vowpal Wabbit: logistic regression with feature crosses, the usual choice for online learning."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_store import mix_ids
from freshrank.errors import ConfigError
from freshrank.features import Encoded, FeatureEncoder, SlotIds
from freshrank.replay.baselines.base import F32, event_of, missing
from freshrank.replay.chunks import Chunk
from freshrank.settings import (
    BucketFeature,
    Feature,
    IdFeature,
    IdListFeature,
    RecentFeature,
    Settings,
)

# Tuned on the news requests (docs/baselines.md). i: item, u: user, c: context, l: the user's last
# items; dense values are in d, which is not crossed.
FLAGS: Final = (
    "--loss_function logistic --link logistic -b 24 -q ui -q ci -q li --power_t 0.3 -l 1.2"
)
_NAMESPACES: Final = {"user": "u", "item": "i", "candidate": "i", "context": "c"}
# Vowpal Wabbit keeps 24 bits of a feature's number: 30 leave room for a larger -b.
_FEATURE_BITS: Final = 30


class VowpalWabbit:
    """Learns each request's rows once all of them are scored.

    Args:
        settings: Says which scope, and so which namespace, each slot has.
        encoder: Names the slots. Crosses are left out: Vowpal Wabbit makes its own.
        flags: Its command line; the namespaces are u, i, c, l and d.

    Raises:
        ConfigError: it is not installed, or does not take the flags.
    """

    name = "vw"

    def __init__(self, settings: Settings, encoder: FeatureEncoder, flags: str = FLAGS) -> None:
        event_of(settings)
        try:
            from vowpalwabbit import Workspace
        except ImportError:
            raise missing("vowpalwabbit") from None
        try:
            self._model = Workspace(f"--quiet {flags}")
        except RuntimeError as error:
            raise ConfigError(f"Vowpal Wabbit refuses {flags!r}: {error}") from None
        features = {feature.name: feature for feature in settings.features}
        self._namespaces: dict[str, list[tuple[str, int]]] = {}
        for number, slot in enumerate(encoder.slots):
            if namespace := _namespace(features[slot.name]):
                self._namespaces.setdefault(namespace, []).append((slot.name, number))

    def predict_then_learn(self, chunk: Chunk, encoded: Encoded) -> F32:
        """`float32[n]`, probabilities."""
        model = self._model
        lines = self._lines(encoded, chunk.labels[:, 0])
        is_labelled = (chunk.weights[:, 0] > 0).tolist()
        scores: list[float] = []
        start = 0
        for end in np.cumsum(chunk.values.n_items).tolist():
            examples = [model.parse(line) for line in lines[start:end]]
            scores.extend(map(model.predict, examples))
            for example, is_known in zip(examples, is_labelled[start:end], strict=True):
                if is_known:
                    model.learn(example)
                model.finish_example(example)
            start = end
        return np.array(scores, np.float32)

    def _lines(self, encoded: Encoded, labels: F32) -> list[str]:
        """One line of Vowpal Wabbit's input format per row."""
        parts = [pa.array(np.where(labels > 0, "1", "-1"))]
        for namespace, slots in self._namespaces.items():
            parts.append(f"|{namespace}")
            parts.extend(_words(encoded.slots[name], number) for name, number in slots)
        if encoded.dense.shape[1]:
            parts.append("|d")
        for number, column in enumerate(encoded.dense.T):
            values = pa.array(np.ascontiguousarray(column)).cast(pa.string())
            parts.append(pc.binary_join_element_wise(str(number), values, ":"))
        lines: list[str] = pc.binary_join_element_wise(*parts, " ").to_pylist()
        return lines


def _namespace(feature: Feature) -> str | None:
    if isinstance(feature, RecentFeature):
        return "l"
    if isinstance(feature, IdFeature | IdListFeature | BucketFeature):
        return _NAMESPACES[feature.scope]
    return None  # a cross


def _words(bags: SlotIds, number: int) -> pa.Array:
    """Each row's ids as words, which no other slot of the namespace shares."""
    mixed = mix_ids(bags.ids, np.full(len(bags.ids), number, np.uint64), 0)
    words = pa.array(mixed >> np.uint64(64 - _FEATURE_BITS)).cast(pa.string())
    return pc.binary_join(pa.LargeListArray.from_arrays(pa.array(bags.offsets), words), " ")
