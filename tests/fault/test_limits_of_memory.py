"""Less memory than is configured is refused at the start; what the kernel ends comes back whole.

A control group is made beside that of the tests, which takes root and a mounted hierarchy.
"""

import contextlib
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from freshrank.dev.servers import free_ports
from tests.fault.serving import CONFIG, Serving, serving
from tests.integration.transport.log_checks import DEADLINE_S, eventually
from tests.programs import FRESHRANK
from tests.roles import START_TIMEOUT_S

GIB = 1 << 30
GROUPS = Path("/sys/fs/cgroup")


class ControlGroup:
    """A control group of its own, without a limit at first.

    Args:
        path: Where it is made.
        limit: Its file with the limit.
    """

    def __init__(self, path: Path, limit: str) -> None:
        self.path = path
        self._limit = path / limit

    def allow(self, n_bytes: int) -> None:
        self._limit.write_text(str(n_bytes))

    def take(self, process: "subprocess.Popen[bytes]") -> None:
        """What it allocates from now on counts here."""
        (self.path / "cgroup.procs").write_text(str(process.pid))


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    name = f"freshrank-{uuid.uuid4().hex}"
    kinds = (
        (GROUPS / name, "memory.max"),
        (GROUPS / "memory" / name, "memory.limit_in_bytes"),
    )
    for path, limit in kinds:
        with contextlib.suppress(OSError):
            path.mkdir()
            if (path / limit).exists():
                break
            path.rmdir()
    else:
        pytest.skip(f"no control group of memory can be made below {GROUPS}: it takes root")
    yield ControlGroup(path, limit)
    eventually(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def refused(path: Path, *, before: str = "") -> str:
    """What `freshrank serve` says as it refuses to start, run by a shell that did this before."""
    [port] = free_ports(1)
    serve = [str(FRESHRANK), "serve", "-c", str(path), "--port", str(port)]
    ended = subprocess.run(
        ["sh", "-ec", f'{before}\nexec "$@"', "sh", *serve],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    said: str = ended.stderr
    return said


@pytest.fixture
def greedy(tmp_path: Path) -> Path:
    """A configuration whose tables may take 16 GiB."""
    path = tmp_path / "freshrank.yaml"
    path.write_text(CONFIG.format(data=tmp_path / "data") + "store: {max_bytes: 16GiB}\n")
    return path


def test_more_than_the_control_group_allows_is_refused_at_the_start(
    greedy: Path, group: ControlGroup
) -> None:
    group.allow(2 * GIB)
    said = refused(greedy, before=f"echo $$ > {group.path}/cgroup.procs")
    assert f"control group {group.path} allows 2.00 GiB" in said
    assert "store.max_bytes lets the tables have 17179869184 bytes (16.00 GiB)" in said


def test_more_than_the_address_space_allows_is_refused_at_the_start(greedy: Path) -> None:
    # Room enough to start, and none for anything beside the tables.
    said = refused(greedy, before=f"ulimit -v {16 * GIB >> 10}")
    assert "the limit of address space (ulimit -v) allows 16.00 GiB" in said


def test_what_the_kernel_ends_for_want_of_memory_loses_nothing_that_was_acknowledged(
    tmp_path: Path, group: ControlGroup
) -> None:
    with serving(tmp_path) as one:
        group.allow(12 << 20)  # beside what it has already
        group.take(one.process)
        receipts = until_killed(one)
    with serving(tmp_path) as another:
        for receipt in receipts[-3:]:
            another.became(receipt)
        n_clicks = another.api.ask("/v1/stats").json()["accounting"]["matched"]
    # One per start, and perhaps one that nobody was told of.
    assert n_clicks - 2 - len(receipts) in (0, 1)


def until_killed(one: Serving) -> list[str]:
    """Send new items until the process is ended; the receipts of what was acknowledged."""
    receipts = []
    for n in range(5_000):
        try:
            items = [f"i{n}-{i}" for i in range(200)]
            receipts.append(one.send(*items))
        except httpx.TransportError:
            break
    assert one.process.wait(DEADLINE_S) == -signal.SIGKILL
    return receipts
