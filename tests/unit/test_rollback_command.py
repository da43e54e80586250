"""What `freshrank rollback --dry-run` says."""

from typing import Any

import pytest

from freshrank.commands.rollback import told

DAMAGED: dict[str, Any] = {"name": "kept-good"}
SOUND = DAMAGED | {"rows_learned": 50}


@pytest.mark.parametrize(
    ("snapshot", "rows", "text"),
    [
        (SOUND, 1_200, "kept-good would take back 1,200 learned rows"),
        (DAMAGED, None, "kept-good cannot be gone back to"),
        (None, None, "`freshrank snapshots list` where it runs"),
    ],
)
def test_a_dry_run_says_what_it_knows(snapshot: Any, rows: int | None, text: str) -> None:
    said = told("kept-good", {"snapshot": snapshot, "rows_taken_back": rows})
    assert said.startswith("nothing is done; ")
    assert text in said
