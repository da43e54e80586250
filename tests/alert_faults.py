"""What is made to go wrong under a real Prometheus, and which alerts have to tell of it.

An alert goes by its name, with its window behind a slash where it has several.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from tests.watched import Watched

Cause = Callable[[Watched], AbstractContextManager[None]]


class Fault(NamedTuple):
    """Something that goes wrong for a while.

    Attributes:
        text: What, for the table in docs/metrics.md.
        cause: Begins it, and mends it at the end.
        during: Alerts that tell of it soon; a fault without them takes long, as those that follow.
        later: Alerts that tell of it while it lasts.
        after: Alerts that tell of it once it is mended.
    """

    text: str
    cause: Cause
    during: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def _habit(name: str) -> Cause:
    return lambda watched: watched.audience.doing(name)


# Those of a round happen at once: none hides another. The first needs clicks that were never late;
# the last leaves a trainer that has much to forget.
ROUNDS: Final[tuple[tuple[Fault, ...], ...]] = (
    (
        Fault(
            "the trainer is paused for an hour",
            Watched.trainer_paused,
            later=("TrainerPaused",),
            after=("Freshness/1h", "Freshness/6h", "Freshness/3d"),
        ),
    ),
    (
        Fault("new ids fill a table", _habit("crowd"), ("BudgetFull",)),
        Fault("a client sends events that nobody knows", _habit("nonsense"), ("EventsRejected",)),
        Fault("a client clicks what was never shown", _habit("strangers"), ("Unmatched",)),
        Fault("a client sends bodies that are too large", _habit("large"), ("RequestsRejected",)),
        Fault("a damaged record in the log", Watched.damaged_record, ("DeadLetters",)),
    ),
    (
        Fault(
            "the disk of joiner and trainer is full",
            Watched.disk_full,
            ("LagGrows", "CheckpointsFail"),
            later=("StepsFail",),
        ),
    ),
    (
        Fault(
            "Redis is stopped",
            Watched.redis_stopped,
            ("FeatureStateAway", "PublicationsFail", "FramesRefused", "SyncStale"),
        ),
    ),
    (
        Fault("the trainer is killed", Watched.trainer_killed, ("ProcessDown", "NoTrainerLearns")),
        Fault("nobody comes", _habit("quiet"), ("NoTraffic",)),
    ),
    (
        Fault(
            "a service hears nothing of a new trainer",
            Watched.service_cut_off,
            later=("EpochsDiffer",),
        ),
    ),
    (
        Fault(
            "all places of a service are taken",
            _habit("crush"),
            later=("RankAvailability/1h", "RankAvailability/6h", "RankAvailability/3d"),
        ),
    ),
    (
        Fault(
            "a client's rankings come bit by bit",
            _habit("slow"),
            later=("RankLatency/1h", "RankLatency/6h", "RankLatency/3d"),
        ),
    ),
    (
        Fault(
            "the labels are flipped",
            _habit("flipped"),
            ("VersionHeldBack",),
            later=("Calibration", "QualityDrops"),
        ),
    ),
)
