"""What a report says beside its figures: what was legal, and is probably not what was meant."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from freshrank.hints import did_you_mean
from freshrank.replay.report import Report
from freshrank.settings import CountFeature, RateFeature, RecentFeature, SeenFeature, Settings
from freshrank.units import duration_text

# No log of clicks is older; numbers in a unit too small look as if they were.
_EARLIEST_MS: Final = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp() * 1_000)


def of_replay(report: Report, settings: Settings) -> Iterator[str]:
    """What there is to say of a replay of a table or of events."""
    hours = [
        hour["ts_ms"]
        for model in report.models[:1]
        for figures in model.runs[0].values()
        for hour in figures.get("by_hour", [])[:1]
    ]
    if report.accounting:
        yield from of_events(report.accounting, settings)
    else:
        yield from of_table(settings)
        yield from of_time(min(hours, default=None), settings)


def of_table(settings: Settings) -> Iterator[str]:
    """Features that a table says nothing of: its only events are those that tasks predict."""
    events = sorted({task.event for task in settings.tasks})
    for feature in settings.features:
        if not isinstance(feature, RecentFeature | RateFeature | CountFeature | SeenFeature):
            continue
        if feature.event is not None and feature.event not in events:
            hint = did_you_mean(feature.event, events) or f"; these are {', '.join(events)}"
            yield (
                f"feature {feature.name!r} is of the event {feature.event!r}, but a table has only "
                f"the events of tasks{hint}"
            )


def of_time(first_ms: int | None, settings: Settings) -> Iterator[str]:
    """A log that begins before there were any.

    Args:
        first_ms: When it begins; None if that is not known.
        settings: The configuration.
    """
    if first_ms is not None and first_ms < _EARLIEST_MS and settings.replay.columns.ts is not None:
        began = datetime.fromtimestamp(first_ms / 1_000, tz=UTC)
        yield (
            f"the log begins in {began:%Y}: is its time in {settings.replay.ts_unit} "
            "(replay.ts_unit)?"
        )


def of_events(totals: Mapping[str, int], settings: Settings) -> Iterator[str]:
    """Actions that count for nothing.

    Args:
        totals: Those of the joiner.
        settings: The configuration.
    """
    join, n_actions = settings.join, totals["accepted_actions"]

    def share(n: int) -> str:
        return f"{n:,} of {n_actions:,} actions ({n / n_actions:.1%})"

    if n_late := totals["late"]:
        yield (
            f"{share(n_late)} came later than join.window + join.allowed_lateness "
            f"({duration_text(join.window)} + {duration_text(join.allowed_lateness)}) after their "
            "impression: they count for nothing, what they were of counts as a negative. Set "
            "join.window to the time in which most come"
        )
    if n_unmatched := totals["unmatched"]:
        yield f"{share(n_unmatched)} are of requests or items that no impression shows"
    if n_dead := totals["dead_letter"]:
        yield f"{share(n_dead)} could not be used by the joiner"
    if n_dead := totals["impressions_dead_letter"]:
        yield f"{n_dead:,} impressions could not be used, or came when their time was over"
