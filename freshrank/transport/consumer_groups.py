"""Committed offsets of consumer groups, one small file per group."""

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from freshrank.errors import TransportError
from freshrank.transport.base import TopicPartition
from freshrank.transport.files import disk_errors, replace_file

# The name becomes a file name, so nothing that leads elsewhere.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ConsumerGroups:
    """Offsets by group, for dashboards and lag; a power cut may lose the last ones."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the next offsets of `group`; places not named keep theirs."""
        path = self._path(group)
        with self._lock:
            merged = self.committed(group) | dict(offsets)
            texts = {f"{place.topic}:{place.partition}": merged[place] for place in sorted(merged)}
            with disk_errors(f"commit group {group} to {path}"):
                path.parent.mkdir(exist_ok=True)
                replace_file(path, msgspec.json.encode(texts), is_durable=False)

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """The stored offsets of `group`; empty when it has none."""
        path = self._path(group)
        with disk_errors(f"read {path}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return {}
        try:
            texts = msgspec.json.decode(data, type=dict[str, int])
            return {_place(text): offset for text, offset in texts.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise TransportError(
                f"{path} is damaged ({error}): delete it, only the lag of this group is lost",
                code="log-damaged",
            ) from error

    def _path(self, group: str) -> Path:
        if _NAME.fullmatch(group) is None:
            raise TransportError(
                f"group {group!r}: a name has 1 to 100 of A-Z a-z 0-9 . _ - "
                "and begins with a letter or digit",
                code="group-name",
            )
        return self._directory / f"{group}.json"


def _place(text: str) -> TopicPartition:
    topic, _, partition = text.rpartition(":")
    return TopicPartition(topic, int(partition))
