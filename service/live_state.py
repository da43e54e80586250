"""Feature state as requests read it: where it is away they are answered soon, without it."""

import logging
import time
from typing import Final

import numpy as np

from freshrank.errors import TransportError
from freshrank.feature_state import FeatureState, StateAnswer, StateQuery
from freshrank.settings import Settings
from freshrank.state_layout import StateLayout
from service.follower import Follower

logger = logging.getLogger(__name__)

# How often it is seen whether it answers: so long requests go without it after it is back.
PROBE_EVERY_S: Final = 0.5
# A request that was answered without it ends within this time, and says so.
NAMED_S: Final = 1.0


class LiveState(Follower):
    """Reads feature state for requests, and watches it from a thread of its own.

    The first request that waits in vain is the last one: until a probe gets through nobody asks.

    Args:
        settings: Features and salt are read.
        state: Where it is.
    """

    def __init__(self, settings: Settings, state: FeatureState) -> None:
        super().__init__("feature-state")
        layout = StateLayout(settings)
        self._is_used = bool(layout.series or layout.ring_lengths)
        keys = {name: np.zeros(1, np.uint64) for name in layout.series}
        self._probe = StateQuery(0, keys, "0" if layout.ring_lengths else None)
        self._state = state
        self._trouble = ""
        self._missed_s = -NAMED_S

    @property
    def is_away(self) -> bool:
        """True while requests are answered without it, and until the last such one has ended."""
        return bool(self._trouble) or time.monotonic() - self._missed_s < NAMED_S

    def start(self) -> None:
        """Watch it, if a feature needs it."""
        if self._is_used:
            super().start()

    def read(self, query: StateQuery) -> StateAnswer:
        """Everything one request asks; nothing known where it is away."""
        if not self._trouble:
            try:
                return self._state.read(query)
            except TransportError as error:
                self._tell(str(error))
        self._missed_s = time.monotonic()
        return StateAnswer({name: np.full(len(k), np.nan) for name, k in query.keys.items()}, {})

    def step(self, timeout_s: float) -> None:
        """See whether it answers, now and then."""
        if self._stop.wait(PROBE_EVERY_S):
            return
        try:
            self._state.read(self._probe)
        except TransportError as error:
            self._tell(str(error))
        else:
            self._tell("")

    def _tell(self, trouble: str) -> None:
        before, self._trouble = self._trouble, trouble
        if bool(before) != bool(trouble):  # a line per change, not per try
            logger.warning("feature_state=%s", f"away error={trouble}" if trouble else "recovered")
