"""Where long proofs leave their figures: a line of JSON each, for `python -m tests.prove`."""

import json
import os
from pathlib import Path


def record(proof: str, **figures: object) -> None:
    """Append figures to the file that FRESHRANK_PROOFS names; without it nothing happens."""
    if path := os.environ.get("FRESHRANK_PROOFS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"proof": proof, **figures}) + "\n")
