"""Which impressions begin a request: those whose time is not over, of users within their quota."""

from collections.abc import Mapping
from typing import Final

from freshrank.errors import DataError
from freshrank.settings import Settings
from trainer.joiner.merge import Head, Shown
from trainer.joiner.times import milliseconds

_HOUR_MS: Final = 3_600_000
_MIX: Final = 0x9E3779B97F4A7C15  # no user is taken for an event


class Admission:
    """Judges impressions of requests that are not known yet.

    The quota is kept by the generic cell rate algorithm (ATM Forum, Traffic Management 4.0, 4.4.2)
    on the clock of the watermark, which never goes back: of a user one time is known, at which
    nothing of the quota is used any more. A request moves it on by its share of an hour, and is one
    too many where that leads more than an hour ahead. What is passed needs no memory.

    Args:
        settings: Join is read.
    """

    def __init__(self, settings: Settings) -> None:
        window_ms, _, lateness_ms, _ = milliseconds(settings)
        self._lasts_ms = window_ms + lateness_ms
        quota = settings.join.user_requests_per_hour
        self._share_ms = None if quota is None else _HOUR_MS // quota

    def admit(
        self, head: Head, watermark_ms: int, known: Mapping[int, int], seen: dict[int, int]
    ) -> DataError | None:
        """Count an impression that begins its request; or why it teaches nothing.

        Args:
            head: The impression.
            watermark_ms: It already counts the impression.
            known: Key of a user -> when its quota is whole again, of the rounds before.
            seen: The same of this round; what is counted is entered.
        """
        over_at_ms = head.time_ms + self._lasts_ms
        if over_at_ms <= watermark_ms:
            # No action on it can count any more: all its items would be learned as negatives.
            text = f"its time was over at {over_at_ms}, it is {watermark_ms}: see its clock"
            return DataError(text, code="late")
        if self._share_ms is None or not head.key:
            return None
        if isinstance(head.message, Shown) and head.message.part:
            text = "an earlier part of the impression was beyond join.user_requests_per_hour"
            return DataError(text, code="flood")
        whole_at_ms = max(seen.get(head.key, known.get(head.key, 0)), watermark_ms)
        whole_at_ms += self._share_ms
        if whole_at_ms - watermark_ms > _HOUR_MS:
            text = "its user has begun more requests than join.user_requests_per_hour allows"
            return DataError(text, code="flood")
        seen[head.key] = whole_at_ms
        return None

    def forget(self, token: int, seen: dict[int, int]) -> None:
        """Let a user begin with the whole quota again.

        Args:
            token: Id of 64 bits, as tables have it.
            seen: As of `admit`.
        """
        if self._share_ms is not None:
            seen[key_of_user(token)] = 0


def key_of_user(token: int) -> int:
    """Under which key the quota of a user is kept, by the user's id of 64 bits."""
    key = token ^ _MIX
    return key - (1 << 64) if key >> 63 else key
