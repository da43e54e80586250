"""Runs every benchmark, one after the other: `python -m benchmarks`."""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run each file of this folder; the first exit code that is not 0, or 0."""
    code = 0
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        print(f"== {path.stem}", flush=True)
        ended = subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=False)
        code = code or ended.returncode
    return code


if __name__ == "__main__":
    sys.exit(main())
