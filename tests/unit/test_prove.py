"""The table of long proofs names tests there are, which take their scale and tell figures."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.prove.table import PROOFS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_names_tests_that_take_its_scale_and_record_figures(name: str) -> None:
    texts = [
        path.read_text("utf-8")
        for test in PROOFS[name].tests
        for path in [ROOT / test.partition("::")[0]]
        for path in (path.glob("test_*.py") if path.is_dir() else [path])
    ]
    assert any("record(" in text for text in texts)
    for test in PROOFS[name].tests:
        assert f"def {test.partition('::')[2] or 'test_'}" in "".join(texts)
    scaled = {f'scale("{name}"', 'scale(f"fuzz-{harness}"'}
    assert any(call in text for text in texts for call in scaled)


def test_an_unknown_proof_is_refused_with_those_there_are() -> None:
    command = [sys.executable, "-m", "tests.prove", "--only", "kils"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--only knows " + ", ".join(PROOFS) in done.stderr
