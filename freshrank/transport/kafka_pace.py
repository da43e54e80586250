"""How far apart fetches are that find something: each costs a millisecond, whatever it finds."""

import time
from typing import Final

# What comes by ones is on its way soon. Who waits for each before sending the next, as a click
# follows what it was shown, has 100 a second.
SOON_S: Final = 0.01
# So many at once are a stream, whose fetches gather for longer.
STREAM_FROM: Final = 8
GATHER_S: Final = 0.02
# So many at once are a backlog, which is fetched without rest.
BACKLOG_FROM: Final = 1_000


class FetchPace:
    """Told what each fetch found; what comes alone is fetched at once, a stream in company."""

    def __init__(self) -> None:
        self._found_s = 0.0

    def rest_s(self, n_records: int) -> float:
        """Until the next fetch should come, after one that found so many."""
        now_s = time.monotonic()
        apart_s = SOON_S if n_records < STREAM_FROM else GATHER_S
        # It may be called before the rest that it told is over.
        left_s = apart_s - max(now_s - self._found_s, 0.0)
        is_stream = 0 < n_records < BACKLOG_FROM and left_s > 0
        if n_records:
            self._found_s = now_s + (left_s if is_stream else 0.0)
        return left_s if is_stream else 0.0
