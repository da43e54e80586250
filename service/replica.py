"""Follows the parameter channel: loads the base, applies deltas, heals from gaps, keeps serving.

A frame that cannot be applied is counted and the version before it stays in force until the channel
has something else to try; where only a newer base would do, the replica asks for one.
"""

import logging
from collections import Counter
from typing import Final

from embedding_store import StoreError
from freshrank import frames
from freshrank.clock import Clock
from freshrank.errors import DataError, SchemaError, SyncError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.frames import Frame, FrameInfo
from freshrank.metrics import Freshness, Metrics
from freshrank.settings import Settings
from freshrank.transport.base import Head, ParameterChannel
from freshrank.verdicts import REASONS
from service.follower import Follower
from service.judge import Judge
from service.learned import Learned, SampleWindow
from service.model import Model, ModelShape
from service.signal import Signal

logger = logging.getLogger(__name__)

# What was refused is looked at again where nothing new came, as `guard.hold` may be over; and a
# sick base is followed by another: one of 10 million rows costs its trainer 6 s.
RETRY_EVERY_S: Final = 60.0
LISTEN_EVERY_S: Final = 1.0
_REFUSALS: Final = (SyncError, SchemaError, DataError, StoreError)


class Replica(Follower):
    """A read-only copy of the parameters that stays up to date by itself.

    `changed` is notified after every applied frame.

    Attributes:
        learned: What the applied frames say of events.
        freshness: Append to servable, for metrics.
        action_freshness: Append to servable of actions, seconds.
        impression_freshness: The same for negatives.
        beats: Seconds between two versions applied here.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        channel: ParameterChannel,
        clock: Clock,
        metrics: Metrics,
        changed: Signal,
    ) -> None:
        super().__init__("replica")
        self._channel = channel
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._shape = ModelShape.of(
            encoder, n_tasks=len(settings.tasks), dtype=settings.serving.dtype
        )
        self._judge = Judge(settings, encoder, clock)
        self._model: Model | None = None
        self._stuck_at: Head | None = None
        self._retry_at_s = self._ask_at_s = self._listen_at_s = 0.0
        self._unheard_s = 0.0
        self._sick_base: tuple[int, int] | None = None  # epoch and seq of one that was judged
        self._is_unheard = False  # the last request for a base failed
        self._refusals: Counter[str] = Counter()
        self.learned = Learned()
        self.freshness = Freshness("total")
        self.action_freshness = SampleWindow()
        self.impression_freshness = SampleWindow()
        self.beats = SampleWindow()
        self._applied_at_s: float | None = None

    @property
    def model(self) -> Model | None:
        """The parameters that answer now; None before the first base."""
        return self._model

    @property
    def refusals(self) -> dict[str, int]:
        """Frames refused, by reason."""
        return dict(self._refusals)

    @property
    def is_behind(self) -> bool:
        """True while the channel holds a newer frame that could not be applied."""
        return self._stuck_at is not None

    @property
    def unheard_s(self) -> float:
        """Since when no trainer was heard in the channel, at the last look; 0 if none ever was."""
        return self._unheard_s

    @property
    def applied_ms(self) -> int:
        """How long ago the last frame was applied, whatever became of the clock; 0 before one."""
        at_s = self._applied_at_s
        return 0 if at_s is None else round((self._clock.monotonic_s() - at_s) * 1_000)

    @property
    def is_held(self) -> bool:
        """True while a newer version is refused as it scores worse than the one that serves."""
        return bool(self._judge.reason)

    def step(self, timeout_s: float) -> bool:
        """Apply the next frame, or wait for one.

        Returns:
            True when the parameters changed.

        Raises:
            TransportError: the channel cannot be read.
        """
        head = self._channel.head()
        model = self._model
        info = None if model is None else model.current.info
        self._listen()
        is_stuck = head == self._stuck_at and self._clock.monotonic_s() < self._retry_at_s
        if head is None or is_stuck or (info and _is_at(info, head)):
            known = (head.epoch, head.seq) if head else (0, -1)
            self._channel.wait(*known, timeout_s=timeout_s)
            return False
        if model is None or info is None or head.epoch > info.epoch:
            return self._load_base(head)
        if head.epoch < info.epoch:
            return self._refuse(head, "delta", "epoch", f"epoch {head.epoch} is over")
        data = self._channel.delta(info.epoch, info.seq + 1)
        if data is None:
            self._count("delta", "gap", f"delta {info.seq + 1} of epoch {info.epoch} is not there")
        elif self._apply(model, data):
            return True
        if head.base_seq > info.seq:
            return self._load_base(head)
        self._ask(info.epoch, info.seq)  # an older base would lead to the same delta again
        return self._hold(head)

    def _failed(self, reason: str, text: str) -> None:
        self._count("channel", reason, text)

    def _listen(self) -> None:
        """Look once a second when the trainer was last heard; requests must not wait for that."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._listen_at_s:
            self._listen_at_s = now_s + LISTEN_EVERY_S
            self._unheard_s = self._channel.beat_age_s() or 0.0

    def _load_base(self, head: Head) -> bool:
        is_sick = self._sick_base == (head.epoch, head.base_seq)
        if is_sick and self._clock.monotonic_s() < self._retry_at_s:
            return self._hold(head)
        try:
            base = self._channel.base()
        except TransportError as error:
            if error.code == "channel-damaged":  # HEAD names a base that is not there
                self._ask(head.epoch, head.base_seq)
            raise
        if base is None:
            self._ask(head.epoch, head.base_seq)
            return self._refuse(head, "base", "gap", "the channel has a head and no base")
        try:
            frame = frames.decode(base[2])
            model = Model(frame, self._shape)
            self._judge.check_base(model, frame, self._model)
        except _REFUSALS as error:
            reason = getattr(error, "code", "store")
            # Whole but unfit, as of another schema: the next base would be no better, and asking
            # for it again and again would keep the trainer busy with nothing else.
            if reason == "checksum":
                self._ask(head.epoch, head.base_seq)
            elif reason in REASONS:
                self._rest(head)
            return self._refuse(head, "base", reason, str(error))
        is_first = self._model is None
        self._model = model
        self._learn(frame.info, applied_at_ms=None if is_first else self._clock.now_ms())
        self._served(frame, None)
        logger.info("replica=loaded epoch=%d version=%s", frame.info.epoch, frame.info.version)
        return True

    def _apply(self, model: Model, data: bytes) -> bool:
        try:
            frame = frames.decode(data)
            refusal = model.apply(frame, self._judge.check_delta)
        except _REFUSALS as error:
            self._count("delta", getattr(error, "code", "store"), str(error))
            return False
        self._learn(frame.info, applied_at_ms=self._clock.now_ms())
        self._served(frame, refusal)
        return True

    def _learn(self, info: FrameInfo, *, applied_at_ms: int | None) -> None:
        self.learned.record(info, applied_at_ms=applied_at_ms)
        if applied_at_ms is None:
            return  # what this process did not wait for says nothing of freshness
        for kind, window, appended in (
            ("action", self.action_freshness, info.action_appended_at_ms),
            ("negative", self.impression_freshness, info.impression_appended_at_ms),
        ):
            window.add([max(applied_at_ms - at, 0) / 1_000 for at in appended])
            self.freshness.add(kind, appended, applied_at_ms)

    def _served(self, frame: Frame, refusal: str | None) -> None:
        if refusal is not None:
            self._count("dense", "dense", refusal)
        self._stuck_at = None
        now_s, before_s = self._clock.monotonic_s(), self._applied_at_s
        self._applied_at_s = now_s
        if before_s is not None:
            self.beats.add([now_s - before_s])
        self._metrics.sync_batches.labels(frame.info.kind, "applied").inc()
        self._changed.notify()

    def _refuse(self, head: Head, kind: str, reason: str, text: str) -> bool:
        self._count(kind, reason, text)
        return self._hold(head)

    def _hold(self, head: Head) -> bool:
        now_s = self._clock.monotonic_s()
        if self._stuck_at is None or now_s >= self._retry_at_s:
            self._retry_at_s = now_s + RETRY_EVERY_S
        self._stuck_at = head
        return False

    def _rest(self, head: Head) -> None:
        """Leave a sick base alone, and ask for another where that was not done lately."""
        self._sick_base = (head.epoch, head.base_seq)
        if self._clock.monotonic_s() >= self._ask_at_s:
            self._ask_at_s = self._clock.monotonic_s() + RETRY_EVERY_S
            self._ask(head.epoch, head.base_seq)

    def _ask(self, epoch: int, seq: int) -> None:
        """Ask for a base newer than this; where nobody can be asked, the periodic one helps."""
        try:
            self._channel.request_base(epoch, seq)
        except TransportError as error:
            if not self._is_unheard:
                logger.warning("replica=waits_for_periodic_base error=%s", error)
            self._is_unheard = True
        else:
            self._is_unheard = False

    def _count(self, kind: str, reason: str, text: str) -> None:
        self._refusals[reason] += 1
        self._metrics.sync_batches.labels(kind, reason).inc()
        logger.warning("replica=serving_old kind=%s reason=%s error=%s", kind, reason, text)


def _is_at(info: FrameInfo, head: Head) -> bool:
    return (info.epoch, info.seq) == (head.epoch, head.seq)
