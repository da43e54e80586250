"""The store needs numpy only, and stands beside any torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import record, scale

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("alone.py")
# The newest, and one of a year before: what `import torch` needs besides is small. Their CUDA
# libraries are not, and stay where they are: nothing here runs on a GPU.
TORCHES = ("", "2.8.0", "2.15.0")


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_importing_and_using_the_store_imports_numpy_only() -> None:
    assert "numpy" in run(sys.executable, SCRIPT)


@pytest.mark.skipif(scale("wheel", 0) == 0, reason="asks a package registry: make prove")
@pytest.mark.timeout(3600)
def test_the_wheel_imports_beside_two_releases_of_torch_and_none(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "wheel", ROOT)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
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
        run(pip, "install", "-q", f"torch=={torch}")
    try:
        return run(folder / "bin" / "python", SCRIPT, *(["--torch"] if torch else []))
    finally:
        shutil.rmtree(folder)  # 5 GB
