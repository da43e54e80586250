"""Which rows leave for an item, by the state of its tasks. Pure but for the request it changes.

An item's tasks have one status each (`requests`). Weights of a (request, item, task) sum to 1, or
to 0 when it was sampled out.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

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


class Row(NamedTuple):
    """One example row to be written; `row` indexes `request.items`."""

    request: Request
    row: int
    appended_at_ms: int
    is_action: bool
    is_first: bool
    is_reversal: bool
    labels: tuple[float, ...]
    weights: tuple[float, ...]


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
        self._closing: dict[
            tuple[bytes, tuple[bool, ...]], tuple[bytes, tuple[float, ...] | None]
        ] = {}
        # What the statuses of a stored request mean.
        self.fingerprint = f"{settings.join.impressions} {self._emit} {' '.join(self.tasks)}"
        self._counts = [[0] * N_STATUSES for _ in self.tasks]

    def take_counts(self) -> list[list[int]]:
        """Per task, by how many the items in each status changed since the last call."""
        counts, self._counts = self._counts, [[0] * N_STATUSES for _ in self.tasks]
        return counts

    def opened(self, request: Request, n_new: int) -> list[Row]:
        """Rows that leave because the last `n_new` items of `request` became live."""
        for counts in self._counts:
            counts[PENDING] += n_new
        if self._emit != "at_once":
            return []
        first = len(request.items) - n_new
        return self._negatives(request, range(first, len(request.items)))

    def label(self, request: Request, row: int, action: Parked) -> list[Row] | None:
        """Rows that leave because of an action on a live item; None when it tells nothing new."""
        if self._emit == "at_close" and not request.is_closed:
            return self._hold(request, row, action)
        plain, reversed_ = [], []
        for t in self.by_event[action.event]:
            status = request.status[row * len(self.tasks) + t]
            if status == NEGATIVE:
                reversed_.append(t)
            elif status in (PENDING, SAMPLED_OUT):
                plain.append(t)
        for t in plain + reversed_:
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
                Row(request, row, action.appended_at_ms, True, False, True, self._zeros, weights)
            )
        return rows

    def close(self, request: Request) -> list[Row]:
        """Rows that leave because the window has closed, in the order of the items."""
        request.is_closed = True
        if not request.held:
            return self._negatives(request, range(len(request.items)))
        rows = []
        for row in range(len(request.items)):
            held = [one for one in request.held if one.row == row]
            if held:
                rows.append(self._together(request, row, held))
            else:
                rows += self._negatives(request, [row])
        request.held = []
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

    def _negatives(self, request: Request, rows: Sequence[int]) -> list[Row]:
        """One row per item with each undecided task that has a negative rule and keeps it."""
        n_tasks = len(self.tasks)
        leaving = []
        for row in rows:
            start = row * n_tasks
            before = bytes(request.status[start : start + n_tasks])
            if PENDING not in before:
                continue
            keeps = self.keeps(request.request_id, request.item_of(row))
            known = self._closing.get((before, keeps))
            if known is None:
                known = self._closing[before, keeps] = self._decide_negatives(before, keeps)
            after, weights = known
            if after == before:
                continue
            request.status[start : start + n_tasks] = after
            for counts, old, new in zip(self._counts, before, after, strict=True):
                counts[old] -= 1
                counts[new] += 1
            if weights is not None:
                part, _ = request.items[row]
                appended_at_ms = request.parts[part].appended_at_ms
                is_first = not request.has_first
                request.has_first = True
                leaving.append(
                    Row(request, row, appended_at_ms, False, is_first, False, self._zeros, weights)
                )
        return leaving

    def _decide_negatives(
        self, before: bytes, keeps: tuple[bool, ...]
    ) -> tuple[bytes, tuple[float, ...] | None]:
        after = bytearray(before)
        weights = [0.0] * len(before)
        for t, status in enumerate(before):
            if status == PENDING and self.has_negative[t]:
                after[t] = NEGATIVE if keeps[t] else SAMPLED_OUT
                weights[t] = float(keeps[t])
        return bytes(after), tuple(weights) if any(weights) else None

    def _hold(self, request: Request, row: int, action: Parked) -> list[Row] | None:
        tasks = tuple(
            t
            for t in self.by_event[action.event]
            if request.status[row * len(self.tasks) + t] == PENDING
        )
        if not tasks:
            return None
        for t in tasks:
            self._move(request, row, t, HELD)
        request.held.append(Held(row, tasks, action.value, action.offset, action.appended_at_ms))
        return []

    def _together(self, request: Request, row: int, held: list[Held]) -> Row:
        """One row with the held labels of an item and its negatives."""
        negatives = self._negatives(request, [row])
        labels = [0.0] * len(self.tasks)
        weights = list(negatives[0].weights) if negatives else [0.0] * len(self.tasks)
        is_first = negatives[0].is_first if negatives else not request.has_first
        for one in held:
            for t in one.tasks:
                self._move(request, row, t, POSITIVE)
                labels[t] = self._label(t, one.value)
                weights[t] = 1.0
        request.has_first = True
        appended_at_ms = max(one.appended_at_ms for one in held)
        return Row(
            request, row, appended_at_ms, True, is_first, False, tuple(labels), tuple(weights)
        )

    def _positive(
        self, request: Request, row: int, action: Parked, tasks: list[int], *, is_reversal: bool
    ) -> Row:
        n_tasks = len(self.tasks)
        labels = tuple(self._label(t, action.value) if t in tasks else 0.0 for t in range(n_tasks))
        weights = tuple(1.0 if t in tasks else 0.0 for t in range(n_tasks))
        is_first = not request.has_first
        request.has_first = True
        return Row(
            request, row, action.appended_at_ms, True, is_first, is_reversal, labels, weights
        )

    def _label(self, t: int, value: float) -> float:
        return value if self._is_value[t] else 1.0

    def _move(self, request: Request, row: int, t: int, status: int) -> None:
        place = row * len(self.tasks) + t
        self._counts[t][request.status[place]] -= 1
        self._counts[t][status] += 1
        request.status[place] = status
