"""Programs that run to their end, and have to end well."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

FRESHRANK: Final = str(Path(sys.executable).with_name("freshrank"))


def ended(
    *command: object, timeout_s: float = 120.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program; what it says is shown where it fails.

    Args:
        command: Its name and arguments.
        timeout_s: It has so long, on a machine that does much else.
        options: Of `subprocess.run`.
    """
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-8_000:]}\n{done.stderr[-8_000:]}"
    return done


def as_json(*arguments: object) -> Any:
    """What a command of `freshrank` says, as JSON."""
    return json.loads(ended(FRESHRANK, *arguments, "--json").stdout)
