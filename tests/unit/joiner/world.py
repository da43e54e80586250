"""A joiner with its log in a directory, and short ways to feed it and to read what it wrote."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from freshrank import examples, messages
from freshrank.clock import ManualClock
from freshrank.examples import ExampleBatch
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.messages import Action, DeadLetter, Impression, Message, Tick, Value
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS, EventLog, NewRecord
from freshrank.transport.local import LocalLog
from trainer.joiner import Joiner

CLICK = {"name": "click", "event": "click", "negative": {"from": "shown"}}
BUY = {"name": "buy", "event": "buy", "negative": {"from": "shown"}}
LIKE = {"name": "like", "event": "like", "negative": None}
RATING = {"name": "rating", "event": "rate", "loss": "huber"}

FEATURES: list[dict[str, Any]] = [
    {"name": "user_id", "type": "id", "scope": "user"},
    {"name": "item_id", "type": "id", "scope": "item", "key": "uint64"},
    {"name": "tags", "type": "id_list", "scope": "item"},
    {"name": "price", "type": "dense", "scope": "item"},
    {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 3},
    {"name": "last_views", "type": "recent", "event": "view", "max_len": 2},
]
# Windows of seconds keep the times in tests readable.
JOIN = {
    "window": "10s",
    "max_out_of_order": "1s",
    "allowed_lateness": "20s",
    "dedup_window": "60s",
}


def settings(
    *tasks: dict[str, Any],
    fsync: str = "never",
    features: list[dict[str, Any]] | None = None,
    **join: Any,
) -> Settings:
    """A configuration with these tasks (by default clicks) and changes of `JOIN`."""
    return Settings.model_validate(
        {
            "features": features or FEATURES,
            "tasks": list(tasks) or [CLICK],
            "join": {**JOIN, **join},
            "log": {"fsync": fsync},
        }
    )


def impression(
    request: str,
    items: list[str],
    ts: int,
    *,
    event_id: str | None = None,
    received: int | None = None,
    source: Literal["rank", "client"] = "rank",
    user: str | None = "u",
    shared: dict[str, Value] | None = None,
    columns: dict[str, list[Value]] | None = None,
    served: dict[str, list[float]] | None = None,
    part: int = 0,
    parts: int = 1,
) -> Impression:
    """An impression of one record."""
    return Impression(
        event_id=event_id or f"{source}-{request}",
        ts_ms=ts,
        received_at_ms=ts if received is None else received,
        request_id=request,
        user=user,
        items=items,
        shared=shared or {},
        columns=columns or {},
        served=served or {},
        source=source,
        part=part,
        parts=parts,
    )


def action(
    request: str,
    item: str,
    ts: int,
    *,
    event: str = "click",
    event_id: str | None = None,
    received: int | None = None,
    user: str | None = None,
    value: float = 1.0,
) -> Action:
    """An action, by default with an id that follows from all it says."""
    return Action(
        event_id=event_id or f"{request}/{item}/{event}/{ts}",
        ts_ms=ts,
        received_at_ms=ts if received is None else received,
        request_id=request,
        item=item,
        event=event,
        user=user,
        value=value,
    )


def topic_of(message: Message) -> str:
    """Where a message belongs."""
    return ACTIONS if isinstance(message, Action) else IMPRESSIONS


def append(log: EventLog, *recorded: Message) -> list[int]:
    """Append messages to their topics; returns their offsets."""
    return [
        log.append(topic_of(one), [NewRecord(b"", messages.encode(one))], partition=0)[0][1]
        for one in recorded
    ]


def append_ticks(log: EventLog, time_ms: int) -> None:
    """End both topics with a tick."""
    tick = Tick(event_id="end", ts_ms=time_ms, received_at_ms=time_ms)
    for topic in (ACTIONS, IMPRESSIONS):
        log.append(topic, [NewRecord(b"", messages.encode(tick))], partition=0)


@dataclass(frozen=True, slots=True)
class Example:
    """One row, for comparison."""

    request: str
    item: str
    labels: tuple[float, ...]
    weights: tuple[float, ...]
    is_action: bool = False
    is_first: bool = False
    is_reversal: bool = False
    ts: int = 0
    appended_at: int = 0
    keep_rates: tuple[float, ...] = ()
    served: tuple[float, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    dense: tuple[float, ...] = ()


def batches(log: EventLog, config: Settings) -> list[ExampleBatch]:
    """All records of examples, decoded."""
    encoder = FeatureEncoder(config)
    tasks = [task.name for task in config.tasks]
    slots = [slot.name for slot in encoder.slots]
    records = log.read(EXAMPLES, 0, 0, n_max=1_000_000, bytes_max=1 << 40)
    return [examples.decode(record.value, tasks, slots) for record in records]


def examples_of(batch: ExampleBatch) -> list[Example]:
    """The rows of one batch."""
    slots = batch.values.slots.values()
    return [
        Example(
            request=batch.request_ids[i],
            item=batch.items[i],
            labels=tuple(batch.labels[i].tolist()),
            weights=tuple(batch.weights[i].tolist()),
            is_action=bool(batch.is_action[i]),
            is_first=bool(batch.is_first[i]),
            is_reversal=bool(batch.is_reversal[i]),
            ts=int(batch.ts_ms[i]),
            appended_at=int(batch.appended_at_ms[i]),
            keep_rates=tuple(batch.keep_rates[i].tolist()),
            served=tuple(np.nan_to_num(batch.served[i], nan=-1.0).tolist()),
            ids=tuple(tuple(s.ids[s.offsets[i] : s.offsets[i + 1]].tolist()) for s in slots),
            dense=tuple(batch.values.dense[i].tolist()),
        )
        for i in range(batch.n_rows)
    ]


def check_accounting(totals: dict[str, int], config: Settings) -> None:
    """The identities of docs/semantics.md, accounting."""
    decided = ("matched", "duplicate", "unmatched", "late", "dead_letter", "pending")
    assert totals["accepted_actions"] == sum(totals[name] for name in decided)
    joined = ("impressions_joined", "impressions_duplicate", "impressions_dead_letter")
    assert totals["accepted_impressions"] == sum(totals[name] for name in joined)
    for task in config.tasks:
        items = ("positive", "negative", "sampled_out", "pending", "unlabelled")
        of_task = {name: totals.get(f"{task.name}.{name}", 0) for name in items}
        assert totals["impression_items"] == sum(of_task.values()), of_task
    assert min(totals.values()) >= 0, totals


@dataclass(slots=True)
class World:
    """One joiner over one log, both in `directory`."""

    directory: Path
    config: Settings
    clock: ManualClock = field(default_factory=lambda: ManualClock(now_ms=0))
    kind: type[Joiner] = Joiner
    log: LocalLog = field(init=False)
    joiner: Joiner = field(init=False)
    state: LocalFeatureState = field(init=False)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.log = LocalLog(self.directory / "log", clock=self.clock, fsync="never")
        self.start()

    def start(self, state: LocalFeatureState | None = None) -> None:
        """Start a joiner on what is there."""
        self.state = state or LocalFeatureState(self.config)
        self.progress = Progress()
        self.joiner = self.kind(
            self.config,
            FeatureEncoder(self.config),
            self.log,
            partition=0,
            database=self.directory / "joiner.sqlite",
            clock=self.clock,
            state=self.state,
            progress=self.progress,
        )

    def restart(self) -> None:
        """What a new process would find."""
        self.joiner.close()
        self.start()

    def feed(self, *recorded: Message) -> list[int]:
        """Append and process everything; returns the offsets of what was appended."""
        offsets = append(self.log, *recorded)
        self.settle()
        return offsets

    def settle(self) -> None:
        """Process what is there, then check the accounting."""
        while self.joiner.step(0.0):
            pass
        check_accounting(self.joiner.accounting(), self.config)

    def drain(self, through_ms: int | None = None) -> None:
        """Close windows."""
        self.joiner.drain(through_ms)
        check_accounting(self.joiner.accounting(), self.config)

    def rows(self) -> list[Example]:
        """Every row written so far."""
        return [row for batch in self.batches() for row in examples_of(batch)]

    def said(self) -> list[tuple[str, str, tuple[float, ...], tuple[float, ...]]]:
        """Request, item, labels and weights of every row."""
        return [(row.request, row.item, row.labels, row.weights) for row in self.rows()]

    def batches(self) -> list[ExampleBatch]:
        """Every record of examples written so far."""
        return batches(self.log, self.config)

    def outcomes(self, topic: str = ACTIONS) -> dict[int, list[str]]:
        """Offset -> outcomes told, in order."""
        told: dict[int, list[str]] = {}
        for batch in self.batches():
            for one in batch.info.outcomes:
                if one.topic == topic:
                    told.setdefault(one.offset, []).append(one.outcome)
        return told

    def letters(self, topic: str) -> list[DeadLetter]:
        """Dead letters of a topic."""
        records = self.log.read(f"{topic}.dlq", 0, 0, n_max=1_000)
        return [msgspec.msgpack.decode(record.value, type=DeadLetter) for record in records]

    def count(self, *names: str) -> Counter[str]:
        """Some totals."""
        totals = self.joiner.accounting()
        return Counter({name: totals[name] for name in names})

    def close(self) -> None:
        """Release everything."""
        self.joiner.close()
        self.log.close()
