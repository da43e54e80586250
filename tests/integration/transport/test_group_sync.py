"""Group commit when syncs fail: nobody is told of success who should not be."""

import threading

import pytest

from freshrank.errors import TransportError
from freshrank.transport.group_sync import GroupSync

DEADLINE_S = 20.0


class Disk:
    """Fails the syncs it is told to fail, and lets a test see and hold them."""

    def __init__(self, *, n_failing: int) -> None:
        self.n_failing = n_failing
        self.synced: list[int] = []
        self.is_syncing = threading.Event()
        self.may_go_on = threading.Event()

    def sync_to(self, offset: int) -> None:
        self.is_syncing.set()
        assert self.may_go_on.wait(DEADLINE_S)
        if self.n_failing > 0:
            self.n_failing -= 1
            raise TransportError("the disk is gone", code="disk-error")
        self.synced.append(offset)


def test_waiter_of_a_failed_sync_is_refused_though_the_next_would_succeed() -> None:
    disk = Disk(n_failing=1)
    group = GroupSync(disk.sync_to)
    results: list[str] = []

    def sync(offset: int) -> None:
        try:
            group.sync(offset, 0)
        except TransportError as error:
            results.append(error.code)
        else:
            results.append("acknowledged")

    group.release(1, 100)
    leader = threading.Thread(target=sync, args=(1,))
    leader.start()
    assert disk.is_syncing.wait(DEADLINE_S)
    group.release(2, 200)
    follower = threading.Thread(target=sync, args=(2,))
    follower.start()
    disk.may_go_on.set()
    leader.join(DEADLINE_S)
    follower.join(DEADLINE_S)
    assert results == ["disk-error"] * 2
    assert disk.synced == []
    assert group.acknowledged == (0, 0)


def test_write_of_before_a_restart_is_refused() -> None:
    disk = Disk(n_failing=1)
    disk.may_go_on.set()
    group = GroupSync(disk.sync_to)
    written_in = group.generation
    group.release(2, 200)
    with pytest.raises(TransportError):
        group.sync(2, written_in)
    group.restart(0, 0)
    group.release(5, 500)  # other records took the place of those two
    with pytest.raises(TransportError):
        group.sync(2, written_in)
    group.sync(5, group.generation)
    assert disk.synced == [5]
    assert group.acknowledged == (5, 500)


def test_what_is_acknowledged_is_not_synced_again() -> None:
    disk = Disk(n_failing=0)
    disk.may_go_on.set()
    group = GroupSync(disk.sync_to)
    group.release(3, 300)
    group.sync(2, 0)
    group.sync(3, 0)
    assert disk.synced == [3]
