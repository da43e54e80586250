"""The times that decide, in the unit of events."""

from datetime import timedelta

from freshrank.settings import Settings


def milliseconds(settings: Settings) -> tuple[int, int, int, int]:
    """Window, max_out_of_order, allowed_lateness and dedup_window."""
    join = settings.join
    durations = (join.window, join.max_out_of_order, join.allowed_lateness, join.dedup_window)
    window, out_of_order, lateness, dedup = (d // timedelta(milliseconds=1) for d in durations)
    return window, out_of_order, lateness, dedup
