"""What a user would otherwise pick, on the same stream in the same order: docs/baselines.md.

Two of them need packages of the extra `baselines`.
"""

from collections.abc import Callable
from typing import Final

from freshrank.errors import ConfigError
from freshrank.features import FeatureEncoder
from freshrank.hints import did_you_mean
from freshrank.replay.baselines.base import Baseline
from freshrank.replay.baselines.rate import ItemRate
from freshrank.replay.baselines.trees import Trees
from freshrank.replay.baselines.vw import VowpalWabbit
from freshrank.settings import Settings

__all__ = ["NAMES", "Baseline", "create"]

_KINDS: Final[dict[str, Callable[[Settings, FeatureEncoder], Baseline]]] = {
    kind.name: kind for kind in (VowpalWabbit, ItemRate, Trees)
}
NAMES: Final = tuple(_KINDS)


def create(name: str, settings: Settings, encoder: FeatureEncoder) -> Baseline:
    """A baseline that has learned nothing yet.

    Args:
        name: One of `NAMES`.
        settings: The configuration of the replay.
        encoder: What encodes the rows that the baseline will be given.

    Raises:
        ConfigError: no such baseline, its package is not installed, or the first task predicts no
            probability.
    """
    if name not in _KINDS:
        hint = did_you_mean(name, NAMES) or f": expected {', '.join(NAMES)}"
        raise ConfigError(f"baselines: unknown baseline {name!r}{hint}")
    return _KINDS[name](settings, encoder)
