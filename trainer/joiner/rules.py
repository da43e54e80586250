"""Which rows leave for an item, by the state of its tasks. Pure but for the request it changes.

An item's tasks have one status each (`requests`). Weights of a (request, item, task) sum to 1, or
to 0 when it was sampled out.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from freshrank.settings import Settings
from trainer.joiner.requests import (
    HELD,
    N_STATUSES,
    NEGATIVE,
    PENDING,
    POSITIVE,
    SAMPLED_OUT,
    Held,
    Parked,
    Request,
)

_HASH_RANGE: Final = 1 << 64
# Requests of few items share few patterns of statuses; 1,024 of 200 items take 10 MB.
_PLANS_MAX: Final = 1_024


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Example rows of one request that leave together and say the same.

    Attributes:
        request: Their request.
        rows: They index `request.items`.
        appended_at_ms: Of the action that decided them; None where the impression's own counts.
        is_first: The first of them is the first of its request.
        is_reversal: Part of a reversal pair.
        labels: Per task.
        weights: Per task.
    """

    request: Request
    rows: Sequence[int]
    appended_at_ms: int | None
    is_first: bool
    is_reversal: bool
    labels: tuple[float, ...]
    weights: tuple[float, ...]


class _Plan(NamedTuple):
    """What becomes of undecided items with given statuses.

    Attributes:
        after: Their statuses afterwards.
        groups: Rows that leave, counted from the first item, and the weights they share.
        moves: (task, status) -> by how much the number of items changes.
    """

    after: bytes
    groups: list[tuple[list[int], tuple[float, ...]]]
    moves: list[tuple[int, int, int]]


class Rules:
    """The rules of one configuration.

    Args:
        settings: Tasks, join and salt are read.

    Attributes:
        tasks: Task names in configuration order.
        keep_rates: Per task, the share of negatives that is kept; 1 without sampling.
        by_event: Event -> the tasks it labels.
        fingerprint: What stored requests depend on; others cannot be continued.
    """

    def __init__(self, settings: Settings) -> None:
        self.tasks = [task.name for task in settings.tasks]
        self.has_negative = tuple(task.negative is not None for task in settings.tasks)
        self.keep_rates = tuple(
            task.negative.sample_rate if task.negative else 1.0 for task in settings.tasks
        )
        self.by_event: dict[str, tuple[int, ...]] = {}
        for t, task in enumerate(settings.tasks):
            self.by_event[task.event] = (*self.by_event.get(task.event, ()), t)
        self._is_value = tuple(task.loss == "huber" for task in settings.tasks)
        self._emit = settings.join.emit
        self._salt = settings.salt.to_bytes(8, "little")
        self._is_sampled = any(rate < 1.0 for rate in self.keep_rates)
        self._zeros = (0.0,) * len(self.tasks)
        self._keep_all = (True,) * len(self.tasks)
        self._plan = lru_cache(_PLANS_MAX)(self._make_plan)
        # What the statuses of a stored request mean.
        self.fingerprint = f"{settings.join.impressions} {self._emit} {' '.join(self.tasks)}"
        self._counts = [[0] * N_STATUSES for _ in self.tasks]

    def take_counts(self) -> list[list[int]]:
        """Per task, by how many the items in each status changed since the last call."""
        counts, self._counts = self._counts, [[0] * N_STATUSES for _ in self.tasks]
        return counts

    def opened(self, request: Request, n_new: int) -> list[Rows]:
        """Rows that leave because the last `n_new` items of `request` became live."""
        for counts in self._counts:
            counts[PENDING] += n_new
        if self._emit != "at_once":
            return []
        return self._negatives(request, len(request.items) - n_new, len(request.items))

    def label(self, request: Request, row: int, action: Parked) -> list[Rows] | None:
        """Rows that leave because of an action on a live item; None when it tells nothing new."""
        if self._emit == "at_close" and not request.is_closed:
            return self._hold(request, row, action)
        plain, reversed_ = [], []
        start = row * len(self.tasks)
        for t in self.by_event[action.event]:
            status = request.status[start + t]
            if status == NEGATIVE:
                reversed_.append(t)
            elif status in (PENDING, SAMPLED_OUT):
                plain.append(t)
            else:
                continue
            self._move(request, row, t, POSITIVE)
        if not plain and not reversed_:
            return None
        rows = []
        if plain:
            rows.append(self._positive(request, row, action, plain, is_reversal=False))
        if reversed_:
            rows.append(self._positive(request, row, action, reversed_, is_reversal=True))
            weights = tuple(-1.0 if t in reversed_ else 0.0 for t in range(len(self.tasks)))
            rows.append(
                Rows(request, (row,), action.appended_at_ms, False, True, self._zeros, weights)
            )
        return rows

    def give_up(self, request: Request) -> None:
        """Count the undecided items of a request that is dropped as sampled out: no row leaves."""
        for place, status in enumerate(request.status):
            row, t = divmod(place, len(self.tasks))
            if status == PENDING and self.has_negative[t]:
                self._move(request, row, t, SAMPLED_OUT)

    def close(self, request: Request) -> list[Rows]:
        """Rows that leave because the window has closed, in the order of the items."""
        request.is_closed = True
        if not request.held:
            return self._negatives(request, 0, len(request.items))
        rows = []
        for row in range(len(request.items)):
            held = [one for one in request.held if one.row == row]
            if held:
                rows.append(self._together(request, row, held))
            else:
                rows += self._negatives(request, row, row + 1)
        request.held = ()
        return rows

    def keeps(self, request_id: str, item: str) -> tuple[bool, ...]:
        """Per task, whether this item is kept if it becomes a negative.

        One hash for all tasks: what a task with a low rate keeps, the others keep as well.
        """
        if not self._is_sampled:
            return self._keep_all
        key = f"{len(request_id)}:{request_id}{item}".encode()
        digest = hashlib.blake2b(key, digest_size=8, salt=self._salt).digest()
        share = int.from_bytes(digest, "little") / _HASH_RANGE
        return tuple(share < rate for rate in self.keep_rates)

    def _negatives(self, request: Request, first: int, end: int) -> list[Rows]:
        """A row per item in [first, end) with each undecided task that has a rule and keeps it."""
        start, stop = first * len(self.tasks), end * len(self.tasks)
        keeps: tuple[tuple[bool, ...], ...] = ()
        if self._is_sampled:
            items = request.items[first:end]
            keeps = tuple(self.keeps(request.request_id, item) for item in items)
        plan = self._plan(bytes(request.status[start:stop]), keeps)
        request.status[start:stop] = plan.after
        for t, status, change in plan.moves:
            self._counts[t][status] += change
        leaving = []
        for rows, weights in plan.groups:
            numbers = [first + row for row in rows] if first else rows
            is_first = not request.has_first
            request.has_first = True
            leaving.append(Rows(request, numbers, None, is_first, False, self._zeros, weights))
        return leaving

    def _make_plan(self, before: bytes, keeps: tuple[tuple[bool, ...], ...]) -> _Plan:
        n_tasks = len(self.tasks)
        after = bytearray(before)
        groups: list[tuple[list[int], tuple[float, ...]]] = []
        moves: Counter[tuple[int, int]] = Counter()
        for row in range(len(before) // n_tasks):
            weights = [0.0] * n_tasks
            for t, is_kept in enumerate(keeps[row] if keeps else self._keep_all):
                place = row * n_tasks + t
                if before[place] == PENDING and self.has_negative[t]:
                    after[place] = NEGATIVE if is_kept else SAMPLED_OUT
                    weights[t] = float(is_kept)
                    moves[t, PENDING] -= 1
                    moves[t, after[place]] += 1
            if not any(weights):
                continue
            if groups and groups[-1][1] == tuple(weights):
                groups[-1][0].append(row)
            else:
                groups.append(([row], tuple(weights)))
        return _Plan(bytes(after), groups, [(*move, change) for move, change in moves.items()])

    def _hold(self, request: Request, row: int, action: Parked) -> list[Rows] | None:
        start = row * len(self.tasks)
        tasks = tuple(
            t for t in self.by_event[action.event] if request.status[start + t] == PENDING
        )
        if not tasks:
            return None
        for t in tasks:
            self._move(request, row, t, HELD)
        held = Held(row, tasks, action.value, action.offset, action.appended_at_ms)
        request.held = [*request.held, held]
        return []

    def _together(self, request: Request, row: int, held: list[Held]) -> Rows:
        """One row with the held labels of an item and its negatives."""
        is_first = not request.has_first
        request.has_first = True
        negatives = self._negatives(request, row, row + 1)
        labels = [0.0] * len(self.tasks)
        weights = list(negatives[0].weights) if negatives else [0.0] * len(self.tasks)
        for one in held:
            for t in one.tasks:
                self._move(request, row, t, POSITIVE)
                labels[t] = self._label(t, one.value)
                weights[t] = 1.0
        appended_at_ms = max(one.appended_at_ms for one in held)
        return Rows(request, (row,), appended_at_ms, is_first, False, tuple(labels), tuple(weights))

    def _positive(
        self, request: Request, row: int, action: Parked, tasks: list[int], *, is_reversal: bool
    ) -> Rows:
        labels, weights = [0.0] * len(self.tasks), [0.0] * len(self.tasks)
        for t in tasks:
            labels[t] = self._label(t, action.value)
            weights[t] = 1.0
        is_first = not request.has_first
        request.has_first = True
        return Rows(
            request,
            (row,),
            action.appended_at_ms,
            is_first,
            is_reversal,
            tuple(labels),
            tuple(weights),
        )

    def _label(self, t: int, value: float) -> float:
        return value if self._is_value[t] else 1.0

    def _move(self, request: Request, row: int, t: int, status: int) -> None:
        place = row * len(self.tasks) + t
        self._counts[t][request.status[place]] -= 1
        self._counts[t][status] += 1
        request.status[place] = status
