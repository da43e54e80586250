"""What clients may send by way of Kafka, one case each: sound requests are joined as without it."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from freshrank import messages
from freshrank.messages import DeadLetter, Message
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, DEAD_LETTER_SUFFIX, IMPRESSIONS, EventLog
from freshrank.transport.kafka import KafkaLog
from tests.fault.joined_on_kafka import RAW, joined_here, local_log, outputs
from tests.integration.transport.log_checks import DEADLINE_S, read_all
from tests.servers import NewCluster
from tests.unit.joiner.world import (
    Example,
    action,
    append,
    append_ticks,
    check_accounting,
    impression,
)

NOW_MS = 1_800_000_000_000
TEN_YEARS_MS = 10 * 365 * 24 * 3_600_000
SETTINGS = Settings.model_validate(RAW | {"log": {"fsync": "never"}})
# A request that is clicked and one that is not, in windows that the end closes.
SOUND = (
    impression("clicked", ["1", "2"], NOW_MS),
    impression("left", ["3"], NOW_MS + 10),
    action("clicked", "1", NOW_MS + 500, event_id="click"),
)
END_MS = NOW_MS + 60_000


def newer(message: Message) -> Message:
    """The message as of a newer program."""
    return msgspec.structs.replace(message, v=messages.VERSION + 1)


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent after sound records, while their windows are open, and what becomes of it.

    Attributes:
        name: Of the fault.
        sent: Messages.
        outcomes: By how much totals exceed those of the sound records.
        letters: Codes of dead letters.
    """

    name: str
    sent: Sequence[Message]
    outcomes: dict[str, int] = field(default_factory=dict)
    letters: tuple[str, ...] = ()


CASES = [
    Case(
        "the-same-event-a-thousand-times",
        [action("clicked", "1", NOW_MS + 500, event_id="click")] * 1_000,
        {"duplicate": 1_000},
    ),
    Case(
        "a-clock-ten-years-ahead",
        [
            action("clicked", "2", NOW_MS + TEN_YEARS_MS, received=NOW_MS + 100),
            impression("ahead", ["4"], NOW_MS + TEN_YEARS_MS, received=NOW_MS + 100),
        ],
        {"dead_letter": 1, "impressions_dead_letter": 1},
        ("future", "future"),
    ),
    Case(
        "a-clock-four-minutes-ahead-counts-as-now",
        [action("clicked", "1", NOW_MS + 240_000, received=NOW_MS + 600, event_id="click")],
        {"duplicate": 1},
    ),
    Case(
        "a-clock-ten-years-behind",
        [
            action("behind", "4", NOW_MS - TEN_YEARS_MS, received=NOW_MS + 100),
            impression("behind", ["4"], NOW_MS - TEN_YEARS_MS, received=NOW_MS + 100),
        ],
        {"unmatched": 1, "impressions_dead_letter": 1},
        ("late",),
    ),
    Case(
        "a-clock-at-zero",
        [
            action("zero", "4", 0, received=NOW_MS + 100),
            impression("zero", ["4"], 0, received=NOW_MS + 100),
        ],
        {"unmatched": 1, "impressions_dead_letter": 1},
        ("late",),
    ),
    Case(
        "a-time-before-1970",
        [action("clicked", "2", -1, received=NOW_MS + 100)],
        {"dead_letter": 1},
        ("bad-time",),
    ),
    Case(
        "numbers-that-are-none",
        [
            action("clicked", "2", NOW_MS + 100, value=math.nan),
            impression("nan", ["4"], NOW_MS + 100, columns={"price": [math.inf]}),
        ],
        {"dead_letter": 1, "impressions_dead_letter": 1},
        ("non-finite-value", "bad-value"),
    ),
    Case(
        "an-event-for-a-request-that-was-never-served",
        [action(f"forged-{n}", "1", NOW_MS + 100) for n in range(20)],
        {"unmatched": 20},
    ),
    Case(
        "an-event-for-an-item-that-was-not-shown",
        [action("clicked", "99", NOW_MS + 100)],
        {"unmatched": 1},
    ),
    Case(
        "a-label-flood-of-one-user",
        [action("clicked", "1", NOW_MS + 500, event_id=f"flood-{n}") for n in range(500)],
        {"duplicate": 500},
    ),
    Case(
        "a-message-of-a-newer-program",
        [
            newer(action("clicked", "2", NOW_MS + 100)),
            newer(impression("newer", ["4"], NOW_MS + 100)),
        ],
        {"dead_letter": 1, "impressions_dead_letter": 1},
        ("newer-version", "newer-version"),
    ),
]


@dataclass(frozen=True, slots=True)
class Sound:
    """What undisturbed joiners make of the sound records."""

    rows: list[Example]
    totals: Counter[str]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    directory = tmp_path_factory.mktemp("sound")
    with closing(local_log(directory / "log", 1)) as log:
        append(log, *SOUND)
        append_ticks(log, END_MS)
        yield Sound(*joined(log, directory))


def joined(
    log: EventLog, directory: Path, settings: Settings = SETTINGS
) -> tuple[list[Example], Counter[str]]:
    """Rows and totals of what is there."""
    totals = joined_here(log, settings, directory, 1)
    check_accounting(totals, settings)
    return outputs(log, SETTINGS)[0][0], totals


def codes(log: EventLog) -> list[str]:
    """Of all dead letters."""
    return [
        msgspec.msgpack.decode(record.value, type=DeadLetter).code
        for topic in (ACTIONS, IMPRESSIONS)
        for record in read_all(log, topic + DEAD_LETTER_SUFFIX, 0)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sound_requests_are_joined_whatever_else_is_sent(
    case: Case, sound: Sound, new_cluster: NewCluster, tmp_path: Path
) -> None:
    with closing(KafkaLog(new_cluster(1))) as log:
        append(log, *SOUND, *case.sent)
        append_ticks(log, END_MS)
        rows, totals = joined(log, tmp_path)
        assert rows == sound.rows
        assert codes(log) == list(case.letters)
    outcomes = ("matched", "duplicate", "unmatched", "late", "pending", "dead_letter")
    names = (*outcomes, "impressions_joined", "impressions_dead_letter", "examples_written")
    more = {name: totals[name] - sound.totals[name] for name in names}
    assert {name: n for name, n in more.items() if n} == case.outcomes


def test_what_was_sent_last_week_is_not_learned_again(
    sound: Sound, new_cluster: NewCluster, tmp_path: Path
) -> None:
    with closing(KafkaLog(new_cluster(1))) as log:
        append(log, *SOUND)
        append_ticks(log, END_MS)
        append_ticks(log, END_MS + 7 * 24 * 3_600_000)  # all that was known of it is forgotten
        append(log, *SOUND)
        append_ticks(log, END_MS + 7 * 24 * 3_600_000 + 60_000)
        rows, totals = joined(log, tmp_path)
        assert rows == sound.rows
        assert codes(log) == ["late", "late"]
    assert totals["unmatched"] == sound.totals["unmatched"] + 1


def test_one_who_asks_and_clicks_without_end_is_learned_from_as_far_as_the_quota_goes(
    sound: Sound, new_cluster: NewCluster, tmp_path: Path
) -> None:
    n_asked, quota = 5_000, 50
    join = RAW.get("join", {}) | {"user_requests_per_hour": quota}
    settings = Settings.model_validate(RAW | {"log": {"fsync": "never"}, "join": join})
    asked = [impression(f"bot-{n}", ["1"], NOW_MS + 100, user="bot") for n in range(n_asked)]
    clicks = [action(f"bot-{n}", "1", NOW_MS + 600, user="bot") for n in range(n_asked)]
    with closing(KafkaLog(new_cluster(1))) as log:
        append(log, *SOUND, *asked, *clicks)
        append_ticks(log, END_MS)
        rows, totals = joined(log, tmp_path, settings)
        assert codes(log) == ["flood"] * (n_asked - quota)
    assert [row for row in rows if not row.request.startswith("bot-")] == sound.rows
    assert len({row.request for row in rows if row.request.startswith("bot-")}) == quota
    assert totals["unmatched"] == sound.totals["unmatched"] + n_asked - quota


@pytest.mark.parametrize("codec", ["lz4", "gzip"])
def test_a_record_that_unpacks_to_64_mib_is_dead_lettered_without_its_value(
    codec: str, sound: Sound, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster, bomb = new_cluster(1), bytes(64 << 20)
    options = {"compression_type": codec, "max_request_size": 2 * len(bomb)}
    with (
        closing(KafkaLog(cluster)) as log,
        closing(cluster.made(KafkaProducer, options)) as producer,
    ):
        producer.send(cluster.name(ACTIONS), value=bomb, partition=0).get(DEADLINE_S)
        append(log, *SOUND)
        append_ticks(log, END_MS)
        rows, totals = joined(log, tmp_path)
        assert rows == sound.rows
        assert codes(log) == ["malformed"]
        (letter,) = read_all(log, ACTIONS + DEAD_LETTER_SUFFIX, 0)
        assert len(letter.value) < 2_000
    assert totals["dead_letter"] == 1
