"""Runs every benchmark, one after the other, and writes RESULTS.md: `python -m benchmarks`."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.report import as_markdown, as_text

FOLDER = Path(__file__).parent
NO_BENCHMARKS = ("__main__", "parts", "report")


def main(folder: Path = FOLDER) -> int:
    """Run the folder's benchmarks; returns 1 if one crashed, and says so in its place."""
    parts = [
        "# Benchmarks\n\nWritten by `make bench` (`python -m benchmarks`) on "
        f"{datetime.now(UTC):%Y-%m-%d}.\n\nMachine: {machine()}."
    ]
    has_crashed = False
    for name in sorted(path.stem for path in folder.glob("*.py") if path.stem not in NO_BENCHMARKS):
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"{folder.name}.{name}", "--json"]
        ended = subprocess.run(
            command, cwd=folder.parent, stdout=subprocess.PIPE, text=True, check=False
        )
        table = f"It crashed with exit code {ended.returncode}."
        if ended.returncode == 0:
            rows = json.loads(ended.stdout)
            table = as_markdown(rows)
        has_crashed |= ended.returncode != 0
        print(table if ended.returncode else as_text(rows), flush=True)
        parts.append(f"## {name}\n\n{table}")
    (folder / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return int(has_crashed)


def machine() -> str:
    """Processor, cores, and the versions that the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "numpy"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
