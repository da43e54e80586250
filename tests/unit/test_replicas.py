"""Several replicas are asked until each has done it, and none keeps the others waiting for ever."""

import pytest

from freshrank.commands.replicas import listed, until_all
from freshrank.errors import TransportError

A, B = "http://a:8000", "http://b:8000"


def test_one_that_hangs_is_asked_no_longer_than_there_is_time() -> None:
    allowed_s: list[float] = []

    def look(place: str, timeout_s: float) -> str:
        allowed_s.append(timeout_s)
        if place == A:
            raise TransportError("no answer")
        return ""

    left = until_all([A, B], look, wait_s=0.6)
    assert listed(left) == f"{A} (no answer)"
    assert len(allowed_s) >= 4
    assert all(0.2 <= one <= 0.6 for one in allowed_s)
    assert until_all([A, B], lambda _, timeout_s: "" if timeout_s == 5.0 else "?", wait_s=60) == {}


@pytest.mark.parametrize("n_looks", [1, 3])
def test_it_ends_with_the_last_of_them(n_looks: int) -> None:
    asked: list[str] = []

    def look(place: str, timeout_s: float) -> str:
        asked.append(place)
        return "not yet" if place == B and asked.count(B) < n_looks else ""

    assert until_all([A, B], look, wait_s=60) == {}
    assert asked == [A, B] * n_looks
