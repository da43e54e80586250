"""The whole loop of one process, driven by event time: as fast as it goes.

Events are taken in slices. At the end of a slice its impressions are scored, its records appended,
the clock moves to its newest event, and joiner and trainer work off what is there. An impression is
completed with feature state and scored with parameters as they were when its slice began, as in a
service that a joiner and a trainer follow at that distance. A slice also ends before an impression
of a user who acted in it, so that a user's own actions are always seen.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np

from freshrank.clock import ManualClock
from freshrank.embedded import Embedded
from freshrank.errors import ConfigError, DataError
from freshrank.examples import decode
from freshrank.feature_types import RequestValues
from freshrank.messages import Action, Entity, Impression
from freshrank.replay.pace import Schedule
from freshrank.replay.served import ServedRows
from freshrank.settings import LogSettings, RecentFeature, SeenFeature, Settings
from freshrank.transport.base import ACTIONS, ENTITIES, EXAMPLES, IMPRESSIONS, NewRecord
from service.bodies import EventBody
from service.event_checks import Checked
from service.impressions import records_of
from service.known import SentTogether
from trainer.frozen import FrozenModel

if TYPE_CHECKING:
    from trainer.loop import Trainer

# Nothing reads back further than a slice; what is left behind would fill the disk.
_RETENTION: Final = timedelta(hours=1)
_MILLISECOND: Final = timedelta(milliseconds=1)


class EventClock(ManualClock):
    """Event time. On its other side no time passes: nothing is published or saved in between."""

    def monotonic_s(self) -> float:
        """Always the same."""
        return 0.0


class FastForward:
    """Takes events in order of time; a context that closes the loop.

    Args:
        settings: The configuration. It runs on one partition, without syncing the disk and without
            an archive; an impression counts as served, as a file has no other.
        directory: For the log, the joiner's state and the checkpoint.
        is_kept: The directory outlives the replay: the log keeps what it is configured to.
        served: Told what was scored and what became of it.
        sync_every: How old the parameters that score may be; None takes over every slice.
        now_ms: The time of the machine: what lies after it has not happened.

    Attributes:
        loop: The loop.
        accepted: Kind of message -> events taken.
        out_of_order: The same of those further behind the newest than `join.max_out_of_order`.
        newest_ms: The newest event time.

    Raises:
        ConfigError: learning needs the extra `train`, or the directory has a log already.
    """

    # A slice lasts `sync.sparse_every`, or longer while it has few events, as its end costs
    # milliseconds: then at most `span_max_ms`. The other bounds are for memory.
    n_events_min = 200
    n_events_max = 2_000
    n_rows_max = 16_384
    span_max_ms = 30_000

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        *,
        is_kept: bool,
        served: ServedRows,
        sync_every: timedelta | None,
        now_ms: int,
    ) -> None:
        if (directory / "log").exists():
            raise ConfigError(
                f"{directory} has a log already: a replay needs a directory of its own"
            )
        settings = _for_replay(settings, directory, is_kept=is_kept)
        self._served = served
        self._now_ms = now_ms
        self._clock = EventClock()
        self.loop = Embedded(settings, learn=True, clock=self._clock)
        self._trainer = cast("Trainer", self.loop.trainer)  # it learns
        self._checker = self.loop.service.ingest.checker
        self.learner = self._trainer.learner
        self._frozen: FrozenModel | None = None
        if sync_every is not None:
            self._frozen = FrozenModel(self.learner, self.loop.encoder, settings.serving.dtype)
            self._syncs = Schedule(sync_every)
        self._tasks = [task.name for task in settings.tasks]
        self._step_ms = settings.sync.sparse_every // _MILLISECOND
        self._out_of_order_ms = settings.join.max_out_of_order // _MILLISECOND
        self._reads_users = any(
            isinstance(feature, RecentFeature | SeenFeature) for feature in settings.features
        )
        self._n_read = 0
        self.newest_ms = 0
        self.accepted: Counter[str] = Counter()
        self.out_of_order: Counter[str] = Counter()
        self._begin()

    def __enter__(self) -> "FastForward":
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()

    def take(self, event: EventBody) -> bool:
        """Take the next event; True when a slice ended before it.

        Raises:
            Refusal: it cannot be used.
        """
        checked = self._check(event)
        is_end = bool(self._slice) and self._ends_before(checked.message)
        if is_end:
            self.end_slice()
            checked = self._check(event)  # with what is known now
        if self._frozen is not None and self._syncs.is_due(checked.message.ts_ms):
            self._frozen.refresh()
        self._put(checked)
        return is_end

    def end_slice(self) -> None:
        """Score and append what was taken, then join and learn all that follows from it."""
        self._clock.advance(ms=max(self.newest_ms - self._clock.now_ms(), 0))
        impressions = [one for one in self._slice if isinstance(one.message, Impression)]
        self._append_served(impressions)
        for topic in (ENTITIES, ACTIONS):
            records = [r for one in self._slice if one.topic == topic for r in one.records]
            if records:
                self.loop.log.append(topic, records)
        while self._sent and self.loop.service.entities.step(0.0):
            pass
        for joiner in self.loop.joiners:
            while joiner.step(0.0):
                pass
        self._judge()
        self._served.settle(self.newest_ms)
        self._trainer.catch_up()
        self._begin()

    def finish(self) -> None:
        """Let time pass until every window has closed, and learn the rest."""
        self.end_slice()
        for joiner in self.loop.joiners:
            joiner.drain()
        self._judge()
        self._served.settle()
        self._trainer.drain()

    def _begin(self) -> None:
        self._slice: list[Checked] = []
        self._n_rows = 0
        self._sent: SentTogether = {}
        self._users: dict[str, str] = {}
        self._acted: set[str] = set()

    def _check(self, event: EventBody) -> Checked:
        return self._checker.check(
            event, received_at_ms=self._now_ms, sent=self._sent, is_replay=True
        )

    def _ends_before(self, message: Action | Entity | Impression) -> bool:
        n_events = len(self._slice)
        if n_events >= self.n_events_max or self._n_rows >= self.n_rows_max:
            return True
        if self._frozen is not None and message.ts_ms >= (self._syncs.next_ms or 0):
            return True
        if isinstance(message, Impression) and message.user in self._acted:
            return True
        span_ms = message.ts_ms - self._slice[0].message.ts_ms
        is_long = n_events >= self.n_events_min or span_ms >= self.span_max_ms
        return is_long and span_ms >= self._step_ms

    def _put(self, checked: Checked) -> None:
        message = checked.message
        kind = type(message).__name__.lower()
        self.accepted[kind] += 1
        if message.ts_ms < self.newest_ms - self._out_of_order_ms:
            self.out_of_order[kind] += 1
        self.newest_ms = max(self.newest_ms, message.ts_ms)
        self._slice.append(checked)
        if isinstance(message, Impression):
            self._n_rows += len(message.items)
            if message.user is not None:
                self._users[message.request_id] = message.user
        elif isinstance(message, Action) and self._reads_users:
            shown_to = self._users.get(message.request_id) or self._served.user(message.request_id)
            self._acted.update(user for user in (message.user or shown_to,) if user)

    def _append_served(self, checked: Sequence[Checked]) -> None:
        """Score impressions together and append them with what was served."""
        impressions = [one.message for one in checked if isinstance(one.message, Impression)]
        if not impressions:
            return
        values = self.loop.encoder.encode(
            [RequestValues(one.items, one.user, one.shared, one.columns) for one in impressions]
        )
        scores = (self._frozen or self.learner).predict(values)
        records: list[NewRecord] = []
        firsts: list[int] = []
        row = 0
        for one, shown in zip(checked, impressions, strict=True):
            firsts.append(len(records))
            own = scores[row : row + len(shown.items)].T.tolist()
            records += _with_scores(one, shown, dict(zip(self._tasks, own, strict=True)))
            row += len(shown.items)
        places = self.loop.log.append(IMPRESSIONS, records)
        age_s = None
        if "item_id" in values.slots:
            ts_s = [one.ts_ms // 1_000 for one in impressions for _ in one.items]
            born_s = self.learner.sparse.item_born_s(values)
            age_s = np.where(born_s > 0, np.maximum(np.array(ts_s) - born_s, 0), 0)
        self._served.add(impressions, [places[first][1] for first in firsts], scores, age_s)

    def _judge(self) -> None:
        """Read what the joiner wrote."""
        while records := self.loop.log.read(EXAMPLES, 0, self._n_read):
            for record in records:
                self._served.judge(decode(record.value, self._tasks, ()))
            self._n_read = records[-1].offset + 1


def _with_scores(
    checked: Checked, shown: Impression, served: dict[str, list[float]]
) -> list[NewRecord]:
    try:
        return records_of(msgspec.structs.replace(shown, served=served))
    except DataError:  # too large with the scores: it goes without
        return checked.records


def _for_replay(settings: Settings, directory: Path, *, is_kept: bool) -> Settings:
    retention = settings.log.retention if is_kept else _RETENTION
    changes = {
        "service": settings.service.model_copy(update={"data_dir": directory}),
        "log": LogSettings(fsync="never", retention=retention),
        "join": settings.join.model_copy(update={"impressions": "served"}),
        "archive": None,
    }
    return settings.model_copy(update=changes)
