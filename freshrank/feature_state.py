"""Feature state: what users did lately and how often, written by the joiner, read by the service.

Updates commute: sets are ordered by (time, event id), sums decay to a reference time. A round of
the joiner is applied once, however often it is sent. A read sees what happened strictly before it.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np

from embedding_store import hash_strings
from freshrank._live import Rings, Series
from freshrank.errors import SchemaError
from freshrank.feature_updates import Did, FeatureUpdates, Forgotten, StateAnswer, StateQuery
from freshrank.settings import Settings
from freshrank.state_layout import StateLayout
from freshrank.transport.files import make_directory, replace_file

__all__ = [
    "Did",
    "FeatureState",
    "FeatureUpdates",
    "LocalFeatureState",
    "StateAnswer",
    "StateQuery",
    "StateReader",
]

logger = logging.getLogger(__name__)

FORMAT: Final = 1
# Updates that a restart may have to apply again before the state is saved: about 0.1 s of work. A
# round is 20 us of it, whatever is in it. A state of more keys waits for as many updates.
UNSAVED_MAX: Final = 1 << 20
_ROUND_UPDATES: Final = 200
_TEXTS_MIN: Final = 4_096
# An entry of this time reads as nothing, is as good as none to whoever adds, and is swept.
_LONG_PAST_MS: Final = -(1 << 62)


class StateReader(Protocol):
    """What a request needs of feature state."""

    def read(self, query: StateQuery) -> StateAnswer:
        """Everything one request asks, at once."""


class FeatureState(StateReader, Protocol):
    """Where the joiner writes and the service reads."""

    def apply(self, updates: FeatureUpdates) -> None:
        """A round of the joiner, unless all its marks were reached before."""

    @property
    def saved(self) -> Mapping[str, int]:
        """Marks that outlive this process: rounds up to them need not be sent again."""

    def close(self) -> None:
        """Release what is held."""


class LocalFeatureState:
    """In process, safe for threads.

    Args:
        settings: Features and salt are read.
        path: File to keep it in; None keeps it in memory only.

    Raises:
        SchemaError: the file is not one of ours, or of a newer version.

    Example:
        >>> recent = {"name": "clicks", "type": "recent", "event": "click", "max_len": 2}
        >>> item = {"name": "item_id", "type": "id", "scope": "item"}
        >>> state = LocalFeatureState(Settings.model_validate(
        ...     {"features": [item, recent], "tasks": [{"name": "click", "event": "click"}]}))
        >>> did = [("click", "u1", Did(10, "a", "i1")), ("click", "u1", Did(30, "c", "i3"))]
        >>> state.apply(FeatureUpdates(did=did, marks={"freshrank.actions:0": 2}))
        >>> state.read(StateQuery(30, {}, "u1")).recent
        {'click': ['i1']}
        >>> state.read(StateQuery(31, {}, "u1")).recent
        {'click': ['i3', 'i1']}
    """

    def __init__(self, settings: Settings, path: Path | None = None) -> None:
        self._path = path
        self._layout = layout = StateLayout(settings)
        self.series = {
            name: Series(kind=spec.kind, span_ms=spec.span_ms)
            for name, spec in layout.series.items()
        }
        self.rings = {event: Rings(n_max=n) for event, n in layout.ring_lengths.items()}
        self._texts: dict[int, str] = {}  # of items with string ids
        self._forgotten: dict[int, int] = {}  # user -> event time of the command
        self._n_texts_max = _TEXTS_MIN
        self._lock = threading.Lock()  # of the writers
        self._marks: dict[str, int] = {}
        self._saved: dict[str, int] = {}
        self._n_unsaved = 0
        if path is not None and path.exists():
            self.restore(path.read_bytes())
            self._saved = dict(self._marks)

    @property
    def saved(self) -> Mapping[str, int]:
        """Marks of the file."""
        return self._saved

    def close(self) -> None:
        """Nothing is held."""

    def read(self, query: StateQuery) -> StateAnswer:
        """Everything one request asks."""
        values = {
            name: self.series[name].read(keys, np.full(len(keys), query.before_ms, np.int64))
            for name, keys in query.keys.items()
        }
        recent: dict[str, list[str]] = {}
        if query.user is not None and (self.rings or self._forgotten):
            user, at = self._layout.tokens("user_id", [query.user]), np.array([query.before_ms])
            if (forgotten_ms := self._forgotten.get(int(user[0]))) is not None:
                self._layout.hide(values, query.before_ms, forgotten_ms)
            for event, rings in self.rings.items():
                recent[event] = list(self._items(rings.read(user, at)[0].tolist()))
        return StateAnswer(values, recent)

    def apply(self, updates: FeatureUpdates) -> None:
        """A round of the joiner; saves the state now and then."""
        with self._lock:
            marks = updates.marks
            if marks and all(self._marks.get(log, -1) >= at for log, at in marks.items()):
                return
            for one in updates.forgotten:
                self._forget(one)
            for name, (keys, ts_ms) in updates.events.items():
                if name in self.series:  # else of an earlier configuration
                    self.series[name].add(keys, ts_ms)
                    self._n_unsaved += len(keys)
            self._did(updates.did)
            self._n_unsaved += _ROUND_UPDATES
            self._marks |= {log: max(at, self._marks.get(log, at)) for log, at in marks.items()}
            n_keys = sum(map(len, self.series.values()))
            # What is forgotten leaves the file, and the rounds that writers keep.
            if updates.forgotten or self._n_unsaved > max(UNSAVED_MAX, n_keys):
                try:
                    self._save()
                except OSError as error:  # the writer keeps its rounds
                    logger.warning("feature_state=%s state=not-saved error=%s", self._path, error)

    def snapshot(self) -> bytes:
        """Everything, as `restore` takes it."""
        series = {n: [a.tobytes() for a in one.entries()] for n, one in self.series.items()}
        rings = {n: [a.tobytes() for a in one.entries()] for n, one in self.rings.items()}
        content = [FORMAT, self._marks, series, rings, self._texts]
        return msgspec.msgpack.encode([*content, *filter(None, [self._forgotten])])

    def restore(self, value: bytes) -> None:
        """Take what `snapshot` wrote; series that the configuration lacks are left out.

        Raises:
            SchemaError: it is not one of ours, or of a newer version.
        """
        try:
            version, *content = msgspec.msgpack.decode(value, strict=False)
            if version == FORMAT:
                self._take(*content)
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise SchemaError(
                f"feature state is damaged: {error}; restore a backup, or delete "
                f"{self._path} to begin with nothing known"
            ) from error
        if version != FORMAT:
            raise SchemaError(
                f"feature state in {self._path} has format {version}, this program reads {FORMAT}: "
                "start the version that wrote it, or delete the file to begin with nothing known"
            )

    def _take(
        self,
        marks: dict[str, int],
        series: dict[str, list[bytes]],
        rings: dict[str, list[bytes]],
        texts: dict[int, str],
        forgotten: dict[int, int] | None = None,
    ) -> None:
        for name in self.series.keys() & series.keys():
            keys, times, x, y = series[name]
            self.series[name].restore(
                np.frombuffer(keys, np.uint64),
                np.frombuffer(times, np.int64),
                np.frombuffer(x, np.float64),
                np.frombuffer(y, np.float64),
            )
        for event in self.rings.keys() & rings.keys():
            keys, ts_ms, ties, items = rings[event]
            self.rings[event].add(
                np.frombuffer(keys, np.uint64),
                np.frombuffer(ts_ms, np.int64),
                np.frombuffer(ties, np.uint64),
                np.frombuffer(items, np.uint64),
            )
        self._marks = dict(marks)
        self._texts = dict(texts)
        self._forgotten = dict(forgotten or {})

    def _save(self) -> None:
        if self._path is None:
            return
        self._n_unsaved = 0  # also where it fails: the next try is a million updates away
        make_directory(self._path.parent)
        replace_file(self._path, self.snapshot())
        self._saved = dict(self._marks)

    def _forget(self, one: Forgotten) -> None:
        key = np.array([one.id], np.uint64)
        nothing = np.array([_LONG_PAST_MS]), np.zeros(1), np.zeros(1)
        for name in self._layout.keyed_by(one.slot):
            self.series[name].restore(key, *nothing)
        if one.slot not in ("user_id", "item_id"):
            return
        for event, rings in self.rings.items():
            keys, ts_ms, ties, items = rings.entries()
            has_id = (keys if one.slot == "user_id" else items) == key
            if has_id.any():
                kept = Rings(n_max=self._layout.ring_lengths[event])
                kept.add(keys[~has_id], ts_ms[~has_id], ties[~has_id], items[~has_id])
                self.rings[event] = kept
        if one.slot == "item_id":
            self._texts.pop(one.id, None)
        elif self._layout.pairs:
            since_ms = one.ts_ms - self._layout.pairs_ms
            known = {user: at for user, at in self._forgotten.items() if at >= since_ms}
            self._forgotten = known | {one.id: max(one.ts_ms, known.get(one.id, one.ts_ms))}

    def _did(self, did: Iterable[tuple[str, str, Did]]) -> None:
        by_event: dict[str, list[tuple[str, Did]]] = {}
        for event, user, one in did:
            by_event.setdefault(event, []).append((user, one))
        for event in by_event.keys() & self.rings.keys():
            users, done = zip(*by_event[event], strict=True)
            items = self._layout.tokens("item_id", [one.item for one in done])
            if self._layout.has_text_items:
                self._texts |= zip(items.tolist(), (one.item for one in done), strict=True)
            self.rings[event].add(
                self._layout.tokens("user_id", users),
                np.array([one.ts_ms for one in done], np.int64),
                hash_strings([one.event_id for one in done], self._layout.salt),
                items,
            )
            self._n_unsaved += len(done)
        if len(self._texts) > self._n_texts_max:
            kept = {token for rings in self.rings.values() for token in rings.entries()[3].tolist()}
            self._texts = {token: text for token, text in self._texts.items() if token in kept}
            self._n_texts_max = max(_TEXTS_MIN, 2 * len(self._texts))

    def _items(self, tokens: Sequence[int]) -> Iterator[str]:
        if not self._layout.has_text_items:
            return map(str, tokens)
        texts = self._texts  # a writer may put shorter ones in their place
        return (texts[token] for token in tokens if token in texts)
