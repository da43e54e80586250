"""History: where an archive leads on to a log, so that each example is learned once."""

from collections.abc import Iterator, Sequence

from freshrank.transport.base import EXAMPLES, EventLog
from trainer.archive_reader import Archive, Part, gap
from trainer.queue import Position, ReadRecord
from trainer.state import TrainerState


def begin(
    archive: Archive | None, state: TrainerState, log: EventLog, *, is_fresh: bool
) -> Iterator[ReadRecord]:
    """Enter the archive's partitions into a state's positions, so that each record counts once.

    Records of the log that the state follows keep their offsets: those the state has dealt with are
    passed over, and the log goes on behind the archive. Other logs get positions of their own.

    Args:
        archive: What will be read, if anything.
        state: Its positions are moved.
        log: What will be read afterwards.
        is_fresh: The state has learned nothing.

    Returns:
        The records of the archive to be learned before the log.

    Raises:
        DataError: records are missing between what was learned, archive and log (`archive-gap`).
    """
    if archive is None:
        return iter(())
    skipped = set()
    for (identity, partition), parts in archive.lineages().items():
        number = state.number(identity, partition)
        first, end = parts[0].name.first, parts[-1].name.last + 1
        if number < 0:
            enter(archive, state, parts)
            continue
        start = log.start_offset(EXAMPLES, partition)
        if is_fresh and first < start:
            state.positions[number] = Position(first, 0)
        at = state.positions[number].offset
        if at < first:
            if at < start and not archive.allow_gaps:
                raise gap("neither archive nor log has", at, min(first, start), parts[0].name)
            if start <= first:
                skipped.add(number)  # the log alone leads on
                continue
            at = first
            state.positions[number] = Position(at, 0)
        if max(at, end) < start and not archive.allow_gaps:
            raise gap("neither archive nor log has", max(at, end), start, parts[0].name)
    return archive.records(state, skipped)


def enter(archive: Archive, state: TrainerState, parts: Sequence[Part]) -> None:
    """Let a partition that no log continues begin with its first file, or where it was left.

    Raises:
        DataError: it was left before the first file (code `archive-gap`).
    """
    name = parts[0].name
    number = state.number(name.log, name.partition)
    at = state.positions.get(number)
    if at is not None and at.offset < name.first and not archive.allow_gaps:
        raise gap(f"{archive.directory} has no longer", at.offset, name.first, name)
    if at is None or at.offset < name.first:
        state.positions[number] = Position(name.first, 0)
