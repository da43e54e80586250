"""`freshrank dev` and the fixtures: servers that answer, keep their data and end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from freshrank.dev import kafka as dev_kafka
from freshrank.dev.redis import redis
from freshrank.dev.servers import HOST, MissingServerError, Server, free_ports, running
from freshrank.errors import TransportError
from tests import servers


@contextmanager
def dev(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`freshrank dev …` and what it printed once the server answered."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from freshrank.cli import main; main()",
            "dev",
            *arguments,
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield process, json.loads(line)
        finally:
            process.kill()


def is_listening(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def ask_redis(server: Server, command: str) -> str:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(100).decode().strip()


@pytest.mark.parametrize("name", ["kafka", "redis"])
def test_a_server_for_development_answers_and_ends_with_the_command(
    name: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(f"{name}_server")  # skips where it cannot run
    with dev(name) as (process, said):
        assert is_listening(said["address"])
        directory = Path(said["log"]).parent
        assert directory.exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not is_listening(said["address"])
        with pytest.raises(ProcessLookupError):
            os.kill(said["pid"], 0)
        assert not directory.exists()


def test_a_server_that_dies_ends_the_command(redis_server: Server) -> None:
    with dev("redis") as (process, said):
        os.kill(said["pid"], signal.SIGKILL)
        assert process.wait(60) == 3
        assert process.stderr is not None
        assert "redis ended with -9" in process.stderr.read()


def test_a_folder_keeps_its_data(redis_server: Server, tmp_path: Path) -> None:
    with redis(tmp_path) as server:
        assert ask_redis(server, "SET key value") == "+OK"
    with redis(tmp_path) as server:
        assert ask_redis(server, "GET key") == "$5\r\nvalue"


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('the disk is on fire'); raise SystemExit(7)"]
    (port,) = free_ports(1)
    with (
        pytest.raises(TransportError, match=r"(?s)ended with 7.*the disk is on fire"),
        running("It", command, port=port, log=tmp_path / "log", answers=lambda _: True),
    ):
        pass


def test_a_paused_server_is_stopped(redis_server: Server, tmp_path: Path) -> None:
    with redis(tmp_path) as server:
        server.process.send_signal(signal.SIGSTOP)
    assert server.process.returncode == 0


def test_what_is_missing_skips_but_fails_where_servers_are_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(servers.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        next(servers.started(redis, tmp_path))
    monkeypatch.setenv(servers.REQUIRED, "1")
    with pytest.raises(MissingServerError):
        next(servers.started(redis, tmp_path))


def test_jars_that_are_here_need_no_maven(
    kafka_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(dev_kafka.jars().glob("kafka_2.13-4.*.jar"))


def test_jars_that_cannot_be_resolved_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("mvn") is None:
        pytest.skip("Maven is not installed: apt-get install maven")
    pom = tmp_path / "pom.xml"
    pom.write_text("<project>not closed")
    monkeypatch.setattr(dev_kafka, "_POM", pom)
    monkeypatch.setattr(dev_kafka, "_ROOT", tmp_path)
    with pytest.raises(MissingServerError, match="Maven cannot resolve"):
        dev_kafka.jars()
    assert list((tmp_path / "build" / "kafka").iterdir()) == []


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        with socket.socket() as one:
            one.bind((HOST, port))
