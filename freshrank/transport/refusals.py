"""Why a parameter channel refuses a publication, in the same words whatever carries it."""

from freshrank.errors import SyncError


def wrong_epoch(epoch: int, opened: int) -> SyncError:
    """Of a writer of `epoch` where `opened` is the newest the channel knows."""
    if opened > epoch:
        return SyncError(
            f"epoch {epoch} cannot publish, the newest opened is {opened}: another trainer took "
            "over; stop this one",
            code="fenced",
        )
    return SyncError(
        f"epoch {epoch} cannot publish, the channel knows none after {opened}: it was emptied or "
        "put back to an earlier state; open another epoch and publish a base",
        code="lost",
    )


def older_base(epoch: int, seq: int, base_seq: int) -> SyncError:
    """Of a base before the last one."""
    return SyncError(
        f"base {seq} of epoch {epoch} is older than base {base_seq}: publish the newest state, or "
        "open a new epoch to go back",
        code="gap",
    )


def no_successor(epoch: int, seq: int, at: str) -> SyncError:
    """Of a delta that does not follow `at`, which is published."""
    return SyncError(
        f"delta {epoch}-{seq} does not follow what is published ({at}): publish a base instead",
        code="gap",
    )
