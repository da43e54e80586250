"""`freshrank dlq`: what was refused and why, and how it comes back into the stream."""

import contextlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import typer

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.commands.topics import full_name
from freshrank.errors import ConfigError
from freshrank.letters import Letter, Put, back, letters, put_back
from freshrank.logs import cluster, open_log
from freshrank.printable import printable
from freshrank.settings import Settings
from freshrank.transport.base import (
    CONSUMED_TOPICS,
    DEAD_LETTER_SUFFIX,
    EventLog,
    NewRecord,
)

_TRANSACTIONAL_ID: Final = "dlq-replay"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters; None and nothing mean any.

    Attributes:
        topics: Where the refused records stood, such as `actions`.
        partition: Theirs, and that of the letters.
        offset: Of the letter in its dead-letter topic.
        reason: Its code.
    """

    topics: tuple[str, ...] = ()
    partition: int | None = None
    offset: int | None = None
    reason: str | None = None

    def letters(self, log: EventLog) -> Iterator[Letter]:
        """Those of the log, oldest first within a partition.

        Raises:
            ConfigError: a topic has no dead letters.
        """
        for topic in map(full_name, self.topics or CONSUMED_TOPICS):
            name = topic.removesuffix(DEAD_LETTER_SUFFIX)
            if name not in CONSUMED_TOPICS:
                raise ConfigError(f"{topic} has no dead letters; {', '.join(CONSUMED_TOPICS)} have")
            name += DEAD_LETTER_SUFFIX
            n_partitions = log.n_partitions(name)
            for partition in range(n_partitions) if self.partition is None else [self.partition]:
                yield from filter(self._is_wanted, letters(log, name, partition))

    def _is_wanted(self, letter: Letter) -> bool:
        is_offset = self.offset in (None, letter.record.offset)
        return is_offset and self.reason in (None, letter.content.code)


def show(
    path: Path, choice: Choice, *, last: int, as_json: bool, environ: Mapping[str, str]
) -> None:
    """Print the last letters; the options are those of `freshrank.cli_groups`.

    Raises:
        ConfigError: the configuration is wrong, or a topic has no dead letters.
        TransportError: the log cannot be read.
    """
    settings = config.load(path, environ=environ)
    with contextlib.closing(open_log(settings, SystemClock(), writable=False)) as log:
        for letter in deque(choice.letters(log), maxlen=last):
            told = _told(letter)
            typer.echo(json.dumps(told) if as_json else printable(_LINE.format_map(told)))


def replay(
    path: Path,
    choice: Choice,
    *,
    limit: int,
    is_dry: bool,
    as_json: bool,
    environ: Mapping[str, str],
) -> None:
    """Put letters back that were not yet; the options are those of `freshrank.cli_groups`.

    Raises:
        ConfigError: the configuration is wrong, or a topic has no dead letters.
        TransportError: the log cannot be read or written, or is in use; what was put back by then
            is marked.
    """
    settings = config.load(path, environ=environ)
    counts: Counter[str] = Counter(put_back=0, put_back_before=0, lost=0, left=0)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(
            contextlib.closing(open_log(settings, SystemClock(), writable=not is_dry))
        )
        chosen = _chosen(log, choice, limit, counts)
        if is_dry:
            counts["put_back"] += sum(1 for _ in chosen)
        else:
            put = stack.enter_context(_put(settings, log))
            for n_letters in put_back(chosen, put):
                counts["put_back"] += n_letters
    if as_json:
        typer.echo(json.dumps({**counts, "dry_run": is_dry}))
    else:
        typer.echo(("would put back" if is_dry else "put back") + _SUMMARY.format_map(counts))


# Of a line of text, and of what was done.
_LINE: Final = (
    "{letter_topic}:{partition}:{letter_offset} {at} {reason} attempt={attempt} "
    "replayed={replayed} bytes={bytes} of {topic}:{partition}:{offset} {detail}"
)
_SUMMARY: Final = (
    " {put_back:,} letters; {put_back_before:,} were put back before, of {lost:,} nothing is left, "
    "{left:,} are over the limit"
)


def _told(letter: Letter) -> dict[str, Any]:
    content, record = letter.content, letter.record
    at = datetime.fromtimestamp(record.appended_at_ms / 1_000, UTC)
    return {
        "topic": content.topic,
        "partition": record.partition,
        "offset": content.offset,
        "letter_topic": record.topic,
        "letter_offset": record.offset,
        "reason": content.code,
        "detail": content.reason,
        "at": at.isoformat(timespec="milliseconds"),
        "bytes": len(content.value),
        "attempt": letter.attempt,
        "replayed": letter.is_replayed,
    }


def _chosen(
    log: EventLog, choice: Choice, limit: int, counts: Counter[str]
) -> Iterator[tuple[Letter, NewRecord]]:
    """Letters to put back, and what is put back; the others are counted."""
    n_chosen = 0
    for letter in choice.letters(log):
        if letter.is_replayed:
            counts["put_back_before"] += 1
        elif n_chosen >= limit:
            counts["left"] += 1
        elif (record := back(log, letter)) is None:
            counts["lost"] += 1
        else:
            n_chosen += 1
            yield letter, record


@contextlib.contextmanager
def _put(settings: Settings, log: EventLog) -> Iterator[Put]:
    if settings.log.kind == "kafka":
        from freshrank.transport.kafka_transactions import Transactions

        transactions = Transactions(cluster(settings.log), _TRANSACTIONAL_ID)
        with contextlib.closing(transactions):
            yield lambda records: transactions.commit(records, group=_TRANSACTIONAL_ID, offsets={})
        return

    def append(records: Mapping[Any, Any]) -> None:
        for (topic, partition), new in records.items():
            log.append(topic, new, partition=partition)

    yield append
