"""Raw events replayed: what is taken, what is refused and said, and what is measured."""

import gzip
import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from freshrank import config
from freshrank.clock import ManualClock
from freshrank.errors import ConfigError, DataError
from freshrank.examples import decode
from freshrank.messages import Impression
from freshrank.messages import decode as decode_message
from freshrank.messages import encode as encode_message
from freshrank.replay.events import EventOptions, EventsReplay, replay_events
from freshrank.replay.fast_forward import FastForward
from freshrank.replay.rejects import Rejects
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, IMPRESSIONS
from freshrank.transport.local import LocalLog
from service import impressions as impressions_module
from service.event_checks import FUTURE_MS_MAX

NOW_S = 1_700_000_000
CONFIG = """
features:
  - {name: user_id, type: id, scope: user, dim: 4}
  - {name: item_id, type: id, scope: item, dim: 4}
  - {name: tags, type: id_list, scope: item, dim: 4}
  - {name: last_clicks, type: recent, event: click, max_len: 3}
tasks:
  - {name: click, event: click}
join: {window: 10s, max_out_of_order: 2s, allowed_lateness: 20s, dedup_window: 60s}
"""
BAD_LINES = {
    "malformed-json": b"{nothing",
    "schema": b'{"kind": "purchase", "ts": 5, "item": "a"}',
    "no-ts": b'{"kind": "feedback", "request_id": "r0", "item": "a", "event": "click"}',
    "future": json.dumps(
        {
            "kind": "feedback",
            "request_id": "r0",
            "item": "a",
            "event": "click",
            "ts": NOW_S + FUTURE_MS_MAX / 1_000 + 1,
        }
    ).encode(),
    "unknown-event": b'{"kind":"feedback","request_id":"r0","item":"a","event":"clik","ts":5}',
    "bad-ts": b'{"kind": "item", "item": "a", "features": {}, "ts": "yesterday"}',
    "bad-value": b'{"kind": "item", "item": "a", "features": {"tags": "jazz"}, "ts": 5}',
    "bad-id": b'{"kind": "item", "item": 7, "features": {}, "ts": 5}',
    "too-long": b'{"kind": "user", "user": "' + b"x" * (2 << 20) + b'", "features": {}, "ts": 5}',
}


def settings(*changes: tuple[str, str]) -> Settings:
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return config.loads(text, name="freshrank.yaml", environ={})


def shown(request: str, ts: float, *items: str, user: str = "u", **more: Any) -> dict[str, Any]:
    listed = [{"item": item} for item in items or ("a", "b")]
    event = {"kind": "impression", "request_id": request, "ts": ts, "user": user, "items": listed}
    return event | more


def click(request: str, item: str, ts: float, **more: Any) -> dict[str, Any]:
    event = {"kind": "feedback", "request_id": request, "item": item, "event": "click", "ts": ts}
    return event | more


def session(n_requests: int = 50, every_s: float = 12.0) -> list[dict[str, Any]]:
    """Of each request item `a` is clicked at a third of the way to the next request."""
    events = []
    for i in range(n_requests):
        ts = 1_000 + i * every_s
        events += [shown(f"r{i}", ts, user=f"u{i % 7}"), click(f"r{i}", "a", ts + every_s / 3)]
    return events


def write(path: Path, events: Iterable[dict[str, Any] | bytes]) -> Path:
    lines = (one if isinstance(one, bytes) else json.dumps(one).encode() for one in events)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def replay(path: Path, chosen: Settings | None = None, **options: Any) -> EventsReplay:
    options = {"clock": ManualClock(now_ms=NOW_S * 1_000)} | options
    with Rejects(path.with_name("rejects.jsonl")) as rejects:
        found = replay_events(path, chosen or settings(), rejects, EventOptions(**options))
    assert found.accounting_problems == []
    assert found.rows_read == found.accounting["accepted"] + found.accounting["rejected"]
    return found


def rejected(path: Path) -> list[dict[str, Any]]:
    lines = path.with_name("rejects.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def measured(found: EventsReplay) -> dict[str, Any]:
    return found.measures.figures()["click"]


def impressions(directory: Path) -> list[Impression]:
    log = LocalLog(directory / "log", clock=ManualClock(), writable=False)
    messages = [decode_message(record.value) for record in log.read(IMPRESSIONS, 0, 0)]
    log.close()
    return [one for one in messages if isinstance(one, Impression)]


def test_every_row_is_measured_once_with_the_label_it_had_in_the_end(tmp_path: Path) -> None:
    found = replay(write(tmp_path / "events.jsonl", session()))
    figures = measured(found)
    assert (found.requests, figures["examples"], found.rows_read) == (50, 100, 100)
    assert sum(hour["examples"] for hour in figures["by_hour"]) == 100
    # Half of the rows are positive, and item a always is: the model finds out.
    assert figures["auc_second_half"] == 1.0
    assert found.accounting["click.positive"] == found.accounting["click.negative"] == 50
    assert found.tables["item_id"]["rows"] == 2


@pytest.mark.parametrize("emit", ["positives_first", "at_once", "at_close"])
@pytest.mark.parametrize("rate", ["1.0", "0.25"])
def test_the_rule_of_emission_changes_no_label(tmp_path: Path, emit: str, rate: str) -> None:
    late = [shown("late", 2_000), click("late", "b", 2_000 + 25), shown("end", 2_100)]
    negative = f"event: click, negative: {{from: shown, sample_rate: {rate}}}"
    chosen = settings(
        ("window: 10s", f"window: 10s, emit: {emit}"), ("event: click}", negative + "}")
    )
    # The second `event: click` of the text is the feature's and has no brace behind it.
    found = replay(write(tmp_path / "events.jsonl", [*session(), *late]), chosen)
    _, labels, weights, *_ = zip(*found.measures._parts, strict=True)
    assert np.concatenate(weights).sum() == 104
    assert np.concatenate(labels)[:, 0].tolist() == [1.0, 0.0] * 50 + [0.0, 1.0] + [0.0, 0.0]


def test_a_repeated_impression_is_not_measured_twice(tmp_path: Path) -> None:
    events = [shown("r", 10), shown("r", 11, event_id="again"), click("r", "a", 12), shown("q", 40)]
    found = replay(write(tmp_path / "events.jsonl", events))
    assert found.accounting["impressions_duplicate"] == 1
    assert measured(found)["examples"] == 4
    # The first in the file is the first, whatever its time.
    events[:2] = [shown("r", 11, "a", event_id="again"), shown("r", 10, "a", "b", "c")]
    found = replay(write(tmp_path / "events.jsonl", events))
    assert measured(found)["examples"] == 1 + 2


def test_scores_are_served_and_older_than_what_follows(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    found = replay(write(tmp_path / "events.jsonl", session()), data_dir=directory)
    log = LocalLog(directory / "log", clock=ManualClock(), writable=False)
    batches = [
        decode(record.value, ["click"], ())
        for record in log.read(EXAMPLES, 0, 0, n_max=10_000, bytes_max=1 << 30)
    ]
    log.close()
    served = {
        (request, item): score
        for batch in batches
        for request, item, score in zip(
            batch.request_ids, batch.items, batch.served[:, 0].tolist(), strict=True
        )
    }
    scores = np.concatenate([part[0] for part in found.measures._parts])[:, 0].tolist()
    assert [served[f"r{i}", item] for i in range(50) for item in "ab"] == scores
    assert served["r0", "a"] == served["r0", "b"] == pytest.approx(0.5, abs=0.05)  # untrained
    assert served["r49", "a"] > 0.6 > 0.4 > served["r49", "b"]


def test_parameters_are_taken_over_when_told(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", session())

    def scores(every_s: int) -> list[float]:
        found = replay(path, sync_every=timedelta(seconds=every_s))
        return list(np.concatenate([part[0] for part in found.measures._parts])[:, 0].tolist())

    never = scores(3_600)  # longer than the file
    assert max(never) - min(never) < 0.05
    halfway = scores(300)  # r0 is at 0 s, r25 at 300 s
    assert halfway[:50] == never[:50]
    assert halfway[50] > halfway[51] + 0.1


def test_a_user_sees_what_they_did_just_before(tmp_path: Path) -> None:
    events = [
        shown("r0", 10.0, user="u"),
        shown("other", 10.0, user="v"),
        click("r0", "a", 10.1),
        shown("r1", 10.2, user="u"),
        click("r1", "b", 10.3, user="u"),
        shown("r2", 10.4, user="u"),
        shown("r3", 10.4, user="v"),
    ]
    replay(write(tmp_path / "events.jsonl", events), data_dir=tmp_path / "kept")
    recent = {one.request_id: one.shared["last_clicks"] for one in impressions(tmp_path / "kept")}
    assert recent == {"r0": [], "other": [], "r1": ["a"], "r2": ["b", "a"], "r3": []}


def test_entities_hold_from_their_place_in_the_file(tmp_path: Path) -> None:
    item = {"kind": "item", "item": "a", "ts": 10.1}
    events = [
        shown("r0", 10.0, "a"),
        item | {"features": {"tags": ["jazz"]}},
        shown("r1", 10.2, "a"),
        shown("r2", 500.0, "a"),
        item | {"features": {"tags": ["blues"]}, "ts": 501.0},
        shown("r3", 502.0, "a"),
    ]
    replay(write(tmp_path / "events.jsonl", events), data_dir=tmp_path / "kept")
    tags = [one.columns.get("tags") for one in impressions(tmp_path / "kept")]
    assert tags == [None, [["jazz"]], [["jazz"]], [["blues"]]]


def test_each_kind_of_bad_line_is_listed_and_counted(tmp_path: Path) -> None:
    lines: list[dict[str, Any] | bytes] = [*session(5)]
    for line in BAD_LINES.values():
        lines += [line, b"   "]  # a blank line says nothing
    path = write(tmp_path / "events.jsonl", lines)
    found = replay(path)
    assert (found.accounting["accepted"], found.accounting["rejected"]) == (10, len(BAD_LINES))
    listed = rejected(path)
    assert [one["reason"] for one in listed] == list(BAD_LINES)
    assert [one["line"] for one in listed] == [11 + 2 * i for i in range(len(BAD_LINES))]
    assert listed[0]["content"] == "{nothing"
    details = {one["reason"]: one["detail"] for one in listed}
    assert details["unknown-event"].endswith("did you mean 'click'?")
    assert details["bad-value"].startswith("features/tags: ")


def test_a_wrong_type_is_named_with_its_place(tmp_path: Path) -> None:
    bad = [shown("r", 5, items="a"), click("r", "a", 5, value="much"), {"kind": "item", "ts": 5}]
    path = write(tmp_path / "events.jsonl", [*session(2), *bad])
    replay(path)
    assert [
        (one["line"], one["reason"], one["detail"].split(":")[0]) for one in rejected(path)
    ] == [
        (5, "schema", "items"),
        (6, "schema", "value"),
        (7, "schema", "Object missing required field `item`"),
    ]


def test_one_per_cent_of_corrupt_lines_is_survived_unless_told_otherwise(tmp_path: Path) -> None:
    events: list[dict[str, Any] | bytes] = [*session(495, every_s=0.1)]
    for place in range(0, 1_000, 100):
        events.insert(place, b'{"kind": "impr')
    path = write(tmp_path / "events.jsonl", events)
    found = replay(path)
    assert (found.rows_read, found.accounting["rejected"]) == (1_000, 10)
    assert measured(found)["examples"] == 990
    found = replay_events(path, settings(), Rejects(None, share_max=0.009))
    assert found.broken is not None
    assert found.broken.code == "too-many-rejects"
    assert "10 of 1,000 rows were rejected" in str(found.broken)
    assert measured(found)["examples"] == 990  # what was read until then


def test_events_out_of_order_are_as_few_as_unfit_ones_may_be(tmp_path: Path) -> None:
    events = session()  # its first event comes last
    path = write(tmp_path / "events.jsonl", [*events[1:], events[0]])
    assert replay(path).accounting["out_of_order"] == 1
    found = replay_events(path, settings(), Rejects(None, share_max=0.009))
    assert found.broken is not None
    assert found.broken.code == "unsorted"
    assert "1 of 100 events lie further behind" in str(found.broken)


def test_late_actions_and_strangers_are_counted_by_the_rules_of_the_joiner(tmp_path: Path) -> None:
    events = [
        shown("r0", 100),
        shown("far", 200),
        click("r0", "a", 190),  # 90 s after its impression
        click("nobody", "a", 201),
        click("far", "a", 202),
        click("far", "a", 202, event_id="again"),
        shown("past", 120, "a"),
        shown("end", 300),
    ]
    found = replay(write(tmp_path / "events.jsonl", events))
    names = ("late", "unmatched", "duplicate", "matched")
    assert [found.accounting[name] for name in names] == [1, 1, 1, 1]
    assert found.accounting["out_of_order"] == 2
    assert found.accounting["impressions_dead_letter"] == 1  # its time was over
    assert measured(found)["examples"] == 6


def test_gzip_is_read_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", session())
    packed = tmp_path / "events.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert measured(replay(packed)) == measured(replay(path))


def test_a_byte_order_mark_is_no_part_of_the_first_event(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", session(3))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert replay(path).accounting["rejected"] == 0


def test_a_file_that_breaks_off_is_replayed_up_to_there_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    events = [shown(f"r{i}-{hash(str(i)):x}", 100 + i / 10) for i in range(20_000)]
    packed = gzip.compress(write(path, events).read_bytes())
    path.write_bytes(packed[: len(packed) // 2])
    found = replay(path)
    assert 8_000 < found.rows_read < 12_000
    assert f"breaks off after line {found.rows_read}" in str(found.broken)
    assert measured(found)["examples"] == 2 * found.rows_read


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (b"", "empty", "it is empty"),
        (b"\n \n", "empty", "it is empty"),
        (b"no\njson\n", "empty", "none of its 2 lines is an event"),
        (gzip.compress(b"x" * 99)[:12], "empty", "breaks off after line 0"),
        (None, "no-file", "No such file"),
    ],
)
def test_nothing_to_replay_is_an_error(
    tmp_path: Path, content: bytes | None, code: str, text: str
) -> None:
    path = tmp_path / "events.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        replay_events(path, settings(), Rejects(None))
    assert caught.value.code == code


def test_what_is_kept_goes_into_a_directory_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", session(3))
    replay(path, data_dir=tmp_path / "kept")
    kept = {one.name for one in (tmp_path / "kept").iterdir()}
    assert kept == {"log", "joiner", "trainer", "parameters"}
    with pytest.raises(ConfigError, match="has a log already"):
        replay(path, data_dir=tmp_path / "kept")


def test_an_impression_too_large_with_its_scores_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "events.jsonl", [shown("r", 10, "a")])
    replay(path, data_dir=tmp_path / "free")
    (free,) = impressions(tmp_path / "free")
    bare = msgspec.structs.replace(free, served={})
    limit = len(encode_message(bare)) + 1
    monkeypatch.setattr(impressions_module, "_BYTES_MAX", limit)
    replay(path, data_dir=tmp_path / "tight")
    assert (set(free.served), impressions(tmp_path / "tight")) == ({"click"}, [bare])


def test_slices_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    end_slice = FastForward.end_slice

    def note(forward: FastForward) -> None:
        sizes.append(len(forward._slice))
        end_slice(forward)

    monkeypatch.setattr(FastForward, "end_slice", note)
    path = write(tmp_path / "events.jsonl", [shown(f"r{i}", 100 + i / 100) for i in range(1_000)])
    whole = measured(replay(path))
    assert sizes == [200] * 5  # two seconds each: 1 s and no fewer than 200 events
    sizes.clear()
    monkeypatch.setattr(FastForward, "n_rows_max", 20)
    assert measured(replay(path))["examples"] == whole["examples"]
    assert sizes == [10] * 100


def test_a_replay_can_be_held_back(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", [shown(f"r{i}", 100 + 40 * i) for i in range(4)])
    told: list[tuple[float, int]] = []
    found = replay(path, speed=200, on_progress=lambda *at: told.append(at))
    # The last slice ends with the file: 80 s of events lie between the first end and the last.
    assert found.wall_s >= 80 / 200
    assert [time_ms for _, time_ms in told] == [140_000, 180_000, 220_000]
    assert told[-1][0] == 1.0
