"""The state in process passes the checks of all feature states, and keeps its file whole."""

import threading
from pathlib import Path

import msgspec
import pytest

from freshrank import feature_state
from freshrank.errors import SchemaError
from freshrank.feature_state import FeatureUpdates, LocalFeatureState
from tests.integration.features.state_checks import (
    CLICKS,
    SETTINGS,
    STATE_CHECKS,
    Check,
    known,
    one_round,
)


@pytest.mark.parametrize("is_saved", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize(
    "check", STATE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
def test_local_state_passes(
    check: Check, is_saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_state, "UNSAVED_MAX", 5)
    path = tmp_path / "features" / "state" if is_saved else None
    check(lambda: LocalFeatureState(SETTINGS, path))


def test_the_file_holds_all_rounds_that_saved_names(tmp_path: Path) -> None:
    state = LocalFeatureState(SETTINGS, tmp_path / "state")
    state.apply(one_round(4, 1_000, 2_000))
    assert state.saved == {}
    state._save()
    state.apply(one_round(5, 3_000))
    again = LocalFeatureState(SETTINGS, tmp_path / "state")
    assert again.saved == {"freshrank.actions:0": 4}
    again.apply(one_round(4, 1_000, 2_000))
    again.apply(one_round(5, 3_000))
    assert known(again, 9_000) == known(state, 9_000)


def test_another_configuration_takes_what_it_still_has(tmp_path: Path) -> None:
    state = LocalFeatureState(SETTINGS, tmp_path / "state")
    state.apply(one_round(4, 1_000))
    state._save()
    fewer = SETTINGS.model_copy(update={"features": SETTINGS.features[:3]})
    again = LocalFeatureState(fewer, tmp_path / "state")
    assert list(again.series) == [*state.series][:1]
    assert len(again.series["sum:click:item_id:10000"]) == 3


WITH_HALF_A_KEY = msgspec.msgpack.encode([1, {}, {CLICKS: [b"1234", b"", b"", b""]}, {}, {}])


@pytest.mark.parametrize(
    "damage", [b"", b"no state", b"\x95\x02\x80\x80\x80\x80", b"\x91\x01", WITH_HALF_A_KEY]
)
def test_a_damaged_or_newer_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "state").write_bytes(damage)
    with pytest.raises(SchemaError, match="feature state"):
        LocalFeatureState(SETTINGS, tmp_path / "state")


def test_a_round_of_another_version_is_refused() -> None:
    value = msgspec.msgpack.encode([3, {}, [], {}])
    with pytest.raises(SchemaError, match="format 3, this program reads 2"):
        FeatureUpdates.from_bytes(value)


def test_a_full_disk_loses_no_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving is tried again with a later round."""
    monkeypatch.setattr(feature_state, "UNSAVED_MAX", 5)
    (tmp_path / "features").write_text("a file where the directory should be")
    state = LocalFeatureState(SETTINGS, tmp_path / "features" / "state")
    state.apply(one_round(1, 1_000, 2_000))
    assert state.saved == {}
    (tmp_path / "features").unlink()
    state.apply(one_round(2, 3_000, 4_000))
    assert state.saved == {"freshrank.actions:0": 2}
    assert known(LocalFeatureState(SETTINGS, tmp_path / "features" / "state"), 9_000) == known(
        state, 9_000
    )


def test_small_rounds_are_saved_before_telling_them_again_takes_long(tmp_path: Path) -> None:
    """Each is read from the joiner's database and decoded: 20 us, whatever is in it."""
    state = LocalFeatureState(SETTINGS, tmp_path / "state")
    for offset in range(6_000):
        state.apply(FeatureUpdates(marks={"freshrank.actions:0": offset}))
    assert state.saved["freshrank.actions:0"] > 0


def test_item_texts_are_kept_for_as_long_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_state, "_TEXTS_MIN", 10)
    state = LocalFeatureState(SETTINGS)
    state.apply(one_round(0, *range(1_000)))
    state.apply(one_round(1, 5_000))
    assert len(state._texts) <= 10
    assert known(state, 9_000)[1] == {"click": ["i5000", "i999", "i998"]}


def test_texts_may_be_replaced_while_they_are_read() -> None:
    state = LocalFeatureState(SETTINGS)
    state.apply(one_round(0, 1_000))

    class Replaced(dict[int, str]):
        def __contains__(self, token: object) -> bool:
            state._texts = {}
            return super().__contains__(token)

    state._texts = Replaced(state._texts)
    assert known(state, 9_000)[1] == {"click": ["i1000"]}


def test_readers_and_writers_run_together() -> None:
    state = LocalFeatureState(SETTINGS)
    failures: list[BaseException] = []

    def write(partition: int) -> None:
        try:
            for offset in range(60):
                state.apply(one_round(offset, offset, log=f"freshrank.actions:{partition}"))
                known(state, offset)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    expected = 4 * sum(0.5 ** ((60 - ts) / 10_000) for ts in range(60))
    assert known(state, 60)[0]["sum:click:item_id:10000"] == [round(expected, 9)] * 3
