"""The parameter channel in a directory: each publication a file put in place by a rename.

```
EPOCH                      the newest epoch that was opened, as text
HEAD.json                  what is published: epoch, seq, base_seq, published_at_ms
base-<epoch>-<seq>.frame   the base a new replica starts from
delta-<epoch>-<seq>.frame  leads from seq - 1 to seq
WANTED.json                [epoch, seq] that a replica cannot leave without a newer base
BEAT                       when the writer was last heard, in ms, as text
LOCK                       held during each change of the others
```
HEAD moves last: whatever it names is complete and on disk. One trainer writes, any number of
processes on this machine read, and write WANTED only. Runs where `flock` does: Linux and macOS.
"""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from freshrank.clock import Clock
from freshrank.errors import TransportError
from freshrank.transport import refusals
from freshrank.transport.base import Head
from freshrank.transport.files import (
    disk_errors,
    locked,
    make_directory,
    read_file,
    remove_temporary_files,
    replace_file,
)

_FRAME_NAME: Final = re.compile(r"(base|delta)-(\d+)-(\d+)\.frame")

# Another process' publication is seen after 5 ms on average; a look reads one small file (10 µs).
# The file is read and not only its time compared: two renames may share a time stamp and an inode.
_POLL_S: Final = 0.01

# Each try of `base` loses only to a newer base published meanwhile; ten in a row is no accident.
_N_TRIES: Final = 10


class DirectoryChannel:
    """A `ParameterChannel` of files.

    Args:
        directory: Holds everything; made if it is not there.
        clock: Tells `published_at_ms`. Waiting is in real time, always.
        keep_deltas: So many of the newest deltas stay even when a newer base covers them, so that
            replicas a little behind need no base. What follows the base always stays.
    """

    def __init__(self, directory: Path, *, clock: Clock, keep_deltas: int = 1024) -> None:
        self._directory = directory
        self._clock = clock
        self._keep_deltas = keep_deltas
        self._changed = threading.Condition()
        self._is_closed = False
        with disk_errors(f"open the parameter channel in {directory}"):
            make_directory(directory)

    def open_epoch(self, *, above: int = 0) -> int:
        """Claim the next epoch for this writer, durably, before anything is published in it."""
        with self._changing("open an epoch"):
            head = self.head()
            epoch = max(self._opened_epoch(), head.epoch if head else 0, above) + 1
            replace_file(self._directory / "EPOCH", str(epoch).encode())
            # We hold the lock: nobody else writes but a replica asking for a base, and that comes.
            remove_temporary_files(self._directory)
        return epoch

    def publish_base(self, epoch: int, seq: int, frame: bytes) -> None:
        """Publish a complete base, not older than the last; see `ParameterChannel`."""
        with self._changing(f"publish base {epoch}-{seq}"):
            self._check_epoch(epoch)
            head = self.head()
            newest = seq
            if head is not None and head.epoch == epoch:
                if seq < head.base_seq:
                    raise refusals.older_base(epoch, seq, head.base_seq)
                newest = max(seq, head.seq)
            new_head = Head(epoch, newest, seq, self._clock.now_ms())
            self._publish(self._path("base", epoch, seq), frame, new_head)
            self._trim(new_head)
        self._wake()

    def publish_delta(self, epoch: int, seq: int, frame: bytes) -> None:
        """Publish the delta that leads from seq - 1 to seq; see `ParameterChannel`."""
        with self._changing(f"publish delta {epoch}-{seq}"):
            self._check_epoch(epoch)
            head = self.head()
            path = self._path("delta", epoch, seq)
            is_newest = head is not None and (head.epoch, head.seq) == (epoch, seq)
            if is_newest and read_file(path) == frame:
                return
            if head is None or (head.epoch, head.seq) != (epoch, seq - 1):
                at = "nothing" if head is None else f"{head.epoch}-{head.seq}"
                raise refusals.no_successor(epoch, seq, at)
            new_head = Head(epoch, seq, head.base_seq, self._clock.now_ms())
            self._publish(path, frame, new_head)
            self._trim(new_head)
        self._wake()

    def beat(self, epoch: int) -> None:
        """Say that the writer of this epoch is there; see `ParameterChannel`."""
        with self._changing("beat"):
            self._check_epoch(epoch)
            self._beat()

    def beat_age_s(self) -> float | None:
        """Seconds since the writer was last heard; None when it never was."""
        data = read_file(self._directory / "BEAT")
        if data is None or not data.isdigit():
            return None
        return max(self._clock.now_ms() - int(data), 0) / 1_000

    def head(self) -> Head | None:
        """The newest published state; None before the first base."""
        path = self._directory / "HEAD.json"
        data = read_file(path)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=Head)
        except msgspec.DecodeError as error:
            raise TransportError(
                f"{path} is damaged ({error}): delete it and restart the trainer, which publishes "
                "a base",
                code="channel-damaged",
            ) from error

    def base(self) -> tuple[int, int, bytes] | None:
        """(epoch, seq, frame) of the newest base."""
        return self._base()

    def base_beginning(self, n_bytes: int) -> bytes | None:
        """The first bytes of the newest base; see `ParameterChannel`."""
        base = self._base(n_bytes)
        return base and base[2]

    def _base(self, n_bytes: int = -1) -> tuple[int, int, bytes] | None:
        name = ""
        for _ in range(_N_TRIES):  # trimmed between two reads: HEAD names a newer one by now
            head = self.head()
            if head is None:
                return None
            name = f"{head.epoch}-{head.base_seq}"
            frame = read_file(self._path("base", head.epoch, head.base_seq), n_bytes)
            if frame is not None:
                return head.epoch, head.base_seq, frame
        raise self._lacks(f"base {name}")

    def delta(self, epoch: int, seq: int) -> bytes | None:
        """One delta; None if it is not there (not yet, or trimmed)."""
        head = self.head()
        if head is None or epoch != head.epoch or seq > head.seq:
            return None  # a file there is half of a publication
        return read_file(self._path("delta", epoch, seq))

    def request_base(self, epoch: int, seq: int) -> None:
        """Ask for a base newer than (epoch, seq); see `ParameterChannel`.

        Without the lock, which a publication may hold for seconds: should two replicas write at
        once, the base that answers either is at the head's seq or beyond it, and so answers both.
        """
        with disk_errors(f"ask for a base in {self._directory}"):
            standing = self._standing_request(self.head())
            if standing is None or standing < (epoch, seq):
                # Not durable: after a power cut every replica starts anew, with the base.
                data = msgspec.json.encode((epoch, seq))
                replace_file(self._directory / "WANTED.json", data, is_durable=False)

    def wanted_base(self) -> bool:
        """Whether a replica asked for a base newer than the newest one; False before the first."""
        head = self.head()
        standing = self._standing_request(head)
        if head is None or standing is None:
            return False
        return (head.epoch, head.base_seq) <= standing

    def wait(self, epoch: int, seq: int, *, timeout_s: float) -> bool:
        """Block until the head differs from (epoch, seq); False when time ran out."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._is_closed:
                head = self.head()
                if head is not None and (head.epoch, head.seq) != (epoch, seq):
                    return True
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, _POLL_S))
        return False

    def copy(self, target: Path) -> None:
        """Copy the newest published state, a base and what follows it, into an empty directory."""
        for _ in range(_N_TRIES):
            head = self.head()
            if head is None:
                return
            paths = [self._path("base", head.epoch, head.base_seq)]
            deltas = range(head.base_seq + 1, head.seq + 1)
            paths += [self._path("delta", head.epoch, seq) for seq in deltas]
            with disk_errors(f"copy {self._directory} to {target}"):
                try:
                    for path in paths:
                        shutil.copyfile(path, target / path.name)
                except FileNotFoundError:  # trimmed: HEAD names newer ones by now
                    continue
                (target / "EPOCH").write_text(str(head.epoch))
                (target / "HEAD.json").write_bytes(msgspec.json.encode(head))
                return
        raise self._lacks("a frame")

    def close(self) -> None:
        """Waiting readers return."""
        self._is_closed = True
        self._wake()

    @contextlib.contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        with disk_errors(f"{what} in {self._directory}"), locked(self._directory / "LOCK"):
            yield

    def _standing_request(self, head: Head | None) -> tuple[int, int] | None:
        """What was asked last, met or not; None for nothing, and for what no replica can mean."""
        data = read_file(self._directory / "WANTED.json")
        if data is None or head is None:
            return None
        try:
            asked = msgspec.json.decode(data, type=tuple[int, int])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return asked if asked <= (head.epoch, head.seq) else None

    def _opened_epoch(self) -> int:
        path = self._directory / "EPOCH"
        data = read_file(path)
        if data is None:
            return 0
        if not data.isdigit():
            raise TransportError(
                f"{path} is damaged: write the newest epoch of HEAD.json into it, plus 1",
                code="channel-damaged",
            )
        return int(data)

    def _check_epoch(self, epoch: int) -> None:
        opened = self._opened_epoch()
        if epoch != opened:
            raise refusals.wrong_epoch(epoch, opened)

    def _beat(self) -> None:
        now = str(self._clock.now_ms()).encode()
        replace_file(self._directory / "BEAT", now, is_durable=False)

    def _publish(self, path: Path, frame: bytes, head: Head) -> None:
        is_new = not path.exists()
        replace_file(path, frame)
        try:
            replace_file(self._directory / "HEAD.json", msgspec.json.encode(head))
        except OSError:
            if is_new and self.head() != head:
                path.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # the publication stands
            self._beat()

    def _trim(self, head: Head) -> None:
        """Remove what no replica needs: other epochs, older bases, old deltas the base covers."""
        first_delta = min(head.base_seq, head.seq - self._keep_deltas) + 1
        for path in self._directory.iterdir():
            match = _FRAME_NAME.fullmatch(path.name)
            if match is None:
                continue
            kind, epoch, seq = match[1], int(match[2]), int(match[3])
            first = first_delta if kind == "delta" else head.base_seq
            if epoch != head.epoch or seq < first:
                with contextlib.suppress(OSError):  # the publication stands; the next one trims
                    path.unlink(missing_ok=True)

    def _lacks(self, what: str) -> TransportError:
        return TransportError(
            f"{self._directory} lacks {what} that HEAD names: restart the trainer, for a base",
            code="channel-damaged",
        )

    def _path(self, kind: str, epoch: int, seq: int) -> Path:
        return self._directory / f"{kind}-{epoch}-{seq}.frame"

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
