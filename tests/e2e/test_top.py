"""`freshrank top` beside a running demo: once for a pipe, and live on a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from tests.programs import FRESHRANK, ended

DEADLINE_S = 60.0
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def once(*arguments: str) -> str:
    return ended(FRESHRANK, "top", *arguments).stdout


def test_a_pipe_gets_the_figures_once(demo: str) -> None:
    stats = json.loads(once("--url", demo, "--json"))
    assert set(stats["lag"]) == {"impressions", "actions", "examples"}
    for option in ((), ("--once",)):
        text = once("--url", demo, *option)
        assert "\x1b" not in text
        assert f"demo at {demo}, up " in text
        words = [line.split()[0] for line in text.splitlines() if line]
        assert words[1:10] == [
            *("version", "freshness", "quality", "events", "learning"),
            *("lag", "refused", "degraded", "slot"),
        ]
        assert [table["name"] for table in stats["tables"]] == words[10:]
        assert "AUC 0." in text
        assert "AUC -" not in text


def until(terminal: int, text: str, shown: str = "") -> str:
    """What the terminal shows, once it has shown this."""
    deadline_s = time.monotonic() + DEADLINE_S
    while text not in shown:
        assert time.monotonic() < deadline_s, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65_536).decode()
    return shown


@pytest.mark.parametrize("leave", ["q", "Ctrl-C"])
def test_a_terminal_is_renewed_and_given_back(demo: str, leave: str) -> None:
    ours, theirs = pty.openpty()
    command = [FRESHRANK, "top", "--url", demo]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        shown = until(ours, "q leaves")
        assert shown.startswith(ENTER)
        assert "freshness" in shown
        until(ours, "q leaves")  # of the next second
        if leave == "q":
            os.write(ours, b"xq")
        else:
            process.send_signal(signal.SIGINT)
        assert LEAVE in until(ours, LEAVE)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_nobody_there_is_said() -> None:
    command = [FRESHRANK, "top", "--once", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "no answer from http://127.0.0.1:9" in done.stderr
