"""The site builds without a warning, and the tutorial does what it says."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tests.e2e.test_commands import serving
from tests.programs import ended

ROOT: Final = Path(__file__).parents[2]
BIN: Final = Path(sys.executable).parent
TUTORIAL: Final = (ROOT / "docs" / "tutorial.md").read_text("utf-8")


def test_the_site_builds_and_has_every_page(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "docs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    done = ended(sys.executable, "-m", "mkdocs", "build", "--strict", cwd=tmp_path)
    assert "not included in the" not in done.stderr
    site = tmp_path / "build" / "site"
    for page in (ROOT / "docs").rglob("*.md"):
        path = page.relative_to(ROOT / "docs").with_suffix("")
        folder = path.parent if path.name in ("index", "README") else path
        assert (site / folder / "index.html").exists(), page
    assert not list(site.rglob("*.py"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL, re.M | re.S)


def test_the_tutorial_ends_with_a_ranking_that_has_learned(tmp_path: Path) -> None:
    [settings] = blocks("yaml")
    check, *rest = blocks("sh")
    (tmp_path / "freshrank.yaml").write_text(settings)
    environ = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}

    def run(block: str) -> str:
        return ended("bash", "-euo", "pipefail", "-c", block, cwd=tmp_path, env=environ).stdout

    run(check)
    assert blocks("console") == ["freshrank serve\n"]
    with serving(tmp_path) as (base, _):  # on a free port: 8000 may be taken
        shown = [
            run(
                block.replace("http://127.0.0.1:8000", base)
                .replace("freshrank rank", f"freshrank rank --url {base}")
                .replace("freshrank top", f"freshrank top --url {base}")
            )
            for block in rest
        ]
    assert '"accepted":2' in shown[0]
    assert '"untrained"' in shown[1]
    assert '"state":"servable"' in shown[3]
    ranking = [line.split()[1] for line in shown[4].splitlines()[1:3]]
    assert ranking == ["dune", "emma"]
    assert "books at" in shown[4]
