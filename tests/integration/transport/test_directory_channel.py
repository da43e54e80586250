"""The channel in a directory passes the checks of all channels, and trims its files."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from freshrank.clock import ManualClock, SystemClock
from freshrank.errors import TransportError
from freshrank.transport.base import Head
from freshrank.transport.directory import DirectoryChannel
from tests.integration.transport.channel_checks import (
    CHANNEL_CHECKS,
    DEADLINE_S,
    Check,
    publish,
)


@pytest.mark.parametrize("keep_deltas", [1024, 2])
@pytest.mark.parametrize(
    "check", CHANNEL_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
def test_directory_channel_passes(check: Check, keep_deltas: int, tmp_path: Path) -> None:
    check(lambda: DirectoryChannel(tmp_path / "c", clock=SystemClock(), keep_deltas=keep_deltas))


def frames_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.frame"))


def test_trimming_keeps_what_follows_the_base(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock(), keep_deltas=2)
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 5)
    assert frames_in(tmp_path) == ["base-1-0.frame", *(f"delta-1-{i}.frame" for i in range(1, 6))]


def test_trimming_drops_older_bases_and_the_deltas_they_cover(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock(), keep_deltas=2)
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 5)
    channel.publish_base(epoch, 5, b"base")
    assert frames_in(tmp_path) == ["base-1-5.frame", "delta-1-4.frame", "delta-1-5.frame"]


def test_new_epoch_drops_the_frames_of_the_old(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    publish(channel, channel.open_epoch(), 0, 5)
    publish(channel, channel.open_epoch(), 5, 6)
    assert frames_in(tmp_path) == ["base-2-5.frame", "delta-2-6.frame"]


def test_head_tells_when_it_was_published(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=ManualClock(now_ms=1_234))
    channel.publish_base(channel.open_epoch(), 7, b"base")
    assert channel.head() == Head(epoch=1, seq=7, base_seq=7, published_at_ms=1_234)


def test_opening_an_epoch_clears_what_a_killed_writer_left(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    (tmp_path / ".base-1-0.frame.77-88.tmp").write_bytes(b"half a ba")
    channel.open_epoch()
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize(("name", "content"), [("HEAD.json", "{"), ("EPOCH", "one")])
def test_damaged_state_is_named(name: str, content: str, tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    channel.publish_base(channel.open_epoch(), 0, b"base")
    (tmp_path / name).write_text(content)
    with pytest.raises(TransportError, match=name) as damaged:
        channel.open_epoch()
    assert damaged.value.code == "channel-damaged"


def test_delta_whose_writer_died_before_the_head_is_not_read(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 1)
    (tmp_path / "delta-1-2.frame").write_bytes(b"never published")
    assert channel.delta(epoch, 2) is None
    channel.publish_delta(epoch, 2, b"published")
    assert channel.delta(epoch, 2) == b"published"


def test_lost_epoch_file_does_not_bring_an_epoch_back(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    for _ in range(3):
        channel.publish_base(channel.open_epoch(), 0, b"base")
    (tmp_path / "EPOCH").unlink()
    assert channel.open_epoch() == 4


def test_base_that_is_missing_is_named(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    channel.publish_base(channel.open_epoch(), 0, b"base")
    (tmp_path / "base-1-0.frame").unlink()
    for read in (channel.base, partial(channel.base_beginning, 1)):
        with pytest.raises(TransportError, match="base 1-0") as damaged:
            read()
        assert damaged.value.code == "channel-damaged"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[1]", b"[1,2,3]", b'["1","1"]', b"[1,1e999]", b"null", b"[" * 9_999],
    ids=repr,
)
def test_damaged_request_for_a_base_is_ignored_and_replaced(content: bytes, tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 2)
    (tmp_path / "WANTED.json").write_bytes(content)
    assert not channel.wanted_base()
    channel.request_base(epoch, 1)
    assert channel.wanted_base()


def test_repeated_request_for_a_base_writes_nothing(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 2)
    channel.request_base(epoch, 1)
    os.utime(tmp_path / "WANTED.json", (0, 0))
    for seq in (1, 0):
        channel.request_base(epoch, seq)
    assert (tmp_path / "WANTED.json").stat().st_mtime == 0.0


def test_request_for_a_base_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path, clock=SystemClock())
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 2)
    (tmp_path / "WANTED.json").mkdir()  # stands for a directory without write permission
    with pytest.raises(TransportError, match=r"WANTED\.json") as refused:
        channel.request_base(epoch, 1)
    assert refused.value.code == "disk-error"


_FULL_DISK = """
import resource, sys
from pathlib import Path
from freshrank.clock import SystemClock
from freshrank.errors import TransportError
from freshrank.transport.directory import DirectoryChannel

directory, room_bytes, frame_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
channel = DirectoryChannel(directory, clock=SystemClock())
epoch = channel.open_epoch()
channel.publish_base(epoch, 0, b"base")
channel.publish_delta(epoch, 1, b"delta")
before, files = channel.head(), sorted(directory.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))
for publish, seq in ((channel.publish_delta, 2), (channel.publish_base, 1)):
    try:
        publish(epoch, seq, bytes(frame_bytes))
    except TransportError as error:
        assert error.code == "disk-full", error.code
    else:
        raise AssertionError("published without room")
assert channel.head() == before
assert channel.base() == (epoch, 0, b"base")
assert channel.delta(epoch, 1) == b"delta" and channel.delta(epoch, 2) is None
assert sorted(directory.iterdir()) == files
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
channel.publish_delta(epoch, 2, bytes(frame_bytes))
assert channel.delta(epoch, 2) == bytes(frame_bytes)
print("as expected")
"""


@pytest.mark.parametrize(
    ("room_bytes", "frame_bytes"), [(5_000, 5_001), (20, 10)], ids=["no-frame", "no-head"]
)
def test_full_disk_leaves_the_published_state(
    room_bytes: int, frame_bytes: int, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path), str(room_bytes), str(frame_bytes)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert run.stdout == "as expected\n", run.stderr
