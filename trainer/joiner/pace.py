"""How far apart rounds begin, to gather company: a commit costs milliseconds whatever its size."""

import time
from typing import Final

# What comes alone is joined soon. Twice as far apart, a click right behind its impression would be
# learned a fifth later, and 300 records a second cost the joiner a quarter less.
_SOON_S: Final = 0.01
# So many records a round, ticks too, are a stream: it is served by the version of its second. One
# that thins stays a stream until the longer round has fewer.
_STREAM_FROM: Final = 8
_STREAM_S: Final = 0.1
# As many are a backlog, which is joined without rest.
_BACKLOG_FROM: Final = 2_000


class Pace:
    """Told when a round begins and how much it committed; says for how long to rest."""

    def __init__(self) -> None:
        self._began_s = 0.0
        self._apart_s = 0.0

    @property
    def rest_s(self) -> float:
        """Until the next round should begin; 0 when it may."""
        return max(0.0, self._began_s + self._apart_s - time.monotonic())

    def begin(self) -> None:
        """A round begins."""
        self._began_s = time.monotonic()

    def end(self, n_records: int) -> None:
        """It committed so many records; 0 where it committed nothing."""
        if not 0 < n_records < _BACKLOG_FROM:
            self._apart_s = 0.0
        else:
            self._apart_s = _SOON_S if n_records < _STREAM_FROM else _STREAM_S
