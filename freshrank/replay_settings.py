"""What `freshrank.yaml` says of `freshrank replay`: how a table of labelled rows is to be read."""

import math
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from freshrank.units import Name, Part

LABEL: Final = re.compile(r"\s*(?P<column>.+?)\s*(?:(?P<op>==|!=|>=|<=|>|<)\s*(?P<number>\S+))?\s*")


def _label(text: str) -> str:
    match = LABEL.fullmatch(text)
    if match is None:
        raise ValueError(f"not a label: {text!r} (write a column, or e.g. rating >= 4)")
    if match["number"] is not None:
        try:
            is_number = math.isfinite(float(match["number"]))
        except ValueError:
            is_number = False
        if not is_number:
            raise ValueError(f"{match['number']!r} is not a number (e.g. rating >= 4)")
    return text


Column = Annotated[str, Field(min_length=1)]
Label = Annotated[str, AfterValidator(_label)]


class ReplayColumns(Part):
    """Which column of the table is what.

    `labels` maps a task to a column, or to a comparison of one with a number. `features` maps a
    feature to its column; one that is not named here is read from the column of its own name.
    """

    request: Column | None = None  # None: every row is a request of its own
    ts: Column | None = None  # None: the order of the file is the time, a row per second
    user: Column | None = None
    item: Column | None = None
    labels: dict[Name, Label] = Field(default_factory=dict)
    features: dict[Name, Column] = Field(default_factory=dict)


class ReplaySettings(Part):
    """How a table of labelled rows is read."""

    format: Literal["parquet", "csv", "tsv"] | None = None  # None: by the file's name
    ts_unit: Literal["s", "ms", "us", "ns"] = "s"
    columns: ReplayColumns = ReplayColumns()
