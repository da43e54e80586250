"""The frame of the benchmarks; what they measure is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import FOLDER, main
from benchmarks.report import Row, as_markdown, as_text, row

GOOD = """
from benchmarks import report

def run():
    '''Two figures.'''
    return [
        report.row("fast", 2.0, "times", 1.5),
        report.row("slow", 9, "ms", 3, is_maximum=True),
        report.row("seen", 1, "rows"),
    ]

if __name__ == "__main__":
    report.main(run)
"""


def test_goal_is_a_least_value_or_a_largest_one() -> None:
    assert [row("a", value, "ms", 2)["met"] for value in (1.9, 2, 2.1)] == [False, True, True]
    most = [row("a", value, "ms", 2, is_maximum=True)["met"] for value in (1.9, 2, 2.1)]
    assert most == [True, True, False]
    assert row("a", 1, "ms")["met"] is None


def test_goal_missed_by_a_hair_is_missed_though_the_value_is_rounded() -> None:
    assert row("a", 1.9999999, "ms", 2) == Row(name="a", value=2.0, unit="ms", goal=2, met=False)


def test_columns_are_aligned_and_lines_without_goal_end_early() -> None:
    text = as_text([row("short", 1234.5, "ms", 2), row("much_longer", 0.25, "times")])
    assert text.splitlines() == [
        "short        1,234  ms     goal 2  met yes",
        "much_longer   0.25  times",
    ]
    assert as_markdown([row("a", 3, "ms", 4)]).splitlines()[2:] == ["| a | 3 | ms | 4 | no |"]


def _folder(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "some_benchmarks"
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content, encoding="utf-8")
    return folder


def test_benchmark_prints_json_or_text(tmp_path: Path) -> None:
    path = _folder(tmp_path, good=GOOD) / "good.py"

    def printed(*arguments: str) -> str:
        command = [sys.executable, str(path), *arguments]
        environment = {"PYTHONPATH": str(FOLDER.parent)}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert [(one["name"], one["met"]) for one in json.loads(printed("--json"))] == [
        ("fast", True),
        ("slow", False),
        ("seen", None),
    ]
    assert len(printed().splitlines()) == 3


def test_benchmark_takes_options_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*, times: int) -> list[Row]:
        return [row("seen", times, "rows")]

    monkeypatch.setattr(sys, "argv", ["seen", "--times", "3", "--json"])
    report.main(run, lambda parser: parser.add_argument("--times", type=int))
    assert [one["value"] for one in json.loads(capsys.readouterr().out)] == [3]


def test_results_hold_every_benchmark_and_a_crash_makes_the_run_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    folder = _folder(tmp_path, good=GOOD)
    assert main(folder) == 0  # a goal that is not met is no failure
    (folder / "bad.py").write_text("raise SystemExit(3)", encoding="utf-8")
    assert main(folder) == 1
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "## bad\n\nIt crashed with exit code 3.\n\n## good\n" in text
    assert "| slow | 9 | ms | 3 | no |" in text
    assert "torch" in text
