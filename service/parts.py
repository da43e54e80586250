"""What the service needs from the program that composes it."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from freshrank.clock import Clock
from freshrank.feature_state import FeatureState
from freshrank.features import FeatureEncoder
from freshrank.progress import LoopView, Progress
from freshrank.settings import Settings
from freshrank.transport.base import EventLog, ParameterChannel


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """Everything the service is built from; the composer owns it and closes it.

    Attributes:
        settings: The configuration.
        encoder: Its encoder.
        log: The event log.
        channel: Where parameters come from.
        state: Feature state.
        progress: Joiner and trainer of this process, or None.
        loop: Their totals and gauges, or None.
        clock: Time.
        registry: Takes the metrics; one service per registry.
        simulated: True when a simulated audience uses this service; the page says so.
    """

    settings: Settings
    encoder: FeatureEncoder
    log: EventLog
    channel: ParameterChannel
    state: FeatureState
    progress: Progress | None
    loop: LoopView | None
    clock: Clock
    registry: CollectorRegistry
    simulated: bool = False
