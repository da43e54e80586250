"""What peers run in: programs compiled, environments installed, once, under `build/peers`."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.store_peers.process import PeerMissingError

HERE: Final = Path(__file__).parent
BUILT: Final = HERE.parent.parent / "build" / "peers"
PYTHON_PEER: Final = HERE / "python_peer.py"
# The torch that FBGEMM's release table names for it; any other one breaks it when it is loaded.
FBGEMM: Final = ("fbgemm-gpu-cpu==1.9.0", "torch==2.14.*", "numpy")


def maps_program() -> Path:
    """Compile the program with libcuckoo's and absl's maps.

    Raises:
        PeerMissingError: No compiler, or Debian's libcuckoo-dev or libabsl-dev is not installed.
    """
    source, program = HERE / "maps.cpp", BUILT / "maps"
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    BUILT.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None or shutil.which("pkg-config") is None:
        raise PeerMissingError(f"{compiler} and pkg-config are needed to compile it")
    ask_absl = ["pkg-config", "--cflags", "--libs", "absl_flat_hash_map"]
    absl = _run(ask_absl, "apt-get install libabsl-dev")
    files = [str(source), "-o", str(program), *absl.split()]
    _run(
        [compiler, "-std=c++20", "-O3", "-march=native", *files],
        "apt-get install libcuckoo-dev libabsl-dev",
    )
    return program


def fbgemm_python() -> Path:
    """Install FBGEMM beside its own torch (5.5 GB and two minutes, the first time).

    Raises:
        PeerMissingError: pip could not install them.
    """
    return environment("fbgemm", FBGEMM)


def environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of an environment of its own with these packages, installed the first time.

    Raises:
        PeerMissingError: pip could not install them.
    """
    folder = BUILT / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing {' '.join(packages)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        _run([python, "-m", "pip", "install", "-q", *packages], "is the package index reachable?")
        ready.touch()
    return python


def _run(command: Sequence[str | Path], advice: str) -> str:
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise PeerMissingError(f"{command[0]} failed: {said}; {advice}")
    return ended.stdout
