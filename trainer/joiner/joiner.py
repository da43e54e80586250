"""Joins impressions and actions of one partition into examples (docs/semantics.md, the joiner)."""

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from freshrank.clock import Clock
from freshrank.feature_state import FeatureState
from freshrank.features import FeatureEncoder
from freshrank.live import LiveFeatures
from freshrank.messages import Action, Control
from freshrank.metrics import Reading
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.state_layout import StateLayout
from freshrank.transport.base import EXAMPLES, EventLog, TopicPartition
from trainer.joiner.arena import Arena
from trainer.joiner.cache import Cache
from trainer.joiner.commits import Commits
from trainer.joiner.decider import Decider
from trainer.joiner.features import Features
from trainer.joiner.inputs import TICK_EVERY_MS, Inputs, first_offsets
from trainer.joiner.judge import Judge
from trainer.joiner.ledger import TOTALS, item_totals
from trainer.joiner.merge import Head, Shown, Timers
from trainer.joiner.outbox import Outbox
from trainer.joiner.pace import Pace
from trainer.joiner.rows import Packer, Position
from trainer.joiner.rules import Rules
from trainer.joiner.state import State
from trainer.joiner.times import milliseconds
from trainer.joiner.transacted import Transacted
from trainer.joiner.watch import Watch

if TYPE_CHECKING:
    from freshrank.transport.kafka import KafkaLog
    from freshrank.transport.kafka_transactions import Transactions


class Joiner:
    """The joiner of one partition. One thread steps it; `accounting` may be called from others.

    Args:
        settings: The configuration.
        encoder: Its feature encoder.
        log: The event log.
        partition: Partition of impressions and actions to read and of examples to write.
        database: SQLite file of its state; made when it is not there.
        clock: Says when a drained topic gets a tick; nothing else is decided by it.
        state: Feature state to keep up to date; filled from the database.
        progress: Told what is joined.
        transactions: Of this partition where the log is on Kafka: rounds are committed there, and
            the database is a cache that is brought up to date.
        allow_gaps: Skip what retention removed before this start, and count it.

    Raises:
        SchemaError: the database was written for other tasks.
        TransportError: the database cannot be opened, or is older than the log (`joiner-state`).
    """

    # Bounds of a round: records read per topic, requests that fall due, rows that leave. Which rows
    # leave, and in which order, does not depend on them. A backlog is joined in rounds of 0.3 s.
    n_read_max = 4_000
    n_due_max = 4_000
    n_rows_max = 32_768

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        log: EventLog,
        *,
        partition: int,
        database: Path,
        clock: Clock,
        state: FeatureState,
        progress: Progress,
        transactions: "Transactions | None" = None,
        allow_gaps: bool = False,
    ) -> None:
        self._log = log
        self._partition = partition
        self._clock = clock
        self._progress = progress
        self._allow_gaps = allow_gaps
        self._out_of_order_ms = milliseconds(settings)[1]
        self._closing = threading.Event()
        self._pace = Pace()
        rules = Rules(settings)
        self._total_names = [*TOTALS, *item_totals(rules)]
        self._state = State(
            database,
            is_durable=transactions is None and settings.log.fsync != "never",
            fingerprint=rules.fingerprint,
            salt=settings.salt,
        )
        try:
            arena = Arena(encoder, rules.tasks)
            self._watch = Watch(settings, partition, clock, arena, progress)
            live = LiveFeatures(settings, encoder)
            self._packer = Packer(encoder.schema_hash, arena, rules.tasks, rules.keep_rates)
            users = partial(StateLayout(settings).tokens, "user_id")
            self._judge = Judge(settings, encoder, live, arena, users)
            self._cache = Cache(self._state, arena, users)
            self._decider = Decider(settings, live, rules, self._cache, partition)
            self._features = Features(live, arena, self._state, state)
            self._commits: Commits = (
                Outbox(log, partition, self._state)
                if transactions is None
                else Transacted(
                    cast("KafkaLog", log), partition, self._state, transactions, rules.fingerprint
                )
            )
            self._restore()
        except BaseException:
            self._state.close()
            raise

    def step(self, timeout_s: float) -> int:
        """One round: process what is there, commit it, append what follows from it.

        Args:
            timeout_s: How long to wait for records when there are none. Beyond 0 a round also rests
                as `Pace` says.

        Returns:
            Records processed, ticks included.

        Raises:
            TransportError: the database or the log failed. Either nothing of the round is committed
                and the next step does it again, or all of it and the next step appends the rest.
        """
        if timeout_s > 0:
            self._watch.compared(self._newest_ms)  # a replay never waits: it outruns its clock
            self._closing.wait(self._pace.rest_s)
        if self._is_stale:
            self._restore()
        self._relay()
        self._features.tell()
        n_processed = self._round()
        if n_processed == 0 and timeout_s > 0:
            self._inputs.wait(min(timeout_s, TICK_EVERY_MS / 1_000))
            n_processed = self._round()
        return n_processed

    def drain(self, through_ms: int | None = None) -> None:
        """Process everything in the log, then let time pass so that windows close.

        For replays and tests: a record that comes later with an earlier time may be late. Windows
        close through the event time `through_ms`; by default all that are open.
        """
        self._process_news()
        through_ms = self._state.last_due_ms() if through_ms is None else through_ms
        if through_ms is None:
            return
        time_ms = max(through_ms + self._out_of_order_ms, self._newest_ms + 1)
        self._inputs.tick(time_ms)
        while self._newest_ms < time_ms:
            self.step(0.0)
        self._process_news()

    def accounting(self) -> dict[str, int]:
        """Totals since the beginning, as last committed; `freshrank.accounting` adds them up."""
        return dict(self._totals)

    def readings(self) -> list[Reading]:
        """Metrics, of the last round; any thread may ask."""
        found = self._watch.readings(self._totals, self._here(), len(self._cache))
        return found + self._judge.readings(self._partition)

    def positions(self) -> dict[TopicPartition, int]:
        """What is read next; as `readings`. Of what is read a tick may wait for long."""
        return self._inputs.positions()

    @property
    def clock_behind_s(self) -> float:
        """See `Watch`."""
        return self._watch.clock_behind_s

    def close(self) -> None:
        """Release the database. What is not committed is done again by the next joiner."""
        self._closing.set()
        self._state.close()

    def _restore(self) -> None:
        """Start from what is committed."""
        meta = self._commits.restore()
        self._newest_ms = meta.pop("newest_ms", 0)
        self._cache.reset(meta.pop("next_number", 0))
        offsets = first_offsets(self._log, self._partition, meta, allow_gaps=self._allow_gaps)
        self._inputs = Inputs(self._log, self._partition, self._clock, offsets, self._judge)
        self._totals = dict.fromkeys(self._total_names, 0) | meta
        self._position = self._here()
        self._features.restore()
        self._decider.begin()
        self._is_stale = False

    def _here(self) -> Position:
        return Position(self._inputs.offsets(), self._newest_ms - self._out_of_order_ms)

    def _process_news(self) -> None:
        while self.step(0.0) or self._inputs.has_news:
            pass

    def _round(self) -> int:
        """Fill, merge, commit, relay; again while it only let time pass for many requests."""
        self._pace.begin()
        self._inputs.fill(self.n_read_max)
        self._watch.began(self._inputs)
        if self._state.last_due_ms() is not None:
            self._inputs.pass_time(self._newest_ms, self.n_read_max)
        while True:
            try:
                n_processed, n_news = self._merge()
                ledger = self._decider.ledger
                has_news = bool(n_news or ledger.outcomes or ledger.changed)
                has_changed = has_news or self._commits.is_due
                if has_changed:
                    self._commit()
            except BaseException:
                self._is_stale = True  # memory is ahead of the database
                raise
            if has_changed:
                self._relay()
            if n_processed or not has_changed:
                self._pace.end(n_processed if has_changed else 0)
                return n_processed

    def _merge(self) -> tuple[int, int]:
        """Decide on records in merged order; returns how many there were, and but ticks."""
        inputs, decider = self._inputs, self._decider
        if inputs.next() is None:
            return 0, 0
        ledger, timers = decider.ledger, self._load(inputs.heads())
        n_processed = n_news = 0
        newest_ms, out_of_order_ms = self._newest_ms, self._out_of_order_ms
        while (source := inputs.next()) and ledger.n_rows < self.n_rows_max:
            time_ms = source.heads[0].time_ms
            if time_ms > newest_ms:
                newest_ms = time_ms
            watermark_ms = newest_ms - out_of_order_ms
            if timers.next_ms <= watermark_ms and not decider.pass_time(
                watermark_ms, self.n_rows_max
            ):
                break
            is_forgetting = isinstance(source.heads[0].message, Control)
            if is_forgetting and n_processed:
                break  # what is to be forgotten is looked up in what is committed
            head = source.pop()
            self._newest_ms = newest_ms
            n_processed += 1
            if not head.is_tick:
                decider.process(head, watermark_ms)
                n_news += 1
            if is_forgetting:
                break
        return n_processed, n_news

    def _load(self, heads: list[Head]) -> Timers:
        """Read what these records will ask for, and what may fall due before them."""
        until_ms = max(self._newest_ms, *[h.time_ms for h in heads]) - self._out_of_order_ms
        due = self._state.due(until_ms, self.n_due_max)
        request_ids = [m.request_id for h in heads if isinstance(m := h.message, (Shown, Action))]
        request_ids += [request_id for _, request_id in due]
        self._cache.prefetch(request_ids, self._newest_ms - self._out_of_order_ms)
        self._cache.prefetch_seen([h.key for h in heads if h.key])
        is_complete = len(due) < self.n_due_max
        self._decider.timers = Timers(due, is_complete=is_complete, until_ms=until_ms)
        return self._decider.timers

    def _commit(self) -> None:
        """Write the round: what it read, changed and sends, all or nothing."""
        ledger, here = self._decider.finish(), self._here()
        totals = {name: total + ledger.totals[name] for name, total in self._totals.items()}
        own = {"newest_ms": self._newest_ms, "next_number": self._cache.next_number}
        ledger.meta = {**totals, **here.offsets, **own}
        ledger.watermark_ms = here.watermark_ms
        for record in self._packer.pack(ledger.rows, ledger.outcomes, self._position, here):
            self._commits.put(EXAMPLES, record, ledger)
        for topic, letter in ledger.letters:
            self._commits.put(topic, letter, ledger)
        updates = self._features.updates(ledger.shown, ledger.acted, ledger.forgotten, here.offsets)
        if updates is not None:
            ledger.updates = updates[0], updates[1].to_bytes()
        self._commits.commit(ledger)
        self._totals, self._position = totals, here
        self._watch.committed(ledger.rows)
        if updates is not None:
            self._features.apply(*updates)
        self._cache.settle(ledger.changed.values(), self._inputs.first_row)
        self._decider.begin()

    def _relay(self) -> None:
        """Append what is committed but not yet in the log."""
        self._commits.relay()
        self._progress.reach("joined", self._position.offsets)
