"""How much memory this process may have, whatever the machine has free."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from freshrank.errors import ConfigError
from freshrank.features import FeatureEncoder
from freshrank.findings import Finding
from freshrank.settings import Settings

PROC: Final = Path("/proc/self")
CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
# A control group without a limit tells the highest number of pages.
_NO_LIMIT: Final = 1 << 60
_GIB: Final = 1 << 30


class Limit(NamedTuple):
    """One limit in force.

    Attributes:
        name: What it is.
        n_bytes: What it allows.
        n_used: What this process has of that.
    """

    name: str
    n_bytes: int
    n_used: int

    @property
    def n_left(self) -> int:
        """What is left of it."""
        return max(self.n_bytes - self.n_used, 0)

    def __str__(self) -> str:
        return f"{self.name} allows {self.n_bytes / _GIB:.2f} GiB"


def tightest(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> Limit | None:
    """The limit that leaves least; None where there is none.

    Args:
        proc: What the kernel says of this process.
        groups: Where control groups are mounted, of version 2 or 1.
    """
    return min(_limits(proc, groups), key=lambda limit: limit.n_left, default=None)


def budget(settings: Settings) -> tuple[int, str] | None:
    """What the trainer's tables may take and which setting says so; None where nothing does."""
    if settings.store.max_bytes is not None:
        return settings.store.max_bytes, "store.max_bytes"
    own = [spec.max_bytes for spec in FeatureEncoder(settings).tables]
    return (sum(own), "max_bytes of the features") if own and all(own) else None


def check_budget(settings: Settings) -> None:
    """Refuse tables that the kernel would end the process for, before anything is learned.

    Raises:
        ConfigError: they may take more than what is left.
    """
    limit, told = tightest(), budget(settings)
    if limit is not None and told is not None and told[0] > limit.n_left:
        n_bytes, setting = told
        raise ConfigError(
            f"{setting} lets the tables have {n_bytes} bytes ({n_bytes / _GIB:.2f} GiB), and "
            f"{limit}, of which {limit.n_used / _GIB:.2f} are taken before there are any: lower it "
            f"to {limit.n_left} bytes or less, or raise the limit"
        )


def finding(settings: Settings) -> Finding:
    """The tables' budget fits what this shell's processes may have; for `freshrank doctor`."""
    name, limit, told = "memory", tightest(), budget(settings)
    if limit is None:
        return Finding(name, True, "no limit but the machine's")
    if told is None:
        text = (
            f"{limit}; store.max_bytes is not set, so they grow until the kernel ends the process"
        )
        return Finding(name, True, text)
    n_bytes, setting = told
    text = f"{limit}, {setting} is {n_bytes / _GIB:.2f} GiB"
    mend = "lower store.max_bytes, or raise the limit: a program needs memory beside its tables"
    return Finding(name, n_bytes < limit.n_bytes, text, mend)


def _limits(proc: Path, groups: Path) -> Iterator[Limit]:
    try:
        address_space, resident = map(int, (proc / "statm").read_text("ascii").split()[:2])
        lines = (proc / "cgroup").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    page = os.sysconf("SC_PAGE_SIZE")
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield Limit("the limit of address space (ulimit -v)", soft, address_space * page)
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            place, file = groups, "memory.max"
        elif "memory" in controllers.split(","):
            place, file = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A container sees its own group at the mount and may be told a path of outside.
        own = PurePosixPath(path.lstrip("/"))
        for group in {place / own, *(place / parent for parent in own.parents), place}:
            n_bytes = _number(group / file)
            if n_bytes is not None:
                yield Limit(f"the memory limit of control group {group}", n_bytes, resident * page)


def _number(path: Path) -> int | None:
    """The limit in a file; None where it says none, or is not there."""
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None
