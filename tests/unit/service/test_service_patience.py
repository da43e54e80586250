"""What blocks is waited for, but not for ever, and not by everybody."""

import threading
import time

import pytest

from freshrank.errors import TransportError
from service.patience import LOOK_S, Patience
from tests.unit.service.support import until


def test_what_is_done_in_time_is_answered() -> None:
    patience = Patience("test", n_max=1, wait_s=10.0)
    assert [patience.ask(lambda one=one: one) for one in range(3)] == [0, 1, 2]  # type: ignore[misc]


def test_its_error_is_that_of_the_work() -> None:
    def fail() -> None:
        raise TransportError("full", code="disk-full")

    with pytest.raises(TransportError, match="full") as failure:
        Patience("test", n_max=1, wait_s=10.0).ask(fail)
    assert failure.value.code == "disk-full"


def test_a_burst_waits_for_its_turn() -> None:
    patience, answers = Patience("test", n_max=1, wait_s=10.0), []
    both_asked = threading.Event()

    def ask(number: int) -> None:
        answers.append(patience.ask(lambda: both_asked.wait(10) and number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    both_asked.set()
    for thread in threads:
        thread.join(10)
    assert sorted(answers) == [1, 2]


@pytest.mark.parametrize("n_max", [1, 2])
def test_what_hangs_holds_one_caller_for_the_time_and_the_next_not_at_all(n_max: int) -> None:
    patience, release = Patience("test", n_max=n_max, wait_s=LOOK_S), threading.Event()
    done: list[bool] = []
    waits_s: list[float] = []
    for _ in range(2):
        start_s = time.monotonic()
        with pytest.raises(TransportError) as slow:
            patience.ask(lambda: done.append(release.wait(30)))
        waits_s.append(time.monotonic() - start_s)
        assert slow.value.code == "log-slow"
    assert waits_s[0] >= LOOK_S > waits_s[1]
    release.set()
    deadline_s = time.monotonic() + 10
    while True:  # its place is free again once it has ended
        try:
            assert patience.ask(lambda: "answer") == "answer"
            break
        except TransportError:
            assert time.monotonic() < deadline_s
    assert done == [True]


def test_where_something_hung_the_next_is_glanced_at_until_one_is_done() -> None:
    patience = Patience("test", n_max=2, wait_s=30.0, ill_wait_s=0.2)
    release, ended = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        release.wait(60)
        ended.release()
        raise TransportError("gone", code="broker-timeout")

    def refused(*, is_ill: bool = False) -> float:
        start_s = time.monotonic()
        with pytest.raises(TransportError) as slow:
            patience.ask(hang, is_ill=is_ill)
        assert slow.value.code == "log-slow"
        return time.monotonic() - start_s

    # As something else has said; as the first has shown; without a place, which has no longer wait.
    assert [refused(is_ill=True) < 15, refused() < 15, refused() < LOOK_S + 15] == [True] * 3
    release.set()
    assert all(ended.acquire(timeout=30) for _ in range(2))

    def is_well() -> bool:
        try:
            return patience.ask(lambda: True)
        except TransportError:
            return False

    until(is_well)
    assert patience.ask(lambda: threading.Event().wait(0.4)) is False  # longer than a glance


def test_where_something_hung_a_place_is_waited_for_no_longer_than_an_answer() -> None:
    patience, release = Patience("test", n_max=1, wait_s=30.0, ill_wait_s=0.001), threading.Event()
    waits_s: list[float] = []
    for _ in range(40):  # the place is taken by the first
        start_s = time.monotonic()
        with pytest.raises(TransportError):
            patience.ask(lambda: release.wait(60), is_ill=True)
        waits_s.append(time.monotonic() - start_s)
    release.set()
    assert sorted(waits_s)[20] < LOOK_S / 2
