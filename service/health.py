"""What is not as it should be: `degraded` of answers, components of readiness."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import msgspec

from freshrank.clock import Clock
from freshrank.errors import DataError, TransportError
from freshrank.messages import Tick, decode
from freshrank.progress import LoopView
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, BEAT_EVERY_S, IMPRESSIONS, EventLog
from service.entities import EntityView
from service.live_state import LiveState
from service.model import Current
from service.patience import Patience
from service.replica import Replica

# A frame follows every `sparse_every` while events are learned: after ten missing ones, and never
# below 10 s (a checkpoint or a slow disk takes that), nobody is learning.
AWAY_FRAMES: Final = 10
AWAY_MIN_MS: Final = 10_000
# So many beats are missing from a trainer that is away; a base of 10 million rows takes it 6 s.
AWAY_BEATS: Final = 40
# How long the log's ends are believed, so that a degraded service does not ask for each request.
BACKLOG_VALID_S: Final = 0.5
# Who asked for readiness within this time asks again: Kubernetes and balancers do every 10 s.
ASKED_S: Final = 30.0
# What it sent before it heard the answer still arrives.
SETTLE_S: Final = 1.0
# Ticks come five times a second while a window is open, and stop with it: more are no idle stream.
TICKS_MAX: Final = 10_000


class Component(msgspec.Struct, frozen=True):
    """One part of readiness."""

    name: str
    ready: bool
    reason: str = ""


class Health:
    """Judges what a request may rely on. Safe for threads."""

    def __init__(
        self,
        settings: Settings,
        log: EventLog,
        replica: Replica,
        entities: EntityView,
        state: LiveState,
        looks: Patience,
        clock: Clock,
        loop: LoopView | None = None,
        *,
        is_warm: Callable[[], bool],
    ) -> None:
        self._log = log
        self._loop = loop
        self._is_warm = is_warm
        self._replica = replica
        self._entities = entities
        self._state = state
        self._looks = looks
        self._clock = clock
        sync, join = settings.sync, settings.join
        # An open window is no sign of absence: nobody can decide it before it closes.
        window_ms = _ms(join.window + join.max_out_of_order)
        self._away_ms = window_ms + max(AWAY_FRAMES * _ms(sync.sparse_every), AWAY_MIN_MS)
        self._stale_ms = _ms(settings.serving.max_staleness)
        self._lock = threading.Lock()
        self._asked_s = -ASKED_S
        self._is_draining = False
        self._is_told = threading.Event()
        self._backlog: tuple[float, str | None] = (-BACKLOG_VALID_S, None)

    def degraded(self, current: Current) -> list[str]:
        """Why an answer from these parameters is worth less than it could be."""
        info = current.info
        reasons = ["untrained"] if info.untrained else []
        # Where the clock was set back a frame is older than its times say.
        age_ms = max(self._clock.now_ms() - info.published_at_ms, self._replica.applied_ms)
        # On an idle stream frames stop and nothing is stale: there is nothing to learn.
        backlog = self._backlog_of(current) if age_ms > min(self._away_ms, self._stale_ms) else ""
        is_behind = bool(backlog) or self._replica.is_behind
        if is_behind and age_ms > self._stale_ms:
            reasons.append("stale_sparse")
        gauges = self._loop.statistics() if self._loop is not None else {}
        is_held = bool(gauges.get("held_back"))
        if is_held or self._replica.is_held:
            reasons.append("held_back")
        if gauges.get("unsaved"):
            reasons.append("checkpoint")
        if gauges.get("clock_behind_seconds"):
            reasons.append("clock")
        if current.is_dense_stale:
            reasons.append("stale_dense")
        if backlog is None:
            reasons.append("broker")
        if self._state.is_away:
            reasons.append("feature_state")
        is_stopped = self._loop is not None and not self._loop.is_learning()
        is_unheard = self._replica.unheard_s > AWAY_BEATS * BEAT_EVERY_S
        is_late = bool(backlog) and age_ms > self._away_ms and not is_held
        if is_stopped or is_unheard or is_late:
            reasons.append("trainer_away")
        return reasons

    def components(self) -> list[Component]:
        """Everything that must be ready before requests are sent here."""
        self._asked_s = self._clock.monotonic_s()
        if self._is_draining:
            self._is_told.set()
            return [Component("drain", False, "the service stops: send requests elsewhere")]
        has_model = self._replica.model is not None
        refusals = self._replica.refusals
        reason = f"no base loaded; refused: {refusals}" if refusals else "no base loaded"
        is_warm = self._is_warm()
        return [
            Component("sync", has_model, "" if has_model else reason),
            Component(
                "entities",
                self._entities.is_caught_up,
                "" if self._entities.is_caught_up else "still reading freshrank.entities",
            ),
            Component("warmup", is_warm, "" if is_warm else "no logged request ranked yet"),
        ]

    def drain(self, timeout_s: float) -> None:
        """Be ready no more; return once whoever watches that has heard it, or time ran out."""
        is_watched = self._clock.monotonic_s() - self._asked_s < ASKED_S
        self._is_draining = True
        if is_watched and self._is_told.wait(timeout_s):
            time.sleep(SETTLE_S)

    def _backlog_of(self, current: Current) -> str | None:
        """The first log with events that the parameters lack, "" for none, None if unreadable."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            asked_at_s, backlog = self._backlog
            if now_s - asked_at_s >= BACKLOG_VALID_S:
                try:
                    backlog = self._looks.ask(lambda: self._look(current))
                except TransportError:
                    backlog = None
                self._backlog = (now_s, backlog)
            return backlog

    def _look(self, current: Current) -> str:
        for topic in (ACTIONS, IMPRESSIONS):
            for partition in range(self._log.n_partitions(topic)):
                log = f"{topic}:{partition}"
                if self._has_news(topic, partition, current.info.offsets.get(log, 0)):
                    return log
        return ""

    def _has_news(self, topic: str, partition: int, offset: int) -> bool:
        """Whether anything but time passing stands at `offset` or behind it.

        The joiner's last ticks are decided by nobody: nothing follows from them.
        """
        offset = max(offset, self._log.start_offset(topic, partition))
        records = self._log.read(topic, partition, offset, n_max=TICKS_MAX)
        return len(records) == TICKS_MAX or any(not _is_tick(record.value) for record in records)


def _is_tick(value: bytes) -> bool:
    try:
        return isinstance(decode(value), Tick)
    except DataError:
        return False


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1_000)
