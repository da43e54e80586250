"""The store needs numpy only, and stands beside any torch."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.programs import ended
from tests.proofs import record, scale

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("alone.py")
# The newest, and one of a year before, each with the CUDA libraries it will not load without.
TORCHES = ("", "2.8.0", "2.15.0")


def run(*command: str | Path) -> str:
    return ended(*command, timeout_s=3_600.0).stdout


def test_importing_and_using_the_store_imports_numpy_only() -> None:
    assert "numpy" in run(sys.executable, SCRIPT)


@pytest.mark.skipif(scale("wheel", 0) == 0, reason="asks a package registry: make prove")
@pytest.mark.timeout(3600)
def test_the_wheel_imports_beside_two_releases_of_torch_and_none(tmp_path: Path) -> None:
    build = ("-C", f"build-dir={tmp_path / 'build'}")  # no one else's
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *build, "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    for torch in TORCHES:
        said = beside(torch, wheel, tmp_path / f"torch-{torch}")
        assert not torch or f"beside torch {torch}" in said
    record(
        "the wheel imports and trains in torch's memory beside two releases of torch, and where "
        "there is numpy only",
        wheel_kib=wheel.stat().st_size >> 10,
        torch=", ".join(TORCHES[1:]),
    )


def beside(torch: str, wheel: Path, folder: Path) -> str:
    """What the script prints in an environment of its own."""
    run(sys.executable, "-m", "venv", folder)
    pip = folder / "bin" / "pip"
    run(pip, "install", "-q", "numpy")
    run(pip, "install", "-q", "--no-deps", wheel)
    if torch:
        run(pip, "install", "-q", "--no-cache-dir", f"torch=={torch}")
    try:
        return run(folder / "bin" / "python", SCRIPT, *(["--torch"] if torch else []))
    finally:
        shutil.rmtree(folder)  # 5 GB
