"""One running demo for all tests that look at it from outside."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.e2e.browsing import launched
from tests.programs import FRESHRANK

BASE = re.compile(rb"http://127\.0\.0\.1:\d+(?=/ui)")
# Full speed moves every score by itself; the demo prints its curls when that is over.
WARM_UP_S = "8"
WARM = b"curl "
# A prepared environment answers within 15 s; the rest is for two shared, busy cores.
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all pages."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a warmed-up `freshrank demo`, e.g. `http://127.0.0.1:40123`.

    It ends with the tests of this folder: its audience keeps half a core busy.
    """
    with running_demo(tmp_path_factory.mktemp("demo"), WARM_UP_S) as address:
        yield address


@contextmanager
def running_demo(directory: Path, warm_up_s: str) -> Iterator[str]:
    """Address of a demo that ends with the context, and well."""
    log = directory / "demo.log"
    command = [FRESHRANK, "demo", "--port", "0", "--seconds", warm_up_s]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield wait_for_address(process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_bytes()
        if (match := BASE.search(text)) and WARM in text:
            return match[0].decode()
        time.sleep(0.1)
    tail = log.read_text("utf-8", errors="replace")[-4_000:]
    pytest.fail(f"the demo did not get ready (exit code {process.poll()}):\n{tail}")
