"""Which limits of memory are found, and what they refuse."""

import resource
from pathlib import Path
from typing import Any

import pytest

from freshrank import memory
from freshrank.errors import ConfigError
from freshrank.memory import Limit, check_budget, finding, tightest
from freshrank.settings import Settings

PAGE = resource.getpagesize()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    path = tmp_path / "proc"
    path.mkdir()
    (path / "statm").write_text("900 100 50 1 0 80 0\n")
    return path


def limit_of(groups: Path, path: str, text: str) -> None:
    (groups / path).parent.mkdir(parents=True, exist_ok=True)
    (groups / path).write_text(f"{text}\n")


def test_the_tightest_of_a_control_group_and_those_around_it_counts(
    tmp_path: Path, proc: Path
) -> None:
    (proc / "cgroup").write_text("0::/shop/ranker\n")
    limit_of(tmp_path, "shop/ranker/memory.max", "max")
    assert tightest(proc, tmp_path) is None
    limit_of(tmp_path, "shop/memory.max", str(1_000 * PAGE))
    limit_of(tmp_path, "memory.max", str(2_000 * PAGE))
    limit = tightest(proc, tmp_path)
    assert limit is not None
    assert (limit.n_bytes, limit.n_used, limit.n_left) == (1_000 * PAGE, 100 * PAGE, 900 * PAGE)
    assert str(tmp_path / "shop") in limit.name


def test_version_1_and_a_container_that_is_told_a_path_of_outside(
    tmp_path: Path, proc: Path
) -> None:
    (proc / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/outside/own\n0::/\n")
    limit_of(tmp_path, "memory/memory.limit_in_bytes", "9223372036854771712")
    assert tightest(proc, tmp_path) is None
    limit_of(tmp_path, "memory/memory.limit_in_bytes", str(500 * PAGE))
    limit = tightest(proc, tmp_path)
    assert limit is not None
    assert limit.n_left == 400 * PAGE


def test_a_system_without_either_has_no_limit(tmp_path: Path) -> None:
    assert tightest(tmp_path / "none", tmp_path) is None


def configured(**changes: Any) -> Settings:
    features = [{"name": "item_id", "type": "id", "scope": "item"}]
    tasks = [{"name": "click", "event": "click"}]
    return Settings.model_validate({"features": features, "tasks": tasks, **changes})


def test_a_budget_beyond_what_is_left_is_refused_with_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits, too_much, open_ = (
        configured(store={"max_bytes": n_bytes}) for n_bytes in (2 << 30, (2 << 30) + 1, None)
    )
    monkeypatch.setattr(memory, "tightest", lambda: Limit("ulimit -v", 3 << 30, 1 << 30))
    check_budget(fits)
    check_budget(open_)
    text = r"3\.00 GiB, of which 1\.00 are taken before there are any: lower it to 2147483648 bytes"
    with pytest.raises(ConfigError, match=text):
        check_budget(too_much)
    assert finding(fits).ok
    assert "until the kernel ends" in finding(open_).text
    monkeypatch.setattr(memory, "tightest", lambda: Limit("ulimit -v", 1 << 30, 0))
    assert not finding(fits).ok
    monkeypatch.setattr(memory, "tightest", lambda: None)
    check_budget(too_much)
    assert finding(too_much).ok
