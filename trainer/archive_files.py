"""Files of the archive: their names, and what they say of themselves.

```
hour=2026-11-21T10/part-<partition>-<first offset>-<last offset>-<log>.parquet
```
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from freshrank.transport.files import disk_errors
from trainer.rows import TIME_MS_MAX

logger = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
METADATA_KEY: Final = b"freshrank"
_NAME: Final = re.compile(r"part-(\d{4,})-(\d{12,})-(\d{12,})-([0-9a-f]{16})\.parquet")
_HOUR: Final = re.compile(r"hour=(\d{4}-\d\d-\d\dT\d\d)")
# A record's rows are found again by these; the other columns are those of `freshrank.examples`.
PLACE: Final = pa.schema([("partition", pa.int32()), ("offset", pa.int64()), ("row", pa.int32())])


class PartName(NamedTuple):
    """What the name of a file says; names sort in the order of their examples."""

    hour: str
    partition: int
    first: int
    last: int
    log: str

    @property
    def path(self) -> Path:
        """Below the archive's directory."""
        name = f"part-{self.partition:04d}-{self.first:012d}-{self.last:012d}-{self.log}.parquet"
        return Path(f"hour={self.hour}") / name


def part_names(directory: Path) -> list[PartName]:
    """The files of an archive, sorted; other files are passed over."""
    return sorted(_names(directory))


def names_of(directory: Path, log: str, partition: int) -> list[PartName]:
    """Those of one partition of one log, by offset.

    Raises:
        TransportError: the disk refused.
    """
    with disk_errors(f"list the files in {directory}"):
        return [n for n in part_names(directory) if (n.log, n.partition) == (log, partition)]


def _names(directory: Path) -> Iterator[PartName]:
    for folder in directory.iterdir():
        hour = _HOUR.fullmatch(folder.name)
        if hour is None:
            continue
        # Another process may remove it meanwhile, as too old.
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                if match := _NAME.fullmatch(path.name):
                    partition, first, last, log = match.groups()
                    yield PartName(hour[1], int(partition), int(first), int(last), log)


def not_overtaken(directory: Path, names: list[PartName], end: int) -> list[PartName]:
    """Those of one partition that end before `end`, where its log does; others are moved aside.

    A backup has set such a log back: what a file has beyond its end will come otherwise.

    Raises:
        TransportError: the disk refused.
    """
    for name in names:
        if name.last >= end:
            path = directory / name.path
            logger.warning("archive=%s log_end=%d state=overtaken", path, end)
            with disk_errors(f"move {path} aside"):
                path.rename(path.with_suffix(".overtaken"))
    return [name for name in names if name.last < end]


def hour_of(time_ms: int) -> str:
    """The hour of a time since 1970, as file names have it: `2026-11-21T10`."""
    time_s = min(max(time_ms, 0), TIME_MS_MAX) / 1_000
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H")


@dataclass(frozen=True, slots=True)
class PartInfo:
    """What stands in a file's metadata.

    Attributes:
        schema_hash: Of the joiner.
        tasks: Names, in configuration order.
        slots: Names.
        rows: Rows in the file.
        offsets: `topic:partition` -> next input offset, after the file's last record.
        v: Format version.
    """

    schema_hash: str
    tasks: list[str]
    slots: list[str]
    rows: int
    offsets: dict[str, int]
    v: int = FORMAT_VERSION

    def encode(self) -> dict[bytes, bytes]:
        """As Parquet metadata."""
        return {METADATA_KEY: json.dumps(asdict(self)).encode()}
