"""What `freshrank forget` asks of which replica, and when it takes an id for forgotten."""

import json
from typing import Any

import pytest

from freshrank.commands import forget
from freshrank.commands import replicas as commands_replicas
from freshrank.errors import DataError, TransportError
from tests.unit.answers import Answers

A, B = "http://a:8000", "http://b:8000"
KNOWN: dict[str, Any] = {"row": True, "recent": 3, "features": 1}
GONE: dict[str, Any] = {"row": False, "recent": 0, "features": 0}
BLIND: dict[str, Any] = {"row": None, "recent": 0, "features": 0}
AWAY = TransportError(f"no answer from {B}: it restarts")


class Replicas(Answers):
    """What each says of the id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool]] = []
        monkeypatch.setattr(commands_replicas, "call", self._call)

    def _call(self, base: str, path: str, **_: Any) -> dict[str, Any]:
        self.asked.append((base, path.endswith("?dry_run=true")))
        return {"slot": "user_id", "known": self.next(base), "remains": ["log"]}


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    return Replicas(monkeypatch)


def run(*services: str, wait_s: float = 60.0, is_dry: bool = False, as_json: bool = True) -> None:
    forget.run(
        *("user_id", "ann"),
        url=A,
        services=services,
        key=None,
        is_dry=is_dry,
        wait_s=wait_s,
        as_json=as_json,
    )


def test_it_waits_for_the_replica_that_forgets_last(
    replicas: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    replicas.say(A, KNOWN, GONE)
    replicas.say(B, KNOWN, KNOWN, AWAY, BLIND, GONE)
    run(B, A)  # the one that is given the command is asked once
    told = json.loads(capsys.readouterr().out)
    assert (told["known"], told["services"]) == (KNOWN, {A: KNOWN, B: KNOWN})
    assert [place for place, is_dry in replicas.asked if not is_dry] == [A]
    assert [place for place, _ in replicas.asked] == [B, A] + [A, B] * 4


@pytest.mark.parametrize(
    ("last", "why"),
    [(KNOWN, "row True, recent 3"), (BLIND, "cannot tell: row"), (AWAY, "restarts")],
)
def test_it_names_who_has_not_forgotten_and_what_is_left(
    replicas: Replicas, last: Any, why: str
) -> None:
    replicas.say(A, KNOWN, GONE)
    replicas.say(B, KNOWN, last)
    with pytest.raises(TransportError, match="the command is given") as late:
        run(B, wait_s=0.0)
    assert late.value.code == "not-obeyed"
    assert f"{B} (" in str(late.value)
    assert why in str(late.value)
    assert A not in str(late.value)


def test_a_user_is_not_forgotten_where_nobody_can_look(replicas: Replicas) -> None:
    replicas.say(A, KNOWN, GONE)
    replicas.say(B, GONE | {"recent": None})  # neither before nor after
    with pytest.raises(TransportError, match="cannot tell: recent") as late:
        run(B, wait_s=0.0)
    assert late.value.code == "not-obeyed"


@pytest.mark.parametrize("refusal", [AWAY, DataError("401 unauthorized")])
def test_nothing_is_given_while_a_replica_cannot_be_asked(
    replicas: Replicas, refusal: Exception
) -> None:
    replicas.say(A, KNOWN)
    replicas.say(B, refusal)
    with pytest.raises(type(refusal), match=B):
        run(B)
    assert replicas.asked == [(B, True)]


@pytest.mark.parametrize(
    ("services", "lines"),
    [
        ((), ["known: row True, recent 3, features 1", "stays:", "forgotten in"]),
        ((B,), [f"known by {A}: row", f"known by {B}: nothing", "stays:", "forgotten by 2 "]),
    ],
)
def test_it_says_what_each_knew(
    replicas: Replicas,
    capsys: pytest.CaptureFixture[str],
    services: tuple[str, ...],
    lines: list[str],
) -> None:
    replicas.say(A, KNOWN, GONE)
    replicas.say(B, GONE)
    run(*services, as_json=False)
    said = capsys.readouterr().out.splitlines()
    assert [line[: len(start)] for line, start in zip(said, lines, strict=True)] == lines


def test_a_dry_run_asks_each_once(replicas: Replicas, capsys: pytest.CaptureFixture[str]) -> None:
    replicas.say(A, KNOWN)
    replicas.say(B, GONE)
    run(B, is_dry=True, as_json=False)
    assert replicas.asked == [(B, True), (A, True)]
    assert capsys.readouterr().out.endswith("nothing is done\n")
