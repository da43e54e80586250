"""Programs of the C++ core, built once for all the tests that run them."""

from pathlib import Path

import pytest

from tests.store.native import built


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of programs by preset, each built where it is first asked for."""

    class Builds(dict[str, Path]):
        def __missing__(self, preset: str) -> Path:
            self[preset] = built(preset, tmp_path_factory.mktemp(preset))
            return self[preset]

    return Builds()
