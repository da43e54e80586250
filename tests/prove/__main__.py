"""Runs the long proofs in full and writes their figures to docs/proof.md.

    python -m tests.prove [--only kills,flood] [--kills 200] [--seed 11]

A proof that is not run keeps its rows: every row says when it was measured.
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

from tests.prove.table import PROOFS, Proof

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "proof.md"
TITLE = """# Proof

The long proofs, run in full by `make prove`; CI runs a seeded sample of each. Each row is what its
last run measured. `python -m tests.prove --help` says what scale is.

| proof | what holds | figures | run |
|---|---|---|---|
"""


def main() -> int:
    """Run, write, and return 1 if any proof failed."""
    arguments = parse()
    has_failed = False
    for name in arguments.only:
        n = getattr(arguments, name.replace("-", "_"))
        proved = prove(name, PROOFS[name], n, arguments.seed)
        has_failed |= any("FAILED" in row for row in proved)
        rows = kept_rows() | {name: proved}  # read now: another run may have written
        ordered = [row for proof in PROOFS for row in rows.get(proof, [])]
        PAGE.write_text(TITLE + "\n".join(ordered) + "\n", encoding="utf-8")
        print("\n".join(proved), flush=True)
    return int(has_failed)


def parse() -> argparse.Namespace:
    """One option of scale per proof."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--only", default=list(PROOFS), type=lambda text: text.split(","), metavar="NAME,NAME",
        help="of " + ", ".join(PROOFS),
    )  # fmt: skip
    for name, proof in PROOFS.items():
        text = f"{proof.unit}, default {proof.full}"
        parser.add_argument(f"--{name}", type=int, default=proof.full, metavar="N", help=text)
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(PROOFS):
        parser.error(f"--only knows {', '.join(PROOFS)}; not {', '.join(sorted(unknown))}")
    return arguments


def kept_rows() -> dict[str, list[str]]:
    """The page's rows by proof."""
    rows: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []:
        name = line.split("|")[1].strip() if line.startswith("| ") else ""
        if name in PROOFS:
            rows.setdefault(name, []).append(line)
    return rows


def prove(name: str, proof: Proof, n: int, seed: int) -> list[str]:
    """Run one proof's tests at scale n; its rows of the page."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        figures = Path(directory) / "figures.jsonl"
        environ = {
            **os.environ,
            "FRESHRANK_PROVE_" + name.upper().replace("-", "_"): str(n),
            "FRESHRANK_SEED": str(seed),
            "FRESHRANK_PROOFS": str(figures),
        }
        command = [sys.executable, "-m", "pytest", "--timeout=7200", *proof.tests]
        code = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        lines = figures.read_text(encoding="utf-8").splitlines() if figures.exists() else []
    minutes = (time.monotonic() - began_s) / 60
    run = f"{datetime.datetime.now(datetime.UTC).date()}, seed {seed}, {minutes:.1f} min"
    rows = []
    for line in lines:
        entry = json.loads(line)
        what = entry.pop("proof")
        told = ", ".join(f"{key} {value}" for key, value in entry.items())
        rows.append(f"| {name} | {what} | {told} | {run} |")
    if code != 0 or not rows:
        return [*rows, f"| {name} | **FAILED** | exit code {code} of pytest | {run} |"]
    return rows


if __name__ == "__main__":
    sys.exit(main())
