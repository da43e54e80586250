"""A replay learns what the live loop learns from the same events."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from freshrank import config
from freshrank.clock import ManualClock
from freshrank.embedded import Embedded
from freshrank.examples import ExampleBatch, decode
from freshrank.features import FeatureEncoder
from freshrank.replay.events import EventOptions, replay_events
from freshrank.replay.fast_forward import FastForward
from freshrank.replay.rejects import Rejects
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES
from freshrank.transport.local import LocalLog

CONFIG = """
features:
  - {name: user_id, type: id, scope: user, dim: 4, admission: {min_count: 2}}
  - {name: item_id, type: id, scope: item, key: uint64, dim: 4, expire: 10m}
  - {name: tags, type: id_list, scope: item, dim: 4}
  - {name: device, type: id, scope: context, dim: 4}
  - {name: price, type: dense, scope: candidate, transform: log1p}
  - {name: last_clicks, type: recent, event: click, max_len: 3}
  - {name: last_likes, type: recent, event: like, max_len: 2}
tasks:
  - {name: click, event: click, negative: {from: shown, sample_rate: 0.7}}
  - {name: dwell, event: dwell, loss: huber}
join: {window: 20s, max_out_of_order: 2s, allowed_lateness: 30s, dedup_window: 2m}
trainer: {batching: fixed, batch_max: 64}
log: {fsync: never}
"""
# Read from what the joiner has committed, so they are as old as a slice: compared event by event.
COUNTERS = """
  - {name: rate, type: rate, event: click, half_life: 1m}
  - {name: phone_rate, type: rate, event: click, by: device, half_life: 1m}
  - {name: times_shown, type: count, half_life: 10s}
  - {name: liked, type: seen, event: like, value: ago, within: 1h}
  - {name: age, type: seen, event: click, value: age, within: 1h}
tasks:"""
Event = dict[str, Any]


def settings(data_dir: Path, text: str = CONFIG, *, emit: str = "at_once") -> Settings:
    environ = {
        "FRESHRANK__JOIN__EMIT": emit,
        "FRESHRANK__SERVICE__DATA_DIR": str(data_dir),
    }
    return config.loads(text, name="freshrank.yaml", environ=environ)


def events(n_requests: int = 400, seed: int = 3) -> list[Event]:
    """Requests, clicks in time and late, likes, reading times, repeats, entities, strangers."""
    rng = np.random.default_rng(seed)
    timed: list[tuple[float, int, Event]] = []

    def at(ts: float, event: Event) -> None:
        timed.append((ts, len(timed), {**event, "ts": round(ts, 3)}))

    now = 1_000.0
    for i in range(n_requests):
        now += float(rng.exponential(0.8))
        request = {"request_id": f"r{i}", "user": f"u{rng.integers(25)}"}
        items = rng.choice(40, 4, replace=False).tolist()
        shown = [{"item": item, "features": {"price": float(item)}} for item in items]
        device = ["phone", "desk"][i % 2]
        at(now, {"kind": "impression", **request, "items": shown, "context": {"device": device}})
        for item in items:
            feedback = {"kind": "feedback", "item": item, "request_id": request["request_id"]}
            # Some come after the window, and some after all lateness.
            due = now + float(rng.exponential(3.0 if rng.random() < 0.8 else 40.0))
            if rng.random() < 0.1 + 0.02 * (item % 20):
                at(due, feedback | {"event": "click", "user": request["user"]})
            if rng.random() < 0.1:
                at(due + 0.2, feedback | {"event": "dwell", "value": float(rng.exponential(4.0))})
            if rng.random() < 0.1:
                like = feedback | {"event": "like"}
                at(due, like)
                at(due, like)  # sent twice
        if i % 7 == 0:
            tags = [f"t{rng.integers(5)}" for _ in range(2)]
            at(now, {"kind": "item", "item": items[0], "features": {"tags": tags}})
        if i % 31 == 0:
            stranger = {"kind": "feedback", "request_id": f"q{i}", "item": 1, "event": "click"}
            at(now, stranger)
    return [event for _, _, event in sorted(timed, key=lambda one: one[:2])]


def run_live(chosen: Settings, sent: list[Event]) -> dict[str, np.ndarray]:
    """Each event sent by itself, and worked off before the next one is."""
    clock = ManualClock()
    loop = Embedded(chosen, learn=True, clock=clock)
    (joiner,) = loop.joiners
    assert loop.trainer is not None
    for event in sent:
        clock.advance(ms=max(round(event["ts"] * 1_000) - clock.now_ms(), 0))
        assert loop.service.ingest.submit([event]).accepted == 1
        loop.service.entities.step(0.0)
        while joiner.step(0.0):
            pass
        loop.trainer.catch_up()
    joiner.drain()
    loop.trainer.drain()
    parameters = parameters_of(loop)
    loop.close()
    return parameters


def parameters_of(loop: Embedded) -> dict[str, np.ndarray]:
    assert loop.trainer is not None
    learner = loop.trainer.learner
    found = {f"net.{name}": value.numpy() for name, value in learner.net.state_dict().items()}
    for name, table in learner.sparse.tables.items():
        keys, rows, _ = table.delta(0)
        order = np.argsort(keys)
        found |= {f"{name}.keys": keys[order], f"{name}.rows": rows[order]}
    return {name: value.copy() for name, value in found.items()}


def example_rows(chosen: Settings) -> Iterator[tuple[Any, ...]]:
    """What was learned, row by row: all but who served it, and when it entered the log."""
    encoder = FeatureEncoder(chosen)
    tasks, slots = [task.name for task in chosen.tasks], [slot.name for slot in encoder.slots]
    log = LocalLog(chosen.service.data_dir / "log", clock=ManualClock(), writable=False)
    for record in log.read(EXAMPLES, 0, 0, n_max=1_000_000, bytes_max=1 << 40):
        batch = decode(record.value, tasks, slots)
        for row in range(batch.n_rows):
            yield (
                batch.request_ids[row],
                batch.items[row],
                int(batch.ts_ms[row]),
                bool(batch.is_first[row]),
                bool(batch.is_reversal[row]),
                *(getattr(batch, name)[row].tolist() for name in ("labels", "weights")),
                batch.keep_rates[row].tolist(),
                *values(batch, row),
            )
    log.close()


def values(batch: ExampleBatch, row: int) -> Iterator[list[float]]:
    for bags in batch.values.slots.values():
        yield bags.ids[bags.offsets[row] : bags.offsets[row + 1]].tolist()
    yield batch.values.dense[row].tolist()


@pytest.fixture
def replayed_parameters(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Filled when a replay ends."""
    found: dict[str, np.ndarray] = {}
    finish = FastForward.finish

    def finish_and_look(forward: FastForward) -> None:
        finish(forward)
        found.update(parameters_of(forward.loop))

    monkeypatch.setattr(FastForward, "finish", finish_and_look)
    return found


def run_replay(chosen: Settings, sent: list[Event]) -> dict[str, int]:
    """Replay the events into the data directory; returns the totals."""
    file = chosen.service.data_dir.with_suffix(".jsonl")
    file.write_bytes(b"\n".join(msgspec.json.encode(event) for event in sent))
    options = EventOptions(data_dir=chosen.service.data_dir)
    found = replay_events(file, chosen, Rejects(None), options)
    assert (found.accounting_problems, found.accounting["rejected"]) == ([], 0)
    return found.accounting


def check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_array_equal(found[name], one, err_msg=name)


@pytest.mark.parametrize("emit", ["positives_first", "at_once", "at_close"])
def test_stream_and_replay_learn_the_same(
    tmp_path: Path, replayed_parameters: dict[str, np.ndarray], emit: str
) -> None:
    sent = events()
    live, replayed = (settings(tmp_path / name, emit=emit) for name in ("live", "replayed"))
    live_parameters = run_live(live, sent)
    totals = run_replay(replayed, sent)
    names = ("late", "duplicate", "unmatched", "click.positive", "click.sampled_out")
    assert all(totals[name] > 0 for name in names), totals
    rows = list(example_rows(replayed))
    assert rows == list(example_rows(live))
    assert any(row[-3] for row in rows)  # last_clicks
    check_equal(replayed_parameters, live_parameters)


def test_live_counters_of_stream_and_replay_are_the_same(
    tmp_path: Path, replayed_parameters: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FastForward, "n_events_max", 1)
    sent = events(n_requests=150)
    text = CONFIG.replace("tasks:", COUNTERS, 1)
    live, replayed = (settings(tmp_path / name, text) for name in ("live", "replayed"))
    live_parameters = run_live(live, sent)
    run_replay(replayed, sent)
    rows = list(example_rows(replayed))
    assert rows == list(example_rows(live))
    assert all(len(row[-1]) == 1 + 5 for row in rows)
    check_equal(replayed_parameters, live_parameters)
