"""The core's own programs: building them, and running them under sanitizers."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "embedding_store" / "native"
BUILD_DEADLINE_S = 600  # two minutes of one core, when others want it too
RUN_DEADLINE_S = 160
SANITIZED = os.environ | {
    # A forged length may ask for terabytes: that must be an error, not the end of the test.
    "ASAN_OPTIONS": "allocator_may_return_null=1:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@cache
def built(preset: str, folder: Path, compiler: str | None = None) -> Path:
    """Build all programs of a preset in a folder, once; skips where a tool is missing."""
    compiler = compiler or os.environ.get("CXX", "c++")
    for tool in ("cmake", "ninja", compiler.split()[0]):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool} on the path")
    environment = os.environ | {"CXX": compiler}
    run(["cmake", "--preset", preset, "-B", str(folder)], BUILD_DEADLINE_S, environment)
    run(["cmake", "--build", str(folder), "--parallel", "2"], BUILD_DEADLINE_S, environment)
    return folder


def run(
    command: list[str], deadline_s: float = RUN_DEADLINE_S, environment: dict[str, str] = SANITIZED
) -> str:
    """Run a command in the core's folder, which must succeed; what it printed."""
    done = subprocess.run(
        command, cwd=NATIVE, env=environment, capture_output=True, text=True, timeout=deadline_s,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr
