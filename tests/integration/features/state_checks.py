"""What every `FeatureState` keeps, whatever holds it: checks for all implementations.

Each check takes a function that opens the state: empty at the first call; every later call opens
the same state once more, as another process would.
"""

import random
from collections.abc import Callable
from typing import Final

import numpy as np

from freshrank.feature_series import series_of
from freshrank.feature_state import Did, FeatureState, FeatureUpdates, StateQuery
from freshrank.feature_updates import Forgotten
from freshrank.settings import Settings
from freshrank.state_layout import StateLayout

SETTINGS: Final = Settings.model_validate(
    {
        "features": [
            {"name": "user_id", "type": "id", "scope": "user"},
            {"name": "item_id", "type": "id", "scope": "item"},
            {"name": "clicks", "type": "count", "event": "click", "half_life": "10s"},
            {"name": "clicked", "type": "seen", "event": "click", "value": "ago", "within": "1h"},
            {"name": "age", "type": "seen", "event": "click", "value": "age", "within": "1h"},
            {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 3},
        ],
        "tasks": [{"name": "click", "event": "click"}],
    }
)
CLICKS, CLICKED, AGE = (one.name for f in SETTINGS.features for one in series_of(f))
KEYS: Final = np.array([0, 5, 2**64 - 1], np.uint64)

OpenState = Callable[[], FeatureState]
Check = Callable[[OpenState], None]
Known = tuple[dict[str, list[float | None]], dict[str, list[str]]]


def one_round(offset: int, *ts_ms: int, log: str = "freshrank.actions:0") -> FeatureUpdates:
    """Every key has an event at each of these times; so has a user."""
    keys = np.tile(KEYS, len(ts_ms))
    events = {name: (keys, np.repeat(ts_ms, len(KEYS))) for name in (CLICKS, CLICKED, AGE)}
    did = [("click", "ann", Did(ts, f"e{ts}", f"i{ts}")) for ts in ts_ms]
    return FeatureUpdates(events, did, {log: offset})


def known(state: FeatureState, before_ms: int, user: str | None = "ann") -> Known:
    """All a request reads, rounded to what floating point promises."""
    answer = state.read(
        StateQuery(before_ms, {name: KEYS for name in (CLICKS, CLICKED, AGE)}, user)
    )
    values = {
        name: [None if np.isnan(one) else round(float(one), 9) for one in values]
        for name, values in answer.values.items()
    }
    return values, answer.recent


def check_empty_state_knows_nothing(open_state: OpenState) -> None:
    nothing = [None] * len(KEYS)
    values = {CLICKS: [0.0] * len(KEYS), CLICKED: nothing, AGE: nothing}
    assert known(open_state(), 1_000) == (values, {"click": []})


def check_updates_are_visible_strictly_later(open_state: OpenState) -> None:
    state = open_state()
    state.apply(one_round(0, 1_000, 3_000))
    values, recent = known(state, 3_000)
    assert recent == {"click": ["i1000"]}
    assert values == {
        CLICKS: [round(0.5**0.2, 9)] * len(KEYS),
        CLICKED: [2.0] * len(KEYS),
        AGE: [2.0] * len(KEYS),
    }
    values, recent = known(state, 3_001)
    assert recent == {"click": ["i3000", "i1000"]}
    assert values[CLICKED] == [0.001] * len(KEYS)


def check_rounds_commute(open_state: OpenState) -> None:
    """The rounds of several partitions, in another order than the events happened."""
    times = [4_000, 1_000, 3_000, 2_000, 3_000]
    random.shuffle(times)
    state = open_state()
    for partition, ts_ms in enumerate(times):
        state.apply(one_round(7, ts_ms, log=f"freshrank.actions:{partition}"))
    values, recent = known(state, 4_000)
    assert recent == {"click": ["i3000", "i2000"]}  # of the three that are kept
    clicks = sum(0.5 ** ((4_000 - ts) / 10_000) for ts in (1_000, 2_000, 3_000, 3_000))
    assert values[CLICKS] == [round(clicks, 9)] * len(KEYS)
    assert values[CLICKED] == [1.0] * len(KEYS)
    assert values[AGE] == [3.0] * len(KEYS)


def check_a_round_counts_once(open_state: OpenState) -> None:
    state = open_state()
    first, second = one_round(3, 1_000), one_round(5, 2_000)
    for updates in (first, first, second, first, second):
        state.apply(updates)
    values, recent = known(state, 2_000)
    assert values[CLICKS] == [round(0.5**0.1, 9)] * len(KEYS)
    assert recent == {"click": ["i1000"]}


def check_users_are_their_own(open_state: OpenState) -> None:
    state = open_state()
    state.apply(one_round(0, 1_000))
    assert known(state, 9_000, user="bob")[1] == {"click": []}
    assert known(state, 9_000, user=None)[1] == {}


def check_rounds_survive_their_bytes(open_state: OpenState) -> None:
    state = open_state()
    state.apply(FeatureUpdates.from_bytes(one_round(0, 1_000, 2_000).to_bytes()))
    assert known(state, 5_000)[1] == {"click": ["i2000", "i1000"]}


def check_what_is_not_saved_can_be_sent_again(open_state: OpenState) -> None:
    """A writer sends all rounds beyond `saved` to the state it finds after a restart."""
    state = open_state()
    rounds = [one_round(offset, 1_000 * offset) for offset in range(1, 6)]
    for updates in rounds:
        state.apply(updates)
    before = known(state, 5_500)
    again = open_state()
    for updates in rounds:
        if any(at > again.saved.get(log, -1) for log, at in updates.marks.items()):
            again.apply(updates)
    assert known(again, 5_500) == before


def forgetting(offset: int, slot: str, key: int, ts_ms: int) -> FeatureUpdates:
    return FeatureUpdates(
        forgotten=[Forgotten(slot, key, ts_ms)], marks={"freshrank.actions:0": offset}
    )


def check_a_forgotten_user_is_known_from_later_rounds_only(open_state: OpenState) -> None:
    state = open_state()
    [ann] = StateLayout(SETTINGS).tokens("user_id", ["ann"]).tolist()
    rounds = [one_round(1, 1_000), forgetting(2, "user_id", ann, 2_000)]
    for one in (state, open_state()):  # another process sends again what is not saved
        for updates in rounds:
            if any(at > one.saved.get(log, -1) for log, at in updates.marks.items()):
                one.apply(FeatureUpdates.from_bytes(updates.to_bytes()))
        values, recent = known(one, 3_000)
        assert recent == {"click": []}
        assert values[CLICKED] == [None] * len(KEYS)
        assert values[CLICKS] == [round(0.5**0.2, 9)] * len(KEYS)  # of items, not of hers
        assert known(one, 3_000, user="bob")[0][CLICKED] == [2.0] * len(KEYS)
    state.apply(one_round(3, 4_000))
    values, recent = known(state, 5_000)
    assert recent == {"click": ["i4000"]}
    assert values[CLICKED] == [1.0] * len(KEYS)
    # Of two clicks at one time as of one: what was before stays hidden.
    assert known(state, 4_000)[0][CLICKED] == [None] * len(KEYS)


def check_a_forgotten_item_is_new(open_state: OpenState) -> None:
    state = open_state()
    state.apply(one_round(1, 1_000))
    state.apply(forgetting(2, "item_id", int(KEYS[1]), 2_000))
    values, _ = known(state, 3_000)
    kept = round(0.5**0.2, 9)
    assert values[CLICKS] == [kept, 0.0, kept]
    assert values[AGE] == [2.0, None, 2.0]
    state.apply(one_round(3, 4_000))
    assert known(state, 5_000)[0][AGE] == [4.0, 1.0, 4.0]


def check_a_round_that_forgets_does_so_once(open_state: OpenState) -> None:
    state = open_state()
    [ann] = StateLayout(SETTINGS).tokens("user_id", ["ann"]).tolist()
    state.apply(one_round(1, 1_000))
    command = forgetting(2, "user_id", ann, 2_000)
    for updates in (command, one_round(3, 4_000), command):
        state.apply(updates)
    assert known(state, 5_000)[1] == {"click": ["i4000"]}


STATE_CHECKS: Final[list[Check]] = [
    check_empty_state_knows_nothing,
    check_updates_are_visible_strictly_later,
    check_rounds_commute,
    check_a_round_counts_once,
    check_users_are_their_own,
    check_rounds_survive_their_bytes,
    check_what_is_not_saved_can_be_sent_again,
    check_a_forgotten_user_is_known_from_later_rounds_only,
    check_a_forgotten_item_is_new,
    check_a_round_that_forgets_does_so_once,
]
