"""The loop in one process: workers that fail, and what closing saves."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freshrank import worker as workers
from freshrank.clock import ManualClock, SystemClock
from freshrank.config import loads
from freshrank.embedded import Embedded, can_learn
from freshrank.errors import ConfigError, Error, TransportError
from freshrank.logs import open_log
from freshrank.settings import Settings
from freshrank.worker import Worker

DEADLINE_S = 10.0
CONFIG = """
features:
  - {name: item_id, type: id, scope: item, dim: 4}
tasks:
  - {name: click, event: click, negative: {from: shown}}
"""


class Steps:
    """A step that raises what it is given, one after another, and then works."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.has_worked = threading.Event()

    def __call__(self, _timeout_s: float) -> int:
        if self._errors:
            raise self._errors.pop(0)
        self.has_worked.set()
        return 0


def started(step: Callable[[float], int]) -> Worker:
    worker = Worker("part", step)
    worker.start()
    return worker


def settings(directory: Path, text: str = CONFIG) -> Settings:
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(directory)}
    return loads(text, name="test.yaml", environ=environ)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "RETRY_FIRST_S", 0.001)


def test_a_transport_error_is_retried_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    step = Steps(*[TransportError("no room", code="disk-full")] * 3)
    worker = started(step)
    assert step.has_worked.wait(DEADLINE_S)
    worker.stop()
    assert worker.failure is None
    states = [record.getMessage().split()[1] for record in caplog.records]
    assert states == ["state=retrying", "state=recovered"]


def test_another_error_ends_the_worker_and_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    step = Steps(ValueError("a bug"))
    worker = started(step)
    until(lambda: worker.failure is not None)
    worker.stop()
    assert str(worker.failure) == "a bug"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_worker_that_was_never_started_can_be_stopped() -> None:
    Worker("part", Steps()).stop()


def test_a_worker_that_does_not_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CLOSE_TIMEOUT_S", 0.01)
    leave = threading.Event()
    worker = started(lambda _: leave.wait(DEADLINE_S) or 0)
    with pytest.raises(Error, match="did not end"):
        worker.stop()
    assert isinstance(worker.failure, Error)
    leave.set()


def test_a_failed_trainer_is_not_saved_but_all_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Embedded(settings(tmp_path), learn=True)
    assert loop.trainer is not None
    closed: list[str] = []
    monkeypatch.setattr(loop.trainer, "close", lambda: closed.append("trainer"))
    monkeypatch.setattr(loop._workers["trainer"], "_step", Steps(ValueError("half a batch")))
    loop.start()
    until(lambda: bool(loop.failures))
    loop.close()
    assert closed == []
    open_log(settings(tmp_path), SystemClock()).close()  # its lock is free again


def test_what_cannot_close_keeps_nothing_else_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Embedded(settings(tmp_path), learn=True)

    def full() -> None:
        raise TransportError("no room", code="disk-full")

    monkeypatch.setattr(loop.trainer, "close", full)
    loop.start()
    with pytest.raises(TransportError, match="no room"):
        loop.close()
    open_log(settings(tmp_path), SystemClock()).close()


def test_a_loop_that_cannot_be_built_leaves_nothing_open(tmp_path: Path) -> None:
    text = CONFIG + "log: {partitions: 2}\ntrainer: {batching: fixed}\n"
    with pytest.raises(ConfigError, match="partitions"):
        Embedded(settings(tmp_path, text), learn=True)
    open_log(settings(tmp_path, text), SystemClock()).close()


def test_half_an_extra_does_not_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freshrank.doctor.is_installed", lambda name: name != "onnxscript")
    assert not can_learn()
    with pytest.raises(ConfigError, match=r"onnxscript.*--no-learn"):
        Embedded(settings(tmp_path), learn=True)


@pytest.mark.parametrize("dead", ["joiner-0", "trainer"])
def test_answers_say_that_a_part_of_the_loop_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    clock = ManualClock(now_ms=1_800_000_000_000)
    loop = Embedded(settings(tmp_path), learn=True, clock=clock)
    assert loop.trainer is not None
    loop.trainer.start()
    monkeypatch.setattr(loop._workers[dead], "_step", Steps(ValueError("a bug")))
    loop.start()
    loop.service.start()
    until(lambda: bool(loop.failures) and loop.service.replica.model is not None)
    event = {"kind": "impression", "request_id": "r1", "items": [{"item": "i1"}]}
    assert loop.service.ingest.submit([event]).accepted == 1
    clock.advance(ms=60_000)
    model = loop.service.replica.model
    assert model is not None
    assert "trainer_away" in loop.service.health.degraded(model.current)
    loop.service.stop()
    loop.close()


def until(is_done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_done():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
