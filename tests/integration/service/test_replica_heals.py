"""A replica behind damaged files of a real trainer: it keeps answering, asks, and is healed."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from freshrank.errors import TransportError
from tests.loops import Loop


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


Damage = Callable[[Path], None]
DAMAGES: Final[list[Damage]] = [flip, truncate, Path.unlink]


def damage_newest(loop: Loop, damage: Damage) -> None:
    """Break the newest delta before the replica comes to it."""
    head = loop.bench.channel.head()
    assert head is not None
    damage(loop.bench.directory / "parameters" / f"delta-{head.epoch}-{head.seq}.frame")


@pytest.fixture
def make_loop(tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def make(**sync: str) -> Loop:
        loops.append(Loop(tmp_path / str(len(loops)), **sync))
        loops[-1].start()
        return loops[-1]

    yield make
    for loop in loops:
        loop.close()


MakeLoop = Callable[..., Loop]


@pytest.mark.parametrize("n_rows", [20, 0], ids=["busy", "idle"])
def test_replica_behind_a_damaged_delta_is_back_after_one_tick(
    make_loop: MakeLoop, n_rows: int
) -> None:
    loop = make_loop(dense_every="1h")  # else the dense net alone would be news
    reasons = []
    for damage in DAMAGES:
        for _ in range(8):  # beyond the limit of one base in five seconds
            loop.tick()
            loop.follow()
        loop.assert_caught_up()
        served = loop.seq
        loop.tick()
        damage_newest(loop, damage)
        before = loop.replica.refusals
        loop.follow()
        assert loop.seq == served
        assert loop.replica.is_behind
        [reason] = {r for r, n in loop.replica.refusals.items() if n != before.get(r)}
        reasons.append(reason)

        loop.tick(n_rows=n_rows)
        loop.follow()
        assert loop.seq == served + 1 + bool(n_rows)
        loop.assert_caught_up()
    assert reasons == ["checksum", "checksum", "gap"]


def test_second_damage_within_five_seconds_waits_for_them(make_loop: MakeLoop) -> None:
    loop = make_loop()
    seqs, base_seqs = [], set()
    for _ in range(12):
        loop.tick()
        damage_newest(loop, flip)
        loop.follow()
        seqs.append(loop.seq)
        head = loop.channel.head()
        assert head is not None
        base_seqs.add(head.base_seq)
    # The base behind a delta heals from it at once: seq 2, 7 and 12, five seconds apart.
    assert seqs == [0, 2, 2, 2, 2, 2, 7, 7, 7, 7, 7, 12]
    assert base_seqs == {0, 2, 7, 12}
    loop.assert_caught_up()


def test_request_of_a_stuck_replica_survives_a_restart_of_the_trainer(
    make_loop: MakeLoop,
) -> None:
    loop = make_loop()
    loop.tick()
    damage_newest(loop, flip)
    loop.restart()
    loop.follow()  # while no trainer runs
    assert loop.seq == 0
    assert loop.bench.channel.wanted_base()
    loop.trainer.start()
    loop.follow()
    loop.assert_caught_up()
    assert not loop.bench.channel.wanted_base()
    for _ in range(7):  # the first base was the answer, no other one follows
        loop.tick(n_rows=0)
    head = loop.channel.head()
    assert head is not None
    assert (head.epoch, head.seq, head.base_seq) == (2, 2, 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_base_of_a_new_epoch_is_replaced(make_loop: MakeLoop, damage: Damage) -> None:
    loop = make_loop()
    loop.tick()
    loop.follow()
    loop.restart().start()
    damage(loop.bench.directory / "parameters" / "base-2-2.frame")
    with contextlib.suppress(TransportError):  # the replica's thread tries again after a second
        loop.follow()
    assert loop.seq == 1
    loop.tick()
    loop.follow()
    loop.assert_caught_up()


def test_replica_is_healed_while_the_trainer_is_paused(make_loop: MakeLoop) -> None:
    loop = make_loop()
    loop.tick()
    damage_newest(loop, truncate)
    loop.trainer._state.is_paused = True
    loop.follow()
    assert loop.seq == 0
    loop.tick()
    loop.follow()
    assert loop.seq == 1
    loop.assert_caught_up()


def test_periodic_base_heals_a_replica_that_cannot_ask(make_loop: MakeLoop) -> None:
    loop = make_loop(full_every="4s")
    (loop.bench.directory / "parameters" / "WANTED.json").mkdir()
    loop.tick()
    damage_newest(loop, flip)
    for _ in range(3):
        loop.follow()
        assert loop.seq == 0
        loop.tick()
    loop.follow()
    loop.assert_caught_up()
