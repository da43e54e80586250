"""What a check of `freshrank doctor` found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        ok: False when something must be mended.
        text: What was found.
        mend: What to do, where `ok` is False.
    """

    name: str
    ok: bool
    text: str
    mend: str = ""
