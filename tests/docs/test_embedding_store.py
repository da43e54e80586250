"""The store's pages: their blocks run, and no public name is missing."""

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch

import embedding_store
from embedding_store import Budget, Optimizer, ServingTable, Snapshot, Table
from freshrank.config import loads
from freshrank.features import FeatureEncoder
from trainer.table_settings import create_budgets, create_tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "embedding_store.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def run(text: str, directory: Path) -> dict[str, Any]:
    script = directory / "script.py"
    script.write_text(text)
    return run_path(str(script))


def test_the_loop_of_the_readme_learns_and_its_replica_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    [block] = [one for one in blocks(README, "python") if "embedding_store" in one]
    found = run(block, tmp_path)
    assert found["loss"].item() < 0.55  # 0.69 is a coin's
    table, replica = found["table"], found["replica"]
    assert len(table) == len(replica) == 2_000
    keys = table.keys()
    np.testing.assert_allclose(
        replica.lookup(keys)[0], table.lookup(keys), rtol=2**-11, atol=2**-25
    )
    assert (tmp_path / "table.bin").read_bytes() == table.snapshot()
    assert re.fullmatch(r"loss 0\.\d+, 2000 rows, \d+ MiB\n", capsys.readouterr().out)


def test_the_blocks_of_the_page_run_in_order(tmp_path: Path) -> None:
    python = blocks(PAGE, "python")
    assert len(python) >= 7
    assert len(run("\n".join(python), tmp_path)["again"]) == 2


def test_the_settings_of_the_page_make_tables() -> None:
    [block] = blocks(PAGE, "yaml")
    settings = loads(
        block + "tasks: [{name: click, event: click}]\n", name="embedding_store.md", environ={}
    )
    encoder = FeatureEncoder(settings)
    budgets = create_budgets(settings, encoder)
    table = create_tables(settings, encoder, budgets)["item_id"]
    assert budgets["item_id"].max_bytes == 4 << 30
    assert (table.threads, table.optimizer.kind, table.pending_bytes) == (2, "adam", 256 << 20)


@pytest.mark.parametrize("of", [Table, ServingTable, Budget, Snapshot, Optimizer, embedding_store])
def test_every_public_name_is_on_the_page(of: Any) -> None:
    names = getattr(of, "__all__", None) or [name for name in vars(of) if name[0] != "_"]
    names = [name for name in names if name != "kind"]
    assert len(names) > 1
    missing = [name for name in names if not re.search(rf"\b{name}\b", PAGE)]
    assert missing == []


def test_every_statistic_is_on_the_page() -> None:
    table = Table(dim=1, optimizer=Optimizer("sgd", lr=1.0))
    section = PAGE.split("\n## What a table knows\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert set(table.statistics()) | set(ServingTable(width=1).statistics()) <= named
    assert set(table.inspect(1)) >= {"state", "count", "frequency"}


def test_the_two_towers_learn_and_their_service_follows(tmp_path: Path) -> None:
    script = ROOT / "examples" / "two_towers.py"
    done = subprocess.run(
        [sys.executable, str(script), "--batches", "150", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    figures = [float(one) for one in re.findall(r"auc ([\d.]+)", done.stdout)]
    assert len(figures) == 3
    assert figures[-1] > 0.62  # 0.5 is chance
    assert all(float(one) < 0.1 for one in re.findall(r"int8_error ([\d.e-]+)", done.stdout))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "item.table",
        "tag.table",
        "user.table",
    ]
