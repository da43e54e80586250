"""The command line: help, exit codes, and that help loads nothing heavy."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from freshrank import __version__
from freshrank.cli import app, exit_code, main
from freshrank.config import demo_text
from freshrank.errors import ConfigError, DataError, Error, SchemaError, TransportError

# Not pydantic: typer itself reads options with it.
HEAVY = (
    *("embedding_store", "fastapi", "numpy", "onnxruntime", "pyarrow", "ruamel"),
    *("service", "torch", "trainer", "uvicorn"),
)
RUN = "import sys; from freshrank.cli import main; sys.argv[0] = 'freshrank'; main()"
RUN_AND_LIST_MODULES = f"""
import atexit, sys
atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))
{RUN}
"""


def freshrank(
    *arguments: str, cwd: Path, code: str = RUN, **environ: str
) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "COLUMNS": "100", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command with its groups: (), ("config",), ("config", "check"), …"""
    command = command or typer.main.get_command(app)
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_loads_nothing_heavy(path: tuple[str, ...], tmp_path: Path) -> None:
    done = freshrank(*path, "--help", cwd=tmp_path, code=RUN_AND_LIST_MODULES)
    assert done.returncode == 0
    assert " ".join(("Usage: freshrank", *path)) in done.stdout
    modules = done.stderr.split()
    assert "typer" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_help_is_quick(tmp_path: Path) -> None:
    began_s = time.monotonic()
    freshrank("--help", cwd=tmp_path)
    assert time.monotonic() - began_s < 3.0  # 0.15 s on an idle machine


def test_no_arguments_print_help(tmp_path: Path) -> None:
    assert "Usage: freshrank" in freshrank(cwd=tmp_path).stdout


def test_version(tmp_path: Path) -> None:
    assert freshrank("--version", cwd=tmp_path).stdout == f"freshrank {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (TransportError("x"), 3),
        (SchemaError("x"), 1),
        (DataError("x"), 1),
        (Error("x"), 1),
    ],
)
def test_exit_codes_tell_the_kind_of_error(error: Error, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_keeps_its_lines_and_commands_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise DataError("unknown item 'a\x1b[2J\x9b2J\u2028':\n  see there")

    monkeypatch.setattr("freshrank.cli.app", fails)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = "unknown item 'a\\u001b[2J\\u009b2J\\u2028':\n  see there\n"
    assert capsys.readouterr().err == said


def test_a_wrong_option_is_exit_code_2(tmp_path: Path) -> None:
    assert freshrank("config", "check", "--colour", cwd=tmp_path).returncode == 2


def test_config_check_accepts_what_config_show_demo_prints(tmp_path: Path) -> None:
    demo = freshrank("config", "show", "--demo", cwd=tmp_path).stdout
    assert demo == demo_text()
    (tmp_path / "freshrank.yaml").write_text(demo, "utf-8")
    done = freshrank("config", "check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "freshrank.yaml: 9 feature(s), 2 task(s): ok\n"
    as_json = freshrank("config", "check", "--json", cwd=tmp_path)
    assert json.loads(as_json.stdout) == {"ok": True, "mistakes": []}


def test_config_check_lists_all_mistakes_and_exits_2(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(demo_text().replace("port: 8000", "port: eight").replace("sync:", "synk:"))
    done = freshrank("config", "check", cwd=tmp_path, FRESHRANK_CONFIG="other.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 2
    assert "service.port: expected an integer, got 'eight'" in errors[0]
    assert "did you mean 'sync'?" in errors[1]
    as_json = freshrank("config", "check", "-c", "other.yaml", "--json", cwd=tmp_path)
    assert as_json.returncode == 2
    mistakes = json.loads(as_json.stdout)["mistakes"]
    assert [one["path"] for one in mistakes] == ["service.port", "synk"]
    assert mistakes[0]["file"] == "other.yaml"
    assert mistakes[0]["line"] == 1 + path.read_text().splitlines().index("  port: eight")


def test_a_missing_configuration_says_how_to_begin(tmp_path: Path) -> None:
    done = freshrank("config", "check", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("freshrank.yaml: error: cannot read it: No such file")
    assert "config show --demo" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_show_prints_every_setting_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "freshrank.yaml").write_text(demo_text(), "utf-8")
    done = freshrank("config", "show", cwd=tmp_path, FRESHRANK__SYNC__SPARSE_EVERY="7s")
    assert "  sparse_every: 7s\n" in done.stdout
    assert "retention: 7d" in done.stdout
    as_json = freshrank("config", "show", "--json", cwd=tmp_path)
    assert json.loads(as_json.stdout)["sync"]["sparse_every"] == "500ms"


def test_config_schema_is_a_json_schema_of_every_section(tmp_path: Path) -> None:
    schema = json.loads(freshrank("config", "schema", cwd=tmp_path).stdout)
    assert {"features", "tasks", "sync", "join"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_a_full_disk_behind_the_output_is_said_in_a_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", RUN, "config", "show", "--demo"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "no space left: the output is incomplete\n")
