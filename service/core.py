"""The service without HTTP: its parts, composed."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from freshrank import __version__
from freshrank.clock import Clock
from freshrank.feature_state import FeatureState
from freshrank.features import FeatureEncoder
from freshrank.metrics import Metrics, Reading, ReadingCollector, register_process
from freshrank.progress import LoopView, Progress
from freshrank.settings import Settings
from freshrank.transport.base import EventLog, ParameterChannel
from service.auth import Auth
from service.entities import EntityView
from service.gate import Gate
from service.health import Health
from service.history import History
from service.ingest import Ingest
from service.known import KnownFeatures
from service.live_state import LiveState
from service.patience import GLANCE_S, LOOK_S, LOOKS_MAX, Patience
from service.ranker import Ranker
from service.receipts import Receipt, Receipts
from service.replica import Replica
from service.request_values import RequestReader
from service.signal import Signal
from service.warmup import Warmup


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


class Service:
    """Ranks, takes events in and answers for both; start it before use.

    Raises:
        ConfigError: a key file cannot be read.
    """

    def __init__(self, parts: ServiceParts) -> None:
        settings, encoder, log, clock = parts.settings, parts.encoder, parts.log, parts.clock
        self.parts = parts
        self.auth = Auth(settings)
        self.gate = Gate(settings.limits.in_flight)
        self.metrics = Metrics(parts.registry)
        self._changed = Signal()
        self.looks = Patience("looks", n_max=LOOKS_MAX, wait_s=LOOK_S, ill_wait_s=GLANCE_S)
        self.entities = EntityView(encoder, log, clock, self._changed)
        self.replica = Replica(settings, encoder, parts.channel, clock, self.metrics, self._changed)
        self.receipts = Receipts(
            salt=settings.salt,
            log=log,
            learned=self.replica.learned,
            entities=self.entities,
            progress=parts.progress,
            looks=self.looks,
        )
        self.state = LiveState(settings, parts.state)
        self.health = Health(
            settings,
            log,
            self.replica,
            self.entities,
            self.state,
            self.looks,
            clock,
            parts.loop,
            is_warm=lambda: self.warmup.is_over,
        )
        known = KnownFeatures(settings, encoder, self.entities.features_of, self.state)
        self.ranker = Ranker(
            settings,
            encoder,
            reader=RequestReader(settings, encoder, known),
            replica=self.replica,
            receipts=self.receipts,
            health=self.health,
            log=log,
            clock=clock,
        )
        self.warmup = Warmup(
            self.ranker, self.replica, log, n_requests=settings.serving.warmup_requests
        )
        self.ingest = Ingest(
            settings,
            encoder,
            known=known,
            log=log,
            receipts=self.receipts,
            clock=clock,
            metrics=self.metrics,
        )
        self.history = History(settings, self.replica, parts.loop, clock)
        self._followers = (self.replica, self.entities, self.state, self.history, self.warmup)
        register_process(parts.registry, version=__version__)
        parts.registry.register(ReadingCollector(self._readings))
        self.started_at_ms = clock.now_ms()
        self._is_stopping = False

    def start(self) -> None:
        """Follow parameters, entities and feature state; a second call changes nothing."""
        for part in self._followers:
            part.start()

    def stop(self) -> None:
        """End the threads and the waiting; what the composer gave stays open.

        Called before the server is told to exit, no client's wait holds that up.
        """
        self._is_stopping = True
        self._changed.notify()
        for part in self._followers:
            part.stop()
        for part in self._followers:
            part.join()

    async def wait_servable(self, receipt: Receipt, timeout_s: float) -> None:
        """Return when the receipt's events are in the parameters, or when time ran out."""
        if timeout_s <= 0 or self.receipts.is_servable(receipt):
            return
        async with self.gate.waiting():
            await self._changed.wait_for(
                lambda: self._is_stopping or self.receipts.is_servable(receipt),
                timeout_s=timeout_s,
            )

    def _readings(self) -> list[Reading]:
        readings = [
            Reading("serving_feature_state_up", float(not self.state.is_away)),
            Reading("http_requests_limit", self.parts.settings.limits.in_flight),
            Reading("entities_left_out", self.entities.n_skipped, {"reason": "unusable"}),
            Reading("entities_left_out", self.entities.n_dropped, {"reason": "capacity"}),
            Reading("log_unacknowledged_bytes", self.parts.log.unacknowledged_bytes),
            *self.replica.freshness.readings(),
        ]
        if model := self.replica.model:
            info = model.current.info
            published_s = info.published_at_ms / 1_000
            readings += [
                Reading("serving_sync_seq", info.seq),
                Reading("serving_sync_epoch", info.epoch),
                Reading("sync_last_success_timestamp_seconds", published_s, {"kind": "sparse"}),
            ]
            for name, table in model.tables.items():
                labels = {"side": "serving", "slot": name}
                readings.append(Reading("store_rows", len(table), labels))
                readings.append(Reading("store_bytes", table.nbytes, labels))
        if loop := self.parts.loop:
            readings += loop.readings()
        return readings
