"""What comes alone is fetched at once, a stream in company, a backlog without rest."""

from freshrank.transport.kafka_pace import (
    BACKLOG_FROM,
    GATHER_S,
    SOON_S,
    STREAM_FROM,
    FetchPace,
)


def test_what_comes_alone_and_a_backlog_are_fetched_at_once() -> None:
    pace = FetchPace()
    assert pace.rest_s(1) == 0.0
    assert pace.rest_s(0) == 0.0
    assert pace.rest_s(BACKLOG_FROM) == 0.0
    assert 0.0 < pace.rest_s(1) <= SOON_S


def test_a_stream_gathers_for_longer() -> None:
    pace = FetchPace()
    assert pace.rest_s(STREAM_FROM) == 0.0
    assert SOON_S < pace.rest_s(STREAM_FROM) <= GATHER_S


def test_rests_that_are_cut_short_do_not_add_up() -> None:
    pace = FetchPace()
    assert max(pace.rest_s(1) for _ in range(1_000)) <= GATHER_S
