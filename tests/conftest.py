"""What every test directory shares: the report header, real servers and the golden files."""

import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.servers import closed_sockets as closed_sockets
from tests.servers import kafka_server as kafka_server
from tests.servers import leaky_client as leaky_client
from tests.servers import new_cluster as new_cluster
from tests.servers import redis_server as redis_server

# Examples have no deadline: a busy machine would fail a test that is right.
settings.register_profile("freshrank", deadline=None, print_blob=True)
settings.load_profile("freshrank")

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[[str, Any], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden from what the code does now; review the diff",
    )


def pytest_report_header() -> str:
    names = ("freshrank", "numpy", "torch", "onnxruntime", "pydantic")
    versions = [f"python {platform.python_version()}", _native(), *map(_version, names)]
    return ", ".join(versions)


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def _native() -> str:
    try:
        import embedding_store
    except ImportError as error:
        return f"native core missing ({error})"
    return f"native core format {embedding_store.FORMAT_VERSION}"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a JSON-like value with `tests/golden/<name>`, or write it with --update-golden."""

    def check(name: str, actual: Any) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(json.dumps(actual, indent=1, ensure_ascii=False) + "\n", "utf-8")
        assert actual == json.loads(path.read_text("utf-8"))

    return check
