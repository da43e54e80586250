"""What `freshrank rollback` says and waits for."""

import json
from typing import Any

import pytest

from freshrank.commands import replicas as commands_replicas
from freshrank.commands import rollback
from freshrank.commands.rollback import told
from freshrank.errors import DataError, TransportError
from tests.unit.answers import Answers

A, B = "http://a:8000", "http://b:8000"
OLD, NEW = ({"version": f"{epoch}-{seq}", "epoch": epoch} for epoch, seq in ((4, 9), (5, 0)))
OLDER = {"version": "3-7", "epoch": 3}
AWAY = TransportError(f"no answer from {B}: it restarts")

DAMAGED: dict[str, Any] = {"name": "kept-good"}
SOUND = DAMAGED | {"rows_learned": 50}


@pytest.mark.parametrize(
    ("snapshot", "rows", "text"),
    [
        (SOUND, 1_200, "kept-good would take back 1,200 learned rows"),
        (DAMAGED, None, "kept-good cannot be gone back to"),
        (None, None, "`freshrank snapshots list` where it runs"),
    ],
)
def test_a_dry_run_says_what_it_knows(snapshot: Any, rows: int | None, text: str) -> None:
    said = told("kept-good", {"snapshot": snapshot, "rows_taken_back": rows})
    assert said.startswith("nothing is done; ")
    assert text in said


class Replicas(Answers):
    """What each serves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.given: list[tuple[str, str]] = []
        self.refused = ""
        for module in (rollback, commands_replicas):
            monkeypatch.setattr(module, "call", self._call)

    def _call(self, base: str, path: str, body: Any = None, **_: Any) -> dict[str, Any]:
        if body is not None:
            self.given.append((base, path))
            if path == self.refused:
                raise TransportError("the log is away", code="unreachable")
            return {"from": self.next(base)}
        served = self.next(base)
        return {"models": [] if served is None else [served]}


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    return Replicas(monkeypatch)


def run(*services: str, wait_s: float = 60.0, as_json: bool = True, is_dry: bool = False) -> None:
    rollback.run(
        "kept-good",
        url=A,
        services=services,
        key=None,
        reason="",
        relearn=False,
        pause=True,
        is_dry=is_dry,
        wait_s=wait_s,
        as_json=as_json,
    )


@pytest.mark.parametrize("before", [OLD, OLDER, None])
def test_it_waits_for_the_replica_that_goes_back_last(
    replicas: Replicas, capsys: pytest.CaptureFixture[str], before: Any
) -> None:
    replicas.say(A, OLD, OLD, NEW)
    replicas.say(B, before, OLD, AWAY, None, NEW)  # one that was behind has caught up first
    run(B, A)
    told = json.loads(capsys.readouterr().out)
    assert (told["from"], told["now"]) == (OLD, NEW)
    assert told["services"] == {A: NEW, B: NEW}
    assert replicas.given == [(A, "/v1/admin/trainer/pause"), (A, "/v1/admin/rollback")]


@pytest.mark.parametrize(
    ("last", "why"), [(OLD, "4-9 of epoch 4"), (None, "nothing"), (AWAY, "restarts")]
)
def test_it_names_who_has_not_gone_back(replicas: Replicas, last: Any, why: str) -> None:
    replicas.say(A, OLD, OLD, NEW)
    replicas.say(B, OLD, last)
    with pytest.raises(TransportError, match="the command is given") as late:
        run(B, wait_s=0.0)
    assert late.value.code == "not-obeyed"
    assert f"{B} ({'no answer' if last is AWAY else why}" in str(late.value)
    assert why in str(late.value)
    assert A not in str(late.value)


@pytest.mark.parametrize("refusal", [AWAY, DataError("401 unauthorized")])
def test_nothing_is_given_while_a_replica_cannot_be_asked(
    replicas: Replicas, refusal: Exception
) -> None:
    replicas.say(A, OLD)
    replicas.say(B, refusal)
    for is_dry in (True, False):
        with pytest.raises(type(refusal), match=B):
            run(B, is_dry=is_dry)
    assert replicas.given == []


def test_a_refusal_says_that_learning_was_paused_before_it(replicas: Replicas) -> None:
    replicas.say(A, OLD)
    replicas.refused = "/v1/admin/rollback"
    with pytest.raises(TransportError, match="is away; learning stays paused until") as refused:
        run()
    assert refused.value.code == "unreachable"
    assert replicas.given == [(A, "/v1/admin/trainer/pause"), (A, "/v1/admin/rollback")]


def test_it_says_what_each_serves(replicas: Replicas, capsys: pytest.CaptureFixture[str]) -> None:
    replicas.say(A, OLD, OLD, NEW)
    replicas.say(B, None, NEW)
    run(B, as_json=False)
    first, second, last = capsys.readouterr().out.splitlines()
    text = "serving 5-0 of epoch 5, the parameters of kept-good, instead of"
    assert (first, second) == (f"{A}: {text} 4-9 of epoch 4", f"{B}: {text} nothing")
    assert last.startswith("rolled back in ")
