"""What clients may send by way of Kafka, one case each: sound requests are joined as without it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from freshrank.messages import DeadLetter, Message
from freshrank.settings import Settings
from freshrank.transport.base import (
    ACTIONS,
    DEAD_LETTER_SUFFIX,
    IMPRESSIONS,
    EventLog,
    NewRecord,
)
from freshrank.transport.kafka import KafkaLog
from tests.fault.input_cases import CASES, END_MS, NOW_MS, SOUND, Case
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

SETTINGS = Settings.model_validate(RAW | {"log": {"fsync": "never"}})


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


def send(log: EventLog, one: Message | bytes | int) -> None:
    """Append it to where it belongs."""
    if isinstance(one, int):
        append_ticks(log, one)
    elif isinstance(one, bytes):
        log.append(ACTIONS, [NewRecord(b"", one)], partition=0)
    else:
        append(log, one)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sound_requests_are_joined_whatever_else_is_sent(
    case: Case, sound: Sound, new_cluster: NewCluster, tmp_path: Path
) -> None:
    with closing(KafkaLog(new_cluster(1))) as log:
        append(log, *SOUND)
        for one in case.sent:
            send(log, one)
        append_ticks(log, END_MS)
        rows, totals = joined(log, tmp_path)
        assert codes(log) == list(case.letters)
    requests = {row.request for row in sound.rows}
    assert [row for row in rows if row.request in requests] == sound.rows
    others = (row for row in rows if row.request not in requests)
    learned = [(one.request, one.item, one.labels, one.weights, one.is_reversal) for one in others]
    assert learned == list(case.learned)
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
