"""The joiner versus an offline reference, and versus itself in other chunks with restarts."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshrank.messages import Action, Impression, Message
from freshrank.settings import Settings
from tests.unit.joiner import world as worlds
from tests.unit.joiner.world import (
    CLICK,
    Example,
    World,
    action,
    append,
    append_ticks,
    check_accounting,
    impression,
)
from trainer.joiner import Joiner
from trainer.joiner.rules import Rules

WINDOW_MS, OUT_OF_ORDER_MS, LATENESS_MS = 10_000, 1_000, 20_000
END_MS = 10_000_000
TASKS: list[dict[str, Any]] = [
    CLICK,
    {"name": "buy", "event": "buy", "negative": {"from": "shown", "sample_rate": 0.5}},
    {"name": "dear", "event": "buy", "loss": "huber"},
]
EVENTS = {"click": [0], "buy": [1, 2]}
HAS_NEGATIVE = [True, True, False]
EMITS = ["positives_first", "at_once", "at_close"]

Said = tuple[str, str, tuple[float, ...], tuple[float, ...]]

_times = st.integers(0, 120).map(lambda half_seconds: half_seconds * 500 + 1_000)
_requests = st.sampled_from(["a", "b", "c"])
_delays = st.sampled_from([0, 0, 0, -700, 400])


@st.composite
def _impressions(draw: st.DrawFn) -> Impression:
    ts = draw(_times)
    items = draw(st.lists(st.sampled_from(["1", "2", "3"]), unique=True))
    return impression(
        draw(_requests),
        items,
        ts,
        event_id=draw(st.sampled_from(["x", "y"])),
        received=ts + draw(_delays),
    )


@st.composite
def _actions(draw: st.DrawFn) -> Action:
    ts = draw(_times)
    return action(
        draw(_requests),
        draw(st.sampled_from(["1", "2", "3", "4"])),
        ts,
        event=draw(st.sampled_from(["click", "buy", "view"])),
        event_id=str(draw(st.integers(0, 15))),
        value=draw(st.sampled_from([0.5, 2.0])),
        received=ts + draw(_delays),
    )


_streams = st.tuples(st.lists(_impressions(), max_size=6), st.lists(_actions(), max_size=14))


@dataclass(frozen=True, slots=True)
class Step:
    """A record at its place in the merged order; the watermark already counts it."""

    time_ms: int
    watermark_ms: int
    message: Message | None


def merged(impressions: list[Impression], actions: list[Action]) -> list[Step]:
    """Both topics by (time, topic, offset) of the heads; at the end a tick."""
    steps: list[Step] = []
    newest = 0
    queues: list[list[Message]] = [list(actions), list(impressions)]  # in order of topic name
    while queues[0] or queues[1]:
        # min takes the first of equals: actions. The end tick follows everything.
        queue = min((q for q in queues if q), key=lambda q: min(q[0].ts_ms, q[0].received_at_ms))
        message = queue.pop(0)
        time_ms = min(message.ts_ms, message.received_at_ms)
        newest = max(newest, time_ms)
        steps.append(Step(time_ms, newest - OUT_OF_ORDER_MS, message))
    return [*steps, Step(END_MS, END_MS - OUT_OF_ORDER_MS, None)]


def expected(
    impressions: list[Impression], actions: list[Action], config: Settings
) -> tuple[Counter[Said], Counter[str]]:
    """What must come out: rows, and how many actions met which end."""
    steps = merged(impressions, actions)
    shown: dict[str, tuple[int, Impression]] = {}
    acted: dict[str, list[tuple[int, Action]]] = {}
    ends: Counter[str] = Counter()
    seen: set[str] = set()
    for k, step in enumerate(steps):
        if isinstance(step.message, Impression):
            if step.time_ms + WINDOW_MS + LATENESS_MS > step.watermark_ms:
                shown.setdefault(step.message.request_id, (k, step.message))
        elif isinstance(step.message, Action):
            if step.message.event_id in seen:
                ends["duplicate"] += 1
            else:
                seen.add(step.message.event_id)
                acted.setdefault(step.message.request_id, []).append((k, step.message))
    rows: Counter[Said] = Counter()
    for request in sorted({*shown, *acted}):
        if request not in shown:
            ends["unmatched"] += len(acted[request])
        else:
            reference = OneRequest(steps, *shown[request], config)
            for k, one in acted.get(request, []):
                ends[reference.act(k, one)] += 1
            rows += reference.rows()
    return rows, ends


class OneRequest:
    """Everything about one request, knowing all that ever happens."""

    def __init__(self, steps: list[Step], k: int, shown: Impression, config: Settings) -> None:
        self.steps, self.k, self.shown = steps, k, shown
        self.emit = config.join.emit
        self.close_ms = steps[k].time_ms + WINDOW_MS
        self.k_close = next(
            j for j in range(k + 1, len(steps)) if steps[j].watermark_ms >= self.close_ms
        )
        rules = Rules(config)
        self.keeps = {item: rules.keeps(shown.request_id, item) for item in shown.items}
        self.labels: dict[tuple[str, int], tuple[int, float]] = {}
        self.single: Counter[Said] = Counter()

    def act(self, k: int, one: Action) -> str:
        time_ms = self.steps[k].time_ms
        orphan_ms = time_ms + WINDOW_MS + LATENESS_MS
        if any(self.steps[j].watermark_ms >= orphan_ms for j in range(k + 1, self.k + 1)):
            return "unmatched"
        k = max(k, self.k)
        if max(time_ms - 1, self.steps[k].watermark_ms) >= self.close_ms + LATENESS_MS:
            return "late"
        if one.item not in self.shown.items:
            return "unmatched"
        if one.event not in EVENTS:
            return "matched"
        new = [t for t in EVENTS[one.event] if (one.item, t) not in self.labels]
        for t in new:
            self.labels[one.item, t] = (k, one.value if t == 2 else 1.0)
        reversed_ = [t for t in new if self.was_negative(one.item, t, k)]
        plain = [t for t in new if t not in reversed_]
        if plain and not (self.emit == "at_close" and k < self.k_close):
            self.say(one.item, {t: self.labels[one.item, t][1] for t in plain}, 1.0)
        if reversed_:
            self.say(one.item, {t: self.labels[one.item, t][1] for t in reversed_}, 1.0)
            self.say(one.item, dict.fromkeys(reversed_, 0.0), -1.0)
        return "matched" if new else "duplicate"

    def was_negative(self, item: str, t: int, k: int) -> bool:
        """Whether the task left as a negative before record k was looked at."""
        is_out = k > self.k if self.emit == "at_once" else k >= self.k_close
        return HAS_NEGATIVE[t] and self.keeps[item][t] and is_out

    def say(self, item: str, labels: dict[int, float], weight: float) -> None:
        self.single[
            self.shown.request_id,
            item,
            tuple(labels.get(t, 0.0) for t in range(3)),
            tuple(weight if t in labels else 0.0 for t in range(3)),
        ] += 1

    def rows(self) -> Counter[Said]:
        """Single rows and those that left together, at the impression or at the close."""
        for item in self.shown.items:
            together: dict[int, float] = {}
            for t in range(3):
                k, label = self.labels.get((item, t), (len(self.steps), 0.0))
                if self.emit == "at_close" and k < self.k_close:
                    together[t] = label
                elif self.was_negative(item, t, len(self.steps)) and (
                    k > self.k if self.emit == "at_once" else k >= self.k_close
                ):
                    together[t] = 0.0
            if together:
                self.say(item, together, 1.0)
        return self.single


@contextmanager
def recorded(
    stream: tuple[list[Impression], list[Action]], config: Settings, kind: type[Joiner] = Joiner
) -> Iterator[World]:
    """A world whose log holds the stream and ends by ticks, nothing joined yet."""
    with TemporaryDirectory() as directory:
        world = World(Path(directory), config, kind=kind)
        try:
            append(world.log, *stream[0], *stream[1])
            append_ticks(world.log, END_MS)
            yield world
        finally:
            world.close()


def configured(emit: str) -> Settings:
    return worlds.settings(*TASKS, emit=emit, dedup_window="1d")


@pytest.mark.parametrize("emit", EMITS)
@settings(max_examples=60, deadline=None)
@given(stream=_streams)
def test_rows_and_outcomes_equal_the_offline_reference(
    emit: str, stream: tuple[list[Impression], list[Action]]
) -> None:
    config = configured(emit)
    with recorded(stream, config) as world:
        world.settle()

        rows, ends = expected(*stream, config)
        assert Counter(world.said()) == rows
        totals = world.joiner.accounting()
        assert {name: totals[name] for name in ("matched", "duplicate", "unmatched", "late")} == {
            name: ends[name] for name in ("matched", "duplicate", "unmatched", "late")
        }
        assert totals["pending"] == 0
        _check_rows(world.rows())


@settings(max_examples=60, deadline=None)
@given(
    stream=_streams,
    emit=st.sampled_from(EMITS),
    n_read=st.sampled_from([1, 2, 3, 2_000]),
    n_due=st.sampled_from([1, 2, 2_000]),
    n_rows=st.sampled_from([1, 4, 2_000]),
    restarts=st.lists(st.booleans(), max_size=12),
)
def test_sequence_of_rows_is_the_same_in_other_chunks_and_over_restarts(
    stream: tuple[list[Impression], list[Action]],
    emit: str,
    n_read: int,
    n_due: int,
    n_rows: int,
    restarts: list[bool],
) -> None:
    class Chunked(Joiner):
        n_read_max = n_read
        n_due_max = n_due
        n_rows_max = n_rows

    config = configured(emit)
    with recorded(stream, config) as world:
        world.settle()
        undisturbed = world.rows()
        told = _last_outcomes(world)
    with recorded(stream, config, Chunked) as world:
        n_steps = 0
        while world.joiner.step(0.0):
            check_accounting(world.joiner.accounting(), config)
            if n_steps < len(restarts) and restarts[n_steps]:
                world.restart()
            n_steps += 1
        assert world.rows() == undisturbed
        assert _last_outcomes(world) == told


def _last_outcomes(world: World) -> dict[int, str]:
    return {offset: outcomes[-1] for offset, outcomes in world.outcomes().items()}


def _check_rows(rows: list[Example]) -> None:
    """First flags, pairs and weight sums."""
    firsts = Counter(row.request for row in rows if row.is_first)
    assert set(firsts.values()) <= {1}
    assert set(firsts) == {row.request for row in rows}
    sums: Counter[tuple[str, str, int]] = Counter()
    for i, row in enumerate(rows):
        if min(row.weights) < 0:
            above = rows[i - 1]
            assert above.is_reversal
            assert row.is_reversal
            assert (above.request, above.item, above.ids) == (row.request, row.item, row.ids)
            assert tuple(-weight for weight in row.weights) == above.weights
        for t, weight in enumerate(row.weights):
            sums[row.request, row.item, t] += int(weight)
    assert set(sums.values()) <= {0, 1}
