"""`freshrank join`: what it refuses, and what it does without."""

import subprocess
import sys
from pathlib import Path

import pytest

from freshrank.commands.join import run
from freshrank.errors import ConfigError


def test_a_log_on_disk_is_joined_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "freshrank.yaml"
    path.write_text(
        "features: [{name: item_id, type: id, scope: item}]\ntasks: [{name: click, event: click}]\n"
    )
    with pytest.raises(ConfigError, match=r"log\.kind is local: .* freshrank serve, train or demo"):
        run(path, environ={})


def test_joiners_start_without_torch() -> None:
    modules = "freshrank.commands.join, trainer.joiner.share, trainer.archive"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
