"""Who may know whom: the import contracts hold, can fail, and cover every module."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from tests.programs import ended

ROOT = Path(__file__).parents[2]
PACKAGES = ("embedding_store", "freshrank", "service", "trainer")


# An editable install finds our packages before any path does: without its finder a copy is looked
# at, not the checkout.
LINT = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if one.__module__.startswith("_frozen_importlib")]
from importlinter.cli import lint_imports_command as lint
lint()
"""


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def modules(root: Path) -> set[str]:
    """Module names of every Python file of our packages."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        python_only = shutil.ignore_patterns("native", "ui", "__pycache__", "*.so")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=python_only)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "5 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("service/scorer.py", "import trainer.loop", "one-way layers"),
        ("trainer/loop.py", "import service.scorer", "one-way layers"),
        ("freshrank/features.py", "from freshrank import embedded", "one-way layers"),
        ("freshrank/transport/base.py", "from service import scorer", "one-way layers"),
        ("embedding_store/__init__.py", "import freshrank.clock", "the store knows"),
        ("embedding_store/__init__.py", "import torch", "the store knows"),
        ("service/scorer.py", "import torch", "serving and joining start without torch"),
        ("trainer/joiner/joiner.py", "import trainer.learner", "serving and joining start"),
        ("freshrank/metrics.py", "import torch", "serving and joining start without torch"),
        ("freshrank/settings.py", "import fastapi", "what both sides share knows"),
        ("service/scorer.py", "import service.app", "no cycles"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    copy: Path, module: str, statement: str, contract: str
) -> None:
    path = copy / module
    path.write_text(f"{path.read_text('utf-8')}\n\n{statement}\n", "utf-8")
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert [line for line in broken if line.startswith(contract)], done.stdout


def test_every_module_is_looked_at(graph: grimp.ImportGraph) -> None:
    ours = {name for name in graph.modules if name.partition(".")[0] in PACKAGES}
    # What has no Python file: the compiled core.
    assert ours - {"embedding_store._native"} == modules(ROOT)


def test_every_module_of_freshrank_lies_in_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [one["layers"] for one in contracts["contracts"] if one["type"] == "layers"]
    placed = [
        name for layer in layers for name in layer.replace("|", ":").replace(" ", "").split(":")
    ]
    assert len(placed) == len(set(placed))
    parts = {".".join(name.split(".")[:2]) for name in modules(ROOT)}
    ours = {part for part in parts if part.startswith("freshrank.")}
    assert ours == {name for name in placed if name.startswith("freshrank.")}


def test_the_store_needs_numpy_only(graph: grimp.ImportGraph) -> None:
    store = [name for name in graph.modules if name.partition(".")[0] == "embedding_store"]
    imported = {
        found.partition(".")[0]
        for name in store
        for found in graph.find_modules_directly_imported_by(name)
    }
    others = imported - set(sys.stdlib_module_names) - {"embedding_store"}
    assert others == {"numpy", "pyarrow"}
    # The extra `io`, which loads when a file is read or written.
    assert graph.find_modules_that_directly_import("pyarrow") & set(store) == {"embedding_store.io"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("service.app", ("torch", "onnx", "onnxscript", "kafka", "pyarrow", "trainer")),
        ("trainer.joiner", ("torch", "onnx", "onnxscript", "kafka", "onnxruntime", "fastapi")),
        ("embedding_store.io", ("torch", "pyarrow", "freshrank", "service", "trainer", "pydantic")),
    ],
)
def test_importing_loads_nothing_forbidden(module: str, absent: tuple[str, ...]) -> None:
    # Lint sees imports as they are written; this sees what really loads.
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = ended(sys.executable, "-c", code, cwd=ROOT).stdout.split()
    assert module in loaded
    assert [name for name in absent if name in loaded] == []


def test_only_one_module_loads_onnxruntime() -> None:
    """It reports home unless told not to before its first import."""
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("freshrank", "service", "trainer", "embedding_store")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(import|from) onnxruntime\b", path.read_text(), re.MULTILINE)
    ]
    assert found == ["freshrank/onnx_session.py"]


def test_onnxruntime_keeps_no_session_id_for_its_vendor(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    subprocess.run(
        [sys.executable, "-c", "import freshrank.onnx_session"],
        env={**environ, "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
