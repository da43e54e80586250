"""Builds the core's own tests under sanitizers, without Python, and runs them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "embedding_store" / "native"
DEADLINE_S = 160


def missing_tool() -> str | None:
    """The first tool the build needs and this machine lacks."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    return next((tool for tool in ("cmake", "ninja", compiler) if not shutil.which(tool)), None)


def build_and_run(build: Path, preset: str, test: str) -> str:
    environment = os.environ | {
        # A forged length may ask for terabytes: that must be an error, not the end of the test.
        "ASAN_OPTIONS": "allocator_may_return_null=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    for command in (
        ["cmake", "--preset", preset, "-B", str(build)],
        ["cmake", "--build", str(build), "--target", test, "--parallel", "2"],
        [str(build / test)],
    ):
        done = subprocess.run(
            command, cwd=NATIVE, env=environment, capture_output=True, text=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.mark.skipif(missing_tool() is not None, reason=f"needs {missing_tool()} on the path")
@pytest.mark.parametrize(
    ("preset", "test", "printed"),
    [
        ("asan", "core_tests", "core tests passed"),
        ("asan", "index_tests", "index tests passed"),
        ("asan", "budget_tests", "budget tests passed"),
        ("asan", "serving_tests", "serving tests passed"),
        ("asan", "snapshot_tests", "snapshot tests passed"),
        ("tsan", "thread_tests", "thread tests passed"),
    ],
)
def test_core_is_clean_under_sanitizers(
    tmp_path: Path, preset: str, test: str, printed: str
) -> None:
    assert build_and_run(tmp_path / "build", preset, test).strip() == printed
