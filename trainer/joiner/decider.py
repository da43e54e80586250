"""What becomes of each record, in merged order; nothing is visible before the round commits."""

from typing import Final

from freshrank.errors import DataError
from freshrank.feature_updates import Forgotten
from freshrank.live import LiveFeatures
from freshrank.messages import Action, Control
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS
from trainer.joiner.admission import Admission
from trainer.joiner.cache import Cache
from trainer.joiner.ledger import Ledger
from trainer.joiner.merge import Head, Shown, Timers
from trainer.joiner.requests import Acted, Parked, Part, Request
from trainer.joiner.rules import Rules
from trainer.joiner.times import milliseconds

# A request is written whole each time it changes: this bounds it to some 100 KB when somebody sends
# actions on a request that nobody ever made.
PARKED_MAX: Final = 1_000


class Decider:
    """Applies records and timers to requests and collects what follows.

    Args:
        settings: Join is read.
        live: Says what feature state wants.
        rules: Which rows leave.
        cache: Requests and event ids; what a round needs was fetched.
        partition: Of both input topics.

    Attributes:
        ledger: The results of the round.
        timers: What falls due in the round.
    """

    def __init__(
        self,
        settings: Settings,
        live: LiveFeatures,
        rules: Rules,
        cache: Cache,
        partition: int,
    ) -> None:
        self._rules = rules
        self._cache = cache
        self._partition = partition
        self._window_ms, _, self._lateness_ms, self._dedup_ms = milliseconds(settings)
        self._is_reported = settings.join.impressions == "reported"
        self._is_at_once = settings.join.emit == "at_once"
        self._admission = Admission(settings)
        self._live = live
        self.begin()

    def begin(self) -> None:
        """Start a round."""
        self.ledger = Ledger(self._partition)
        self.timers = Timers([], is_complete=True)
        self._rules.take_counts()

    def finish(self) -> Ledger:
        """The round with its totals complete."""
        self.ledger.count(self._rules)
        return self.ledger

    def process(self, head: Head, watermark_ms: int) -> None:
        """Decide on a record; the watermark already counts it."""
        totals = self.ledger.totals
        if isinstance(head.message, Action):
            totals["accepted_actions"] += 1
            self._action(head, head.message, watermark_ms)
        elif isinstance(head.message, Shown):
            totals["accepted_impressions"] += 1
            self._impression(head, head.message, watermark_ms)
        elif isinstance(head.message, Control):
            self._forget(head.message, watermark_ms)
        elif head.error is not None:
            is_action = head.record.topic == ACTIONS
            totals["accepted_actions" if is_action else "accepted_impressions"] += 1
            self._bury(head, head.error)

    def _forget(self, control: Control, watermark_ms: int) -> None:
        """Drop what is known of a user, as if the records until here had named nobody.

        Items of other users' requests stay: the trainer learns nothing of their rows.
        """
        self.ledger.forgotten.append(Forgotten(control.slot, control.id, control.ts_ms))
        if control.slot != "user_id":
            return
        self._admission.forget(control.id, self.ledger.seen)
        for request in self._cache.load_of_user(control.id, watermark_ms):
            is_own = self._cache.is_of(request.user, control.id)
            gone = [
                (at_ms, one)
                for at_ms, one in request.parked
                if is_own or self._cache.is_of(one.user, control.id)
            ]
            request.parked = [one for one in request.parked if one not in gone]
            for _, action in gone:
                self.ledger.totals["pending"] -= 1
                self._settle(action, "unmatched")
            if is_own:
                self._rules.give_up(request)
                for held in request.held:
                    self.ledger.tell(ACTIONS, held.offset, "unmatched")
            if is_own or not (request.parked or request.purge_at_ms):
                self._drop(request)
            else:
                self._put(request)

    def _bury(self, head: Head, error: DataError) -> None:
        is_action = head.record.topic == ACTIONS
        self.ledger.totals["dead_letter" if is_action else "impressions_dead_letter"] += 1
        self.ledger.bury(head.record, error)

    def pass_time(self, watermark_ms: int, n_rows_max: int) -> bool:
        """Let time pass up to the watermark; False when the rest has to wait for the next round."""
        while self.ledger.n_rows < n_rows_max:
            due = self.timers.pop(watermark_ms)
            if due is None:
                return self.timers.next_ms > watermark_ms
            self._fire(*due)
        return False

    def _fire(self, due_at_ms: int, request_id: str) -> None:
        """Let time pass for a request, if it still falls due then."""
        request = self._cache.get(request_id)
        if request is None or request.due_at_ms != due_at_ms:
            return
        if request.is_armed and request.close_at_ms <= due_at_ms:
            request.is_armed = False
            for held in request.held:
                self.ledger.tell(ACTIONS, held.offset, "trained")
            self.ledger.leave(self._rules.close(request))
        if request.parked:
            expired = [action for at_ms, action in request.parked if at_ms <= due_at_ms]
            request.parked = request.parked[len(expired) :]
            for action in expired:
                self.ledger.totals["pending"] -= 1
                self._settle(action, "unmatched")
        if request.parked or request.purge_at_ms:
            self._put(request)
        else:
            self._drop(request)

    def _action(self, head: Head, action: Action, watermark_ms: int) -> None:
        record, seen = head.record, self.ledger.seen
        expires_at_ms = seen.get(head.key, self._cache.seen.get(head.key))
        if expires_at_ms is not None and expires_at_ms > watermark_ms:
            self.ledger.totals["duplicate"] += 1
            self.ledger.tell(ACTIONS, record.offset, "duplicate")
            return
        seen[head.key] = head.time_ms + self._dedup_ms
        parked = Parked(
            record.offset,
            record.appended_at_ms,
            head.time_ms,
            action.event_id,
            action.item,
            action.event,
            action.user,
            action.value,
        )
        request = self._known(action.request_id, watermark_ms)
        outcome = self._decide(request, parked, watermark_ms)
        if outcome is not None:
            self._settle(parked, outcome)
            return
        # An action counts up to window + allowed_lateness after its impression; as long an
        # impression may come after its action. Then the action is an orphan.
        request = request or self._cache.add(action.request_id)
        if len(request.parked) >= PARKED_MAX:
            self._settle(parked, "unmatched")
            return
        request.park(parked, head.time_ms + self._window_ms + self._lateness_ms)
        self.ledger.totals["pending"] += 1
        self.ledger.tell(ACTIONS, record.offset, "pending")
        self._put(request)

    def _decide(self, request: Request | None, action: Parked, watermark_ms: int) -> str | None:
        """What becomes of an action; None when its impression may still come."""
        if request is None or not request.purge_at_ms:
            return None
        if max(watermark_ms, action.time_ms - 1) >= request.purge_at_ms:
            return "late"
        try:
            row = request.items.index(action.item)
        except ValueError:
            return "unmatched" if request.is_complete(is_reported=self._is_reported) else None
        outcome = "trained"
        if action.event not in self._rules.by_event:
            outcome = "recorded"
        else:
            rows = self._rules.label(request, row, action)
            if rows is None:
                return "duplicate"
            self.ledger.leave(rows)
            self._put(request)
            if not rows:
                outcome = "pending"
        if action.event in self._live.events:
            (number,) = request.numbers([row])
            self.ledger.acted.append(Acted(number, action, action.user or request.user))
        return outcome

    def _settle(self, action: Parked, outcome: str, *, was_parked: bool = False) -> None:
        is_matched = outcome in ("trained", "recorded", "pending")
        self.ledger.totals["matched" if is_matched else outcome] += 1
        if outcome != "trained" or was_parked:
            self.ledger.tell(ACTIONS, action.offset, outcome)

    def _impression(self, head: Head, impression: Shown, watermark_ms: int) -> None:
        request = self._known(impression.request_id, watermark_ms)
        if not (request and request.purge_at_ms):
            seen = self._cache.seen, self.ledger.seen
            if refusal := self._admission.admit(head, watermark_ms, *seen):
                self._bury(head, refusal)
                return
        request = request or self._cache.add(impression.request_id)
        role = impression.source if self._is_reported else "served"
        if not request.accept(role, impression, watermark_ms):
            self.ledger.totals["impressions_duplicate"] += 1
            self.ledger.tell(IMPRESSIONS, head.record.offset, "duplicate")
            return
        self.ledger.totals["impressions_joined"] += 1
        if role == "client":
            request.named = [*request.named, *impression.items]
        else:
            record, part = head.record, len(request.parts)
            request.parts = (*request.parts, Part(impression.items, head.first_row))
            self.ledger.parts.append((request.number, part, record.appended_at_ms, record.value))
        request.user = request.user or impression.user
        if role != "rank" and not request.close_at_ms:
            request.time_ms = head.time_ms
            request.close_at_ms = max(head.time_ms + self._window_ms, 1)
            request.is_armed = not self._is_at_once
            self._retain(request, request.close_at_ms)
        elif not request.purge_at_ms:
            self._retain(request, max(head.time_ms + self._window_ms, 1))
        n_new = self._make_live(request, watermark_ms)
        if n_new and not self._is_at_once:
            request.is_armed = True
        self._put(request)

    def _make_live(self, request: Request, watermark_ms: int) -> int:
        """Make items live, decide the actions that waited for them, then let negatives leave."""
        n_new = request.make_live(len(self._rules.tasks), is_reported=self._is_reported)
        self.ledger.totals["impression_items"] += n_new
        if n_new and self._live.counts_impressions:
            n_items, time_ms = len(request.items), request.time_ms
            numbers = request.numbers(range(n_items - n_new, n_items))
            self.ledger.shown += [(number, time_ms) for number in numbers]
        if request.parked:
            self._decide_waiting(request, watermark_ms)
        self.ledger.leave(self._rules.opened(request, n_new))
        return n_new

    def _decide_waiting(self, request: Request, watermark_ms: int) -> None:
        waiting, request.parked = request.parked, ()
        # They expire in order of event time, but the first to arrive is the first to be decided.
        for expires_at_ms, action in sorted(waiting, key=lambda entry: entry[1].offset):
            outcome = self._decide(request, action, watermark_ms)
            if outcome is None:
                request.park(action, expires_at_ms)
                continue
            self.ledger.totals["pending"] -= 1
            self._settle(action, outcome, was_parked=True)

    def _retain(self, request: Request, close_at_ms: int) -> None:
        request.purge_at_ms = close_at_ms + self._lateness_ms
        # A repeated impression counts as a duplicate for as long as a repeated action does.
        request.forget_at_ms = request.purge_at_ms + self._dedup_ms

    def _known(self, request_id: str, watermark_ms: int) -> Request | None:
        request = self._cache.get(request_id)
        if request is None or not request.forget_at_ms or request.parked:
            return request
        if request.forget_at_ms > watermark_ms:
            return request
        self._drop(request)
        return None

    def _put(self, request: Request) -> None:
        self.ledger.changed[request.number] = request
        due_at_ms = request.due_at_ms
        if due_at_ms is not None:
            self.timers.push((due_at_ms, request.request_id))

    def _drop(self, request: Request) -> None:
        self._cache.drop(request)
        self.ledger.changed.pop(request.number, None)
        self.ledger.gone.append(request.number)
