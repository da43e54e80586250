"""C that stands between one process and the machine: compiled, and preloaded into it."""

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(name: str, scratch: Path) -> str:
    """The library that `name`.c beside this file makes; `LD_PRELOAD` takes it.

    Args:
        name: Without its suffix.
        scratch: Where it goes.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip(f"no C compiler for {name}.c")
    library = scratch / f"{name}.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, *options, "-o", library, source, "-ldl"], check=True)
    return str(library)
