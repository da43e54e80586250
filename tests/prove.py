"""Runs the long proofs in full and writes their figures to docs/proof.md.

    python -m tests.prove [--kills 200] [--seed 11]

The tests are those of CI, where a seeded sample of each runs.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROOFS = ("tests/fault", "tests/property")
TITLE = """# Proof

The long proofs, run in full by `make prove`; CI runs a seeded sample of each. Every line is what
the last run measured, nothing is carried over.

"""


def main() -> int:
    """Run, write, return pytest's exit code."""
    parser = argparse.ArgumentParser(description="Run the long proofs.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        figures = Path(directory) / "figures.jsonl"
        environ = {
            **os.environ,
            "FRESHRANK_KILLS": str(arguments.kills),
            "FRESHRANK_SEED": str(arguments.seed),
            "FRESHRANK_PROOFS": str(figures),
        }
        command = [sys.executable, "-m", "pytest", *PROOFS]
        code = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        lines = figures.read_text().splitlines() if figures.exists() else []
    minutes = (time.monotonic() - began_s) / 60
    verdict = "all passed" if code == 0 else f"FAILED, exit code {code}"
    today = datetime.datetime.now(datetime.UTC).date()
    text = TITLE + f"Run of {today}, seed {arguments.seed}, {minutes:.0f} minutes: {verdict}.\n\n"
    text += "| proof | figures |\n|---|---|\n"
    for line in lines:
        entry = json.loads(line)
        proof = entry.pop("proof")
        text += f"| {proof} | {', '.join(f'{k} {v}' for k, v in entry.items())} |\n"
    (ROOT / "docs" / "proof.md").write_text(text)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
