"""`freshrank doctor` with planted faults: each is named, with its remedy."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer

from freshrank import doctor
from freshrank.commands.doctor import marks, run
from freshrank.config import demo_text, loads
from freshrank.dev.servers import free_ports
from freshrank.doctor_servers import event_time
from freshrank.findings import Finding
from trainer.joiner.state import State

LINES = (
    *("python", "packages", "native core", "onnxruntime", "torch", "service", "trainer"),
    *("configuration", "data directory", "port", "clock", "memory", "checkpoint", "event time"),
)

MINIMAL = {
    "features": [{"name": "item_id", "type": "id", "scope": "item"}],
    "tasks": [{"name": "click", "event": "click"}],
}


def without(*missing: str) -> Callable[[str], bool]:
    return lambda module: module not in missing


def assert_bad(finding: Finding, text: str, mend: str) -> None:
    assert not finding.ok
    assert text in finding.text
    assert mend in finding.mend


def test_a_sound_machine_passes_every_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "freshrank.yaml"
    text = demo_text().replace("port: 8000", f"port: {free_ports(1)[0]}")
    path.write_text(text.replace("data_dir: data", f"data_dir: {tmp_path}/data"), "utf-8")
    run(path, environ={}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(LINES)
    for line, name in zip(lines, LINES, strict=True):
        assert line.startswith(f"✔ {name}"), line
    assert not (tmp_path / "data").exists()


def test_a_fault_is_marked_mended_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "freshrank.yaml"
    path.write_text("version: 1\n", "utf-8")
    with pytest.raises(typer.Exit) as caught:
        run(path, environ={}, as_json=False)
    assert caught.value.exit_code == 1
    shown = capsys.readouterr().out
    assert f"✘ configuration: {path}:1:1: error: features: is required" in shown
    assert "    mend: correct what is listed" in shown
    with pytest.raises(typer.Exit):
        run(path, environ={}, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    bad = [check["name"] for check in report["checks"] if not check["ok"]]
    assert "configuration" in bad


def test_signs_are_ascii_where_the_terminal_is() -> None:
    assert marks("utf-8") == ("✔", "✘")
    assert marks("ascii") == ("ok  ", "FAIL")


def test_old_python() -> None:
    assert_bad(doctor.python((3, 10, 2)), "3.10.2", "3.11")
    assert doctor.python((3, 14, 0)).ok


def test_a_package_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=1.26", "torch>=2.5; extra == 'train'", "absent>=1; extra == 'train'"]
    assert doctor.packages(needs).ok
    metadata = tmp_path / "numpy-1.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert_bad(doctor.packages(needs), "numpy has version 1.9", "pip install 'numpy>=1.26'")
    assert_bad(doctor.packages(["absent>=1"]), "absent is missing", "pip install 'absent>=1'")


def test_a_native_core_that_does_not_load() -> None:
    def broken(name: str) -> object:
        raise ImportError(f"No module named '{name}._native'")

    assert_bad(doctor.native_core(broken), "embedding_store._native", "compiler")


def test_a_missing_onnxruntime() -> None:
    assert_bad(doctor.onnxruntime(without("onnxruntime")), "missing", "pip install")


def test_torch_left_out_is_ranking_only_and_half_an_extra_is_a_fault() -> None:
    ranking = doctor.learning(without(*doctor.TRAIN_MODULES))
    assert ranking.ok
    assert "ranking only; to learn: pip install 'freshrank[train]'" in ranking.text
    assert_bad(doctor.learning(without("onnxscript")), "not onnxscript", "freshrank[train]")


def test_two_owners_of_a_package(tmp_path: Path) -> None:
    ours = Path(doctor.__file__).parent.parent
    assert doctor.owner("service", [], ours).ok
    assert_bad(doctor.owner("service", ["service-x"], ours), "service-x", "uninstall service-x")
    assert_bad(doctor.owner("trainer", [], tmp_path), str(tmp_path), "console script")
    assert_bad(doctor.owner("trainer", [], None), "None", "console script")


def test_a_second_owner_that_was_installed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "service_x-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: service-x\nVersion: 1.0\n")
    (other / "top_level.txt").write_text("service\n")
    monkeypatch.syspath_prepend(tmp_path)
    findings = {one.name: one for one in doctor.examine(Path("absent.yaml"), environ={})}
    assert_bad(findings["service"], "also installed by service-x", "pip uninstall service-x")


def test_a_package_that_stands_before_ours_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a name of its own: where freshrank is installed for editing ours come before any path."""
    (tmp_path / "standing_before").mkdir()
    (tmp_path / "standing_before" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found_in = doctor.home("standing_before")
    assert found_in == tmp_path
    shadowed = doctor.owner("standing_before", doctor.owners("standing_before"), found_in)
    assert_bad(shadowed, f"found in {tmp_path}", "console script")


def test_the_owners_of_an_installed_package_are_found() -> None:
    assert doctor.owners("numpy") == ["numpy"]
    assert doctor.owners("no_such_package") == []
    assert doctor.home("no_such_package") is None
    assert doctor.home("freshrank") == Path(doctor.__file__).parent.parent


def test_a_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")

    def full(_directory: Path) -> int:
        return 5 << 20

    def gone(_directory: Path) -> int:
        raise OSError(5, "Input/output error")

    assert_bad(doctor.data_directory(file / "data", full), "not a directory", "service.data_dir")
    assert_bad(doctor.data_directory(tmp_path / "a/b", full), "0.0 GiB free", "free 1 GiB")
    assert_bad(doctor.data_directory(tmp_path, gone), "Input/output error", "service.data_dir")
    assert doctor.data_directory(tmp_path / "a" / "b", lambda _: 1 << 40).ok
    assert list(tmp_path.iterdir()) == [file]


def test_a_taken_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        number = other.getsockname()[1]
        assert_bad(doctor.port("127.0.0.1", number), "in use", "FRESHRANK__SERVICE__PORT")
    assert doctor.port("127.0.0.1", number).ok


@contextlib.contextmanager
def answering(content: bytes, status: int = 200) -> Iterator[int]:
    """A port where something answers every GET of the version."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v1/version" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"version": "0.1", "config_hash": "0"}', 200),
        (b'{"type": "/problems/unauthorized", "status": 401}', 401),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - the doctor's argument
def test_freshrank_on_its_own_port_is_no_fault(content: bytes, status: int, host: str) -> None:
    with answering(content, status) as number:
        assert doctor.port(host, number) == Finding(
            f"port {number}", True, "freshrank answers here"
        )


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"3", b'{"version": "2"}', b""])
def test_another_server_on_the_port_is_a_fault(content: bytes) -> None:
    with answering(content) as number:
        assert_bad(doctor.port("127.0.0.1", number), "in use", "FRESHRANK__SERVICE__PORT")


def test_another_freshrank_on_the_port_is_said_to_be_one() -> None:
    with answering(b'{"version": "0.2.0", "config_hash": "ab12"}') as number:
        assert doctor.port("127.0.0.1", number, "ab12").ok
        finding = doctor.port("127.0.0.1", number, "cd34")
    told = "another freshrank answers here: 0.2.0 with configuration ab12, not cd34"
    assert_bad(finding, told, "FRESHRANK__SERVICE__PORT")


def test_a_taken_port_of_metrics() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        number = other.getsockname()[1]
        finding = doctor.metrics_port("127.0.0.1", number)
    assert_bad(finding, "in use", "FRESHRANK__METRICS__PORT")
    assert doctor.metrics_port("127.0.0.1", number).ok


def test_a_host_that_is_not_ours() -> None:
    assert_bad(doctor.port("192.0.2.1", 0), "cannot listen on 192.0.2.1", "")


def test_a_clock_that_is_off() -> None:
    installed_s = 1_800_000_000.0
    assert doctor.clock(installed_s + 5, installed_s).ok
    assert_bad(doctor.clock(0.0, installed_s), "1970-01-01", "NTP")
    assert_bad(doctor.clock(5e9, installed_s), "2128", "NTP")


def test_without_a_file_the_demo_is_examined_and_overrides_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("freshrank.yaml")
    finding, settings = doctor.configuration(path, {"FRESHRANK__SERVICE__PORT": "8123"})
    assert finding.ok
    assert settings is not None
    assert settings.service.port == 8123
    missing, none = doctor.configuration(Path("other.yaml"), {})
    assert_bad(missing, "No such file", "correct")
    assert none is None


def test_a_clock_far_behind_what_was_joined(tmp_path: Path) -> None:
    join = {"window": "10s", "max_out_of_order": "1s", "allowed_lateness": "20s"}
    text = json.dumps({**MINIMAL, "join": join, "service": {"data_dir": str(tmp_path)}})
    settings = loads(text, name="test", environ={})
    assert event_time(settings, 0.0).ok  # nothing was joined
    path = tmp_path / "joiner" / "partition-0.sqlite"
    with contextlib.closing(State(path, is_durable=False, fingerprint="", salt=0)) as state:
        with state.transaction():
            state.note("newest_ms", 3_600_000)
        for now_s in (3_600.0, 3_569.5):
            assert event_time(settings, now_s).ok
        assert_bad(event_time(settings, 3_569.0), "partition-0 has joined an event 31 s", "clock")
    path.write_bytes(b"no database")
    assert event_time(settings, 0.0).ok  # the joiner will say so
