"""What a baseline is, and what all of them need."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from freshrank.errors import ConfigError
from freshrank.features import Encoded
from freshrank.replay.chunks import Chunk
from freshrank.settings import Settings

F32 = npt.NDArray[np.float32]


class Baseline(Protocol):
    """Something a user would otherwise pick, fed with the same stream in the same order.

    Attributes:
        name: Its row of the report.
    """

    name: str

    def predict_then_learn(self, chunk: Chunk, encoded: Encoded) -> F32:
        """Score each request's rows before any of their labels is learned.

        Args:
            chunk: Whole requests, in event time.
            encoded: The same rows as freshrank's own model reads them.

        Returns:
            `float32[n]`, the probability of the first task's event.
        """


def event_of(settings: Settings) -> str:
    """The event whose probability the baselines predict: that of the first task.

    Raises:
        ConfigError: the first task predicts no probability.
    """
    task = settings.tasks[0]
    if task.loss != "logloss":
        raise ConfigError(
            f"baselines predict the probability of the first task, and {task.name!r} has the loss "
            f"{task.loss}: put a task of logloss first, or replay without baselines"
        )
    return task.event


def missing(package: str) -> ConfigError:
    """The error for a baseline whose package is not installed."""
    return ConfigError(f"baselines: {package} is not installed: pip install 'freshrank[baselines]'")
