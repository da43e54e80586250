"""Programs of the C++ core under sanitizers, which share one build per preset."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.native import built


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Builds a program by its name and preset."""
    folder = tmp_path_factory.mktemp("core")
    return lambda name, preset: built(name, preset, folder / preset)
