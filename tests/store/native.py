"""The core's own programs: building them, and running them under sanitizers."""

import os
import shutil
from pathlib import Path

import pytest

from tests.programs import ended

NATIVE = Path(__file__).parents[2] / "embedding_store" / "native"
BUILD_DEADLINE_S = 600  # two minutes of one core, when others want it too
RUN_DEADLINE_S = 160
SANITIZED = os.environ | {
    # A forged length may ask for terabytes: that must be an error, not the end of the test.
    "ASAN_OPTIONS": "allocator_may_return_null=1:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def built(name: str, preset: str, folder: Path, compiler: str | None = None) -> Path:
    """Build a program of a preset, in a folder for all of it; skips where a tool is missing."""
    compiler = compiler or os.environ.get("CXX", "c++")
    for tool in ("cmake", "ninja", compiler.split()[0]):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool} on the path")
    environment = os.environ | {"CXX": compiler}
    run(["cmake", "--preset", preset, "-B", str(folder)], BUILD_DEADLINE_S, environment)
    build = ["cmake", "--build", str(folder), "--target", name, "--parallel", "2"]
    run(build, BUILD_DEADLINE_S, environment)
    return folder / name


def run(
    command: list[str], deadline_s: float = RUN_DEADLINE_S, environment: dict[str, str] = SANITIZED
) -> str:
    """Run a command in the core's folder, which must succeed; what it printed."""
    done = ended(*command, timeout_s=deadline_s, cwd=NATIVE, env=environment)
    return done.stdout + done.stderr
