"""The native feature state against the slow one: any order, any keys, any times."""

from collections.abc import Callable
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freshrank._live import Rings, Series
from tests.slow_state import SlowState

SPAN_MS = 1_000
KEYS = (0, 1, 7, 2**63, 2**64 - 1)

keys = st.sampled_from(KEYS)
events = st.lists(st.tuples(keys, st.integers(0, 5_000)), max_size=30)


def add(series: Series, batch: list[tuple[int, int]]) -> None:
    series.add(
        np.array([k for k, _ in batch], np.uint64), np.array([t for _, t in batch], np.int64)
    )


def read(series: Series, ts_ms: int) -> list[float | None]:
    values = series.read(np.array(KEYS, np.uint64), np.full(len(KEYS), ts_ms))
    return [None if np.isnan(one) else float(one) for one in values]


SLOW: dict[str, Callable[[SlowState, int, int], float | None]] = {
    "sum": lambda slow, key, ts: slow.sum(key, ts, SPAN_MS),
    "last": lambda slow, key, ts: slow.last_s(key, ts, SPAN_MS),
    "first": lambda slow, key, ts: slow.first_s(key, ts, SPAN_MS),
}


@given(st.sampled_from(sorted(SLOW)), events, st.randoms(), st.integers(0, 2_000))
def test_series_read_what_happened_before_in_whatever_order_it_came(
    kind: str, batch: list[tuple[int, int]], random: Random, later_ms: int
) -> None:
    """At or after the last event of a key; within a span, as `first` promises no more."""
    batch = [(key, ts % SPAN_MS if kind == "first" else ts) for key, ts in batch]
    slow, series = SlowState(), Series(kind=kind, span_ms=SPAN_MS)
    for key, ts in batch:
        slow.add(key, ts)
    shuffled = list(batch)
    random.shuffle(shuffled)
    for start in range(0, len(shuffled), 7):
        add(series, shuffled[start : start + 7])
    newest = max((ts for _, ts in batch), default=0)
    for ts in (newest, newest + 1, newest + later_ms):
        expected = [SLOW[kind](slow, key, ts) for key in KEYS]
        found = read(series, ts)
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            np.testing.assert_allclose(one or 0.0, other or 0.0, rtol=1e-9, atol=1e-12)


@given(events, st.integers(0, 6_000))
def test_the_last_time_is_strictly_before_the_read(batch: list[tuple[int, int]], ts: int) -> None:
    """An action after a late impression is never its feature."""
    series = Series(kind="last", span_ms=1e9)
    add(series, batch)
    assert all(one is None or one > 0 for one in read(series, ts))


@given(st.sampled_from(sorted(SLOW)), events, st.integers(0, 9_000))
def test_entries_restore_the_series(kind: str, batch: list[tuple[int, int]], ts: int) -> None:
    first, second = (Series(kind=kind, span_ms=SPAN_MS) for _ in range(2))
    add(first, batch)
    second.restore(*first.entries())
    assert read(second, ts) == read(first, ts)
    assert len(second) == len(first)


@given(
    st.lists(st.tuples(keys, st.integers(0, 9), st.integers(0, 5), st.integers(0, 99))),
    st.randoms(),
    st.integers(0, 10),
    st.integers(1, 4),
)
def test_rings_keep_the_last_items_in_whatever_order_they_came(
    did: list[tuple[int, int, int, int]], random: Random, ts: int, n_max: int
) -> None:
    slow, rings = SlowState(), Rings(n_max=n_max)
    did = list({(key, at, tie): (key, at, tie, item) for key, at, tie, item in did}.values())
    for key, at, tie, item in did:
        slow.act(key, at, tie, str(item))
    twice = did * 2
    random.shuffle(twice)
    for key, at, tie, item in twice:
        rings.add(
            np.array([key], np.uint64), np.array([at]), np.array([tie], np.uint64),
            np.array([item], np.uint64),
        )  # fmt: skip
    items, offsets = rings.read(np.array(KEYS, np.uint64), np.full(len(KEYS), ts))
    for i, key in enumerate(KEYS):
        found = [str(one) for one in items[offsets[i] : offsets[i + 1]]]
        assert found == slow.recent(key, ts, n_max)


def test_what_can_no_longer_be_read_leaves_as_updates_come() -> None:
    """A stream of new keys holds what the last 40 half-lives brought, twice over at most."""
    for kind, span_ms in (("sum", 10.0), ("last", 400.0), ("first", 400.0)):
        series = Series(kind=kind, span_ms=span_ms)
        for start in range(0, 100_000, 1_000):
            times = np.arange(start, start + 1_000)
            series.add(times.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), times)
        assert 400 <= len(series) <= 4_000


def test_an_occupied_cluster_survives_removals() -> None:
    """Sweeping moves entries back; every one that is left is still found."""
    series = Series(kind="last", span_ms=1_000.0)
    rng = np.random.default_rng(3)
    stays = rng.integers(0, 2**64, 3_000, dtype=np.uint64)
    goes = rng.integers(0, 2**64, 9_000, dtype=np.uint64)
    series.add(goes, np.zeros(len(goes), np.int64))
    for _ in range(8):
        series.add(stays, np.full(len(stays), 5_000))
    assert len(series) == len(stays)
    assert (series.read(stays, np.full(len(stays), 5_500)) == 0.5).all()
