"""Which impressions begin a request: those whose time is not over, of users within their quota."""

from collections.abc import Mapping
from typing import Final

from freshrank.errors import DataError
from freshrank.settings import Settings
from trainer.joiner.merge import Head
from trainer.joiner.times import milliseconds

_HOUR_MS: Final = 3_600_000


class Admission:
    """Judges impressions of requests that are not known yet.

    The quota is kept by the generic cell rate algorithm (ATM Forum, Traffic Management 4.0, 4.4.2):
    of a user one time is known, at which nothing of the quota is used any more. A request moves it
    on by its share of an hour, and has to wait where it lies an hour ahead. So whoever was away has
    the whole quota at once, and what has passed needs no memory.

    Args:
        settings: Join is read.
    """

    def __init__(self, settings: Settings) -> None:
        window_ms, _, lateness_ms, _ = milliseconds(settings)
        self._lasts_ms = window_ms + lateness_ms
        quota = settings.join.user_requests_per_hour
        self._share_ms = None if quota is None else _HOUR_MS // quota

    def refusal(
        self, head: Head, watermark_ms: int, known: Mapping[int, int], seen: dict[int, int]
    ) -> DataError | None:
        """Why an impression teaches nothing; None when it begins its request.

        Args:
            head: The impression.
            watermark_ms: It already counts the impression.
            known: Key of a user -> when its quota is whole again, of the rounds before.
            seen: The same of this round; the impression is added.
        """
        over_at_ms = head.time_ms + self._lasts_ms
        if over_at_ms <= watermark_ms:
            # No action on it can count any more: all its items would be learned as negatives.
            text = f"its time was over at {over_at_ms}, it is {watermark_ms}: see its clock"
            return DataError(text, code="late")
        if self._share_ms is None or not head.event_key:
            return None
        whole_at_ms = seen.get(head.event_key, known.get(head.event_key, 0))
        if whole_at_ms <= watermark_ms:  # as if it were forgotten already, which it may be
            whole_at_ms = 0
        whole_at_ms = max(whole_at_ms, head.time_ms) + self._share_ms
        if whole_at_ms - head.time_ms > _HOUR_MS:
            text = "its user has begun more requests than join.user_requests_per_hour allows"
            return DataError(text, code="flood")
        seen[head.event_key] = whole_at_ms
        return None
