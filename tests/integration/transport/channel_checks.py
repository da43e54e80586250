"""What every `ParameterChannel` keeps, whatever carries it: checks for all implementations.

Each check takes a function that opens the channel: empty at the first call; every later call opens
the same channel once more, as another process would.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import pytest

from freshrank.errors import SyncError
from freshrank.transport.base import Head, ParameterChannel

DEADLINE_S: Final = 20.0

OpenChannel = Callable[[], ParameterChannel]
Check = Callable[[OpenChannel], None]


@contextmanager
def opened(open_channel: OpenChannel) -> Iterator[ParameterChannel]:
    """The channel, closed at the end."""
    with contextlib.closing(open_channel()) as channel:
        yield channel


def frame(kind: str, epoch: int, seq: int, n_bytes: int = 1_000) -> bytes:
    """Bytes that tell whose they are in every part."""
    text = b"%s-%d-%d;" % (kind.encode(), epoch, seq)
    return text * (n_bytes // len(text) + 1)


def publish(channel: ParameterChannel, epoch: int, base_seq: int, seq: int) -> None:
    """A base and the deltas that follow it up to `seq`."""
    channel.publish_base(epoch, base_seq, frame("base", epoch, base_seq))
    for i in range(base_seq + 1, seq + 1):
        channel.publish_delta(epoch, i, frame("delta", epoch, i))


def place(head: Head | None) -> tuple[int, int, int] | None:
    """(epoch, seq, base_seq) of a head."""
    return None if head is None else (head.epoch, head.seq, head.base_seq)


def check_empty_channel_has_nothing(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        assert channel.head() is None
        assert channel.base() is None
        assert channel.base_beginning(1) is None
        assert channel.delta(1, 1) is None
        assert not channel.wait(0, 0, timeout_s=0.0)


def check_publications_are_read_by_another(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer, opened(open_channel) as reader:
        epoch = writer.open_epoch()
        publish(writer, epoch, 0, 3)
        assert place(reader.head()) == (epoch, 3, 0)
        assert reader.base() == (epoch, 0, frame("base", epoch, 0))
        deltas = [reader.delta(epoch, seq) for seq in range(1, 5)]
        assert deltas == [*(frame("delta", epoch, seq) for seq in range(1, 4)), None]
        head = reader.head()
        assert head is not None
        assert head.published_at_ms > 0


def check_publications_outlive_their_writer(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer:
        epoch = writer.open_epoch()
        publish(writer, epoch, 5, 6)
    with opened(open_channel) as reader:
        assert place(reader.head()) == (epoch, 6, 5)
        assert reader.base() == (epoch, 5, frame("base", epoch, 5))


def check_base_can_be_read_in_part(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        for n_whole in (1_000, 5 << 20):
            epoch = channel.open_epoch()
            base = frame("base", epoch, 0, n_whole)
            channel.publish_base(epoch, 0, base)
            for n_bytes in (0, 1, 100, 1 << 20, (1 << 20) + 1, len(base), len(base) + 1):
                beginning = channel.base_beginning(n_bytes)
                assert beginning is not None
                assert len(beginning) >= min(n_bytes, len(base))
                assert base.startswith(beginning)


def check_epochs_count_up_for_everybody(open_channel: OpenChannel) -> None:
    with opened(open_channel) as first, opened(open_channel) as second:
        epochs = [first.open_epoch(), second.open_epoch(), first.open_epoch()]
        assert epochs == [*range(epochs[0], epochs[0] + 3)]
        above = epochs[-1] + 10
        assert [first.open_epoch(above=above), second.open_epoch(above=7)] == [above + 1, above + 2]


def check_newer_epoch_fences_the_older(open_channel: OpenChannel) -> None:
    with opened(open_channel) as old, opened(open_channel) as new:
        old_epoch = old.open_epoch()
        publish(old, old_epoch, 0, 1)
        new_epoch = new.open_epoch()
        for publish_one in (old.publish_base, old.publish_delta):
            with pytest.raises(SyncError) as fenced:
                publish_one(old_epoch, 2, b"late")
            assert fenced.value.code == "fenced"
        assert place(new.head()) == (old_epoch, 1, 0)
        publish(new, new_epoch, 1, 1)
        assert place(old.head()) == (new_epoch, 1, 1)


def check_epoch_that_the_channel_does_not_know_is_refused(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        epoch = 1
        for _ in range(2):
            for say in (
                partial(channel.publish_base, epoch, 0, b"base"),
                partial(channel.publish_delta, epoch, 1, b"delta"),
                partial(channel.beat, epoch),
            ):
                with pytest.raises(SyncError) as lost:
                    say()
                assert lost.value.code == "lost"
            assert channel.head() is None
            assert channel.beat_age_s() is None
            epoch = channel.open_epoch() + 1


def check_writer_is_heard_by_beats_and_publications(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer, opened(open_channel) as reader:
        epoch = writer.open_epoch()
        assert reader.beat_age_s() is None
        for say in (
            partial(writer.beat, epoch),
            partial(writer.publish_base, epoch, 0, b"base"),
            partial(writer.publish_delta, epoch, 1, b"delta"),
            partial(writer.beat, epoch),
        ):
            begun_s = time.monotonic()
            say()
            age_s = reader.beat_age_s()
            assert age_s is not None
            assert age_s <= time.monotonic() - begun_s + 0.01  # clocks count in milliseconds
        head = reader.head()
        assert not reader.wait(epoch, 1, timeout_s=0.01)  # a beat is no news
        writer.open_epoch()
        with pytest.raises(SyncError) as fenced:
            writer.beat(epoch)
        assert fenced.value.code == "fenced"
        assert reader.head() == head


def check_old_epoch_serves_until_the_new_base(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        old = channel.open_epoch()
        publish(channel, old, 0, 2)
        new = channel.open_epoch()
        assert channel.base() == (old, 0, frame("base", old, 0))
        with pytest.raises(SyncError) as gap:
            channel.publish_delta(new, 3, b"delta before its base")
        assert gap.value.code == "gap"
        assert channel.delta(old, 2) == frame("delta", old, 2)
        publish(channel, new, 2, 3)
        assert channel.base() == (new, 2, frame("base", new, 2))
        assert channel.delta(old, 2) is None
        assert channel.delta(new, 3) == frame("delta", new, 3)


def check_delta_that_does_not_follow_is_refused(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        epoch = channel.open_epoch()
        publish(channel, epoch, 0, 2)
        for seq in (1, 4):
            with pytest.raises(SyncError) as gap:
                channel.publish_delta(epoch, seq, b"another")
            assert gap.value.code == "gap"
        assert place(channel.head()) == (epoch, 2, 0)
        assert channel.delta(epoch, 1) == frame("delta", epoch, 1)
        assert channel.delta(epoch, 4) is None


def check_delta_may_be_repeated_but_not_changed(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        epoch = channel.open_epoch()
        publish(channel, epoch, 0, 2)
        channel.publish_delta(epoch, 2, frame("delta", epoch, 2))
        with pytest.raises(SyncError) as gap:
            channel.publish_delta(epoch, 2, b"another")
        assert gap.value.code == "gap"
        assert channel.delta(epoch, 2) == frame("delta", epoch, 2)


def check_base_may_lag_behind_the_deltas(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        epoch = channel.open_epoch()
        publish(channel, epoch, 0, 5)
        channel.publish_base(epoch, 3, frame("base", epoch, 3))
        assert place(channel.head()) == (epoch, 5, 3)
        assert channel.delta(epoch, 4) == frame("delta", epoch, 4)
        channel.publish_delta(epoch, 6, frame("delta", epoch, 6))
        assert place(channel.head()) == (epoch, 6, 3)


def check_base_may_run_ahead_of_the_deltas(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        epoch = channel.open_epoch()
        publish(channel, epoch, 0, 2)
        publish(channel, epoch, 9, 10)
        assert place(channel.head()) == (epoch, 10, 9)
        assert channel.base() == (epoch, 9, frame("base", epoch, 9))


def check_older_base_is_refused(open_channel: OpenChannel) -> None:
    with opened(open_channel) as channel:
        epoch = channel.open_epoch()
        publish(channel, epoch, 4, 5)
        with pytest.raises(SyncError) as gap:
            channel.publish_base(epoch, 3, b"older")
        assert gap.value.code == "gap"
        assert channel.base() == (epoch, 4, frame("base", epoch, 4))


def check_base_is_wanted_until_a_newer_one_is_there(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer, opened(open_channel) as reader:
        epoch = writer.open_epoch()
        publish(writer, epoch, 0, 4)
        assert not writer.wanted_base()
        for _ in range(2):
            reader.request_base(epoch, 2)
            assert writer.wanted_base()
            assert reader.wanted_base()
        writer.publish_delta(epoch, 5, frame("delta", epoch, 5))
        writer.publish_base(epoch, 2, frame("base", epoch, 2))
        assert writer.wanted_base()
        writer.publish_base(epoch, 3, frame("base", epoch, 3))
        assert not writer.wanted_base()
        reader.request_base(epoch, 3)  # the base itself may be the damaged frame
        assert writer.wanted_base()
        next_epoch = writer.open_epoch()
        assert writer.wanted_base()
        publish(writer, next_epoch, 6, 7)
        assert not writer.wanted_base()


def check_newest_of_several_requests_stands(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer, opened(open_channel) as reader:
        epoch = writer.open_epoch()
        publish(writer, epoch, 0, 4)
        for seq in (1, 3, 2):
            reader.request_base(epoch, seq)
        writer.publish_base(epoch, 3, frame("base", epoch, 3))
        assert writer.wanted_base()
        writer.publish_base(epoch, 4, frame("base", epoch, 4))
        assert not writer.wanted_base()
        for seq in (3, 0):
            reader.request_base(epoch, seq)
            assert not writer.wanted_base()


def check_request_for_a_base_outlives_who_asked(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer:
        epoch = writer.open_epoch()
        publish(writer, epoch, 0, 1)
    with opened(open_channel) as reader:
        reader.request_base(epoch, 0)
    with opened(open_channel) as writer:
        assert writer.wanted_base()


def check_request_that_no_replica_can_mean_is_ignored(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer, opened(open_channel) as reader:
        reader.request_base(1, 0)
        assert not writer.wanted_base()  # the first base comes unasked
        epoch = writer.open_epoch()
        publish(writer, epoch, 5, 7)
        for beyond in ((epoch, 8), (epoch + 1, 0), (epoch, 1 << 62)):
            reader.request_base(*beyond)
            assert not writer.wanted_base()
        reader.request_base(epoch, 6)
        assert writer.wanted_base()


def check_wait_wakes_on_publication_by_another(open_channel: OpenChannel) -> None:
    with opened(open_channel) as writer, opened(open_channel) as reader:
        epoch = writer.open_epoch()
        publish(writer, epoch, 0, 0)
        results: list[bool] = []
        waiter = threading.Thread(
            target=lambda: results.append(reader.wait(epoch, 0, timeout_s=DEADLINE_S))
        )
        waiter.start()
        begun_s = time.monotonic()
        writer.publish_delta(epoch, 1, b"delta")
        waiter.join(DEADLINE_S)
        assert results == [True]
        assert time.monotonic() - begun_s < DEADLINE_S / 2
        assert not reader.wait(epoch, 1, timeout_s=0.02)


def check_close_wakes_waiters(open_channel: OpenChannel) -> None:
    channel = open_channel()
    is_waiting = threading.Event()
    results: list[bool] = []

    def wait() -> None:
        is_waiting.set()
        results.append(channel.wait(0, 0, timeout_s=DEADLINE_S))

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert is_waiting.wait(DEADLINE_S)
    begun_s = time.monotonic()
    channel.close()
    waiter.join(DEADLINE_S)
    assert results == [False]
    assert time.monotonic() - begun_s < DEADLINE_S / 2


def check_reader_never_sees_half_a_publication(open_channel: OpenChannel) -> None:
    """A replica that follows while bases and deltas come always finds whole, connected frames."""
    n_bytes, last_seq = 200_000, 60
    with opened(open_channel) as writer, opened(open_channel) as reader:
        epoch = writer.open_epoch()
        writer.publish_base(epoch, 0, frame("base", epoch, 0, n_bytes))
        wrong: list[object] = []

        def follow() -> None:
            at = 0
            while at < last_seq and reader.wait(epoch, at, timeout_s=DEADLINE_S):
                delta = reader.delta(epoch, at + 1)
                if delta is not None:
                    at += 1
                    if delta != frame("delta", epoch, at, n_bytes):
                        wrong.append(("delta", at, delta[:40]))
                    continue
                base = reader.base()
                if base is None or base[2] != frame("base", epoch, base[1], n_bytes):
                    wrong.append(("base", at, base and base[:2]))
                    return
                if base[1] < at:
                    wrong.append(("base behind a trimmed delta", at, base[:2]))
                at = max(at, base[1])
            if at < last_seq:
                wrong.append(("stopped", at))

        follower = threading.Thread(target=follow)
        follower.start()
        for seq in range(1, last_seq + 1):
            writer.publish_delta(epoch, seq, frame("delta", epoch, seq, n_bytes))
            if seq % 10 == 0:
                writer.publish_base(epoch, seq, frame("base", epoch, seq, n_bytes))
        follower.join(DEADLINE_S)
        assert not follower.is_alive()
        assert wrong == []


def check_one_of_two_writers_wins_each_epoch(open_channel: OpenChannel) -> None:
    with opened(open_channel) as first, opened(open_channel) as second:
        epochs: list[int] = []

        def claim(channel: ParameterChannel) -> None:
            for _ in range(10):
                epochs.append(channel.open_epoch())

        threads = [threading.Thread(target=claim, args=(one,)) for one in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert sorted(epochs) == list(range(min(epochs), min(epochs) + 20))


CHANNEL_CHECKS: Final[list[Check]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
