"""What a long proof is told and tells: its scale, and the figures it leaves for `make prove`."""

import json
import os
from pathlib import Path


def scale(proof: str, sample: int) -> int:
    """How much of a proof to run: `sample` in CI, in `make prove` what its table says."""
    return int(os.environ.get("FRESHRANK_PROVE_" + proof.upper().replace("-", "_"), sample))


def record(proof: str, **figures: object) -> None:
    """Append figures to the file that FRESHRANK_PROOFS names; without it nothing happens."""
    if path := os.environ.get("FRESHRANK_PROOFS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"proof": proof, **figures}) + "\n")


def resident_bytes() -> int:
    """What this process holds in memory, by the kernel's account."""
    n_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return n_pages * os.sysconf("SC_PAGESIZE")
