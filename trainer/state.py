"""What the trainer has done so far, besides the parameters: all of it is in every checkpoint."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.frames import Outcome
from trainer.denials import Denial
from trainer.queue import Position

# Append times per frame: enough for a p99 (ten beyond it), 8 kB in a frame.
SAMPLE_MAX: Final = 1_000
# Outcomes kept while nothing can be published; some 60 bytes each, and a frame carries them all.
OUTCOMES_MAX: Final = 10_000


_OWN_FORM: Final = ("denied", "outcomes", "actions", "impressions")  # in a checkpoint
# Totals of what operators did: going back does not undo it.
_OF_COMMANDS: Final = ("rollbacks", "rows_rolled_back", "keys_forgotten", "rows_forgotten")

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class Sample:
    """Keeps the n values whose hashed running number is smallest.

    Every value has the same chance to stay, and the same stream and seed give the same sample, with
    one integer to save instead of a generator's state.

    Args:
        n_max: Values kept.
        seed: Of the hash.

    Source: bottom-k sampling, Cohen & Kaplan 2007, "Summarizing data using bottom-k sketches".
    """

    def __init__(self, n_max: int, seed: int) -> None:
        self._n_max = n_max
        self._seed = np.uint64(seed)
        self._values = np.empty(0, np.int64)
        self._ranks = np.empty(0, np.uint64)
        self.n_seen = 0

    def add(self, values: I64) -> None:
        """Offer `int64[k]`."""
        numbers = np.arange(self.n_seen, self.n_seen + len(values), dtype=np.uint64)
        self.n_seen += len(values)
        ranks = np.concatenate([self._ranks, _splitmix(numbers, self._seed)])
        values = np.concatenate([self._values, values])
        if len(values) > self._n_max:
            keep = np.sort(np.argpartition(ranks, self._n_max)[: self._n_max])
            values, ranks = values[keep], ranks[keep]
        self._values, self._ranks = values, ranks

    def values(self) -> list[int]:
        """The sample, in order of arrival."""
        return [int(value) for value in self._values]

    def clear(self) -> None:
        """Begin the next sample; the running number goes on."""
        self._values, self._ranks = self._values[:0], self._ranks[:0]

    def state(self) -> dict[str, list[int]]:
        """What a checkpoint keeps."""
        return {
            "n_seen": [self.n_seen],
            "values": self.values(),
            "ranks": [int(rank) for rank in self._ranks],
        }

    def restore(self, state: dict[str, list[int]]) -> None:
        """Take over what a checkpoint kept."""
        self.n_seen = state["n_seen"][0]
        self._values = np.array(state["values"], np.int64)
        self._ranks = np.array(state["ranks"], np.uint64)


def _splitmix(numbers: U64, seed: np.uint64) -> U64:
    """One well-mixed hash per number (Steele et al. 2014, splitmix64): `uint64[n]`."""
    x = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + seed
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(slots=True)
class TrainerState:
    """Positions, totals and what the next frame has to say.

    Attributes:
        schema_hash: Of the configuration that learned this.
        seed: Of the samples.
        positions: Examples partition -> first row not dealt with. Below 0 partitions of other logs,
            known from archives: -1 is the first of `histories`.
        log: Identity of the log whose partitions are counted from 0.
        histories: `log:partition` of other logs, in the order met.
        control_offset: Next control record; None before the first read.
        is_paused: The last command was `pause`.
        denied: Ids that were forgotten, while records from before may be learned.
        epoch: Of the last publication.
        seq: Of the last publication.
        dense_version: Of the last publication.
        clock_s: Newest event time learned, in seconds.
        watermark_ms: The same in milliseconds.
        counts: Totals by name.
        offsets: `topic:partition` -> next input offset: all before is decided and learned.
        outcomes: Not published yet.
        actions: Append times of learned actions, not published yet.
        impressions: The same of negatives.
    """

    schema_hash: str
    seed: int
    positions: dict[int, Position]
    log: str = ""
    histories: list[str] = field(default_factory=list)
    control_offset: int | None = None
    is_paused: bool = False
    denied: list[Denial] = field(default_factory=list)
    epoch: int = 0
    seq: int = 0
    dense_version: int = 0
    clock_s: int = 0
    watermark_ms: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    offsets: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    actions: Sample = field(init=False)
    impressions: Sample = field(init=False)

    def __post_init__(self) -> None:
        self.actions = Sample(SAMPLE_MAX, self.seed)
        self.impressions = Sample(SAMPLE_MAX, self.seed + 1)

    @property
    def has_learned(self) -> bool:
        """At least one row was learned."""
        return self.counts["rows_learned"] > 0

    def number(self, log: str, partition: int) -> int:
        """Under which number `positions` has a partition of a log; a new one is entered."""
        if log == self.log:
            return partition
        name = f"{log}:{partition}"
        if name not in self.histories:
            self.histories.append(name)
        return -1 - self.histories.index(name)

    def follow(self, log: str, starts: Mapping[int, Position]) -> None:
        """Go on in another log than before: what was learned stays, as history.

        Args:
            log: Its identity.
            starts: Where its partitions start.
        """
        before, self.log = self.log, log
        if not before:  # an earlier version saved this, and knew of one log only
            return
        own = [partition for partition in self.positions if partition >= 0]
        for partition in own:
            self.positions[self.number(before, partition)] = self.positions.pop(partition)
        for partition, start in starts.items():
            name = f"{log}:{partition}"
            known = -1 - self.histories.index(name) if name in self.histories else partition
            self.positions[partition] = self.positions.get(known, start)
        self.control_offset = None
        self.denied.clear()  # what follows enters it from now on
        self.offsets.clear()
        self.outcomes.clear()

    def rewind(self, then: "TrainerState") -> None:
        """Go back to where an earlier state was in the same log; versions and commands go on."""
        self.positions.update(then.positions)
        self.offsets = dict(then.offsets)
        self.outcomes = list(then.outcomes)
        self.watermark_ms = then.watermark_ms
        kept = {name: self.counts[name] for name in _OF_COMMANDS}
        self.counts.clear()
        self.counts |= then.counts
        for name, count in kept.items():
            self.counts[name] = count
        self.actions.restore(then.actions.state())
        self.impressions.restore(then.impressions.state())

    def from_elsewhere(self, batch: ExampleBatch) -> npt.NDArray[np.bool_]:
        """Account for rows that never stood in this log, learned or not: `bool[n]`."""
        is_foreign: npt.NDArray[np.bool_] = batch.appended_at_ms < 0
        n_reversals = int((batch.is_reversal & is_foreign).sum())
        self.counts["history_examples"] += int(is_foreign.sum()) - n_reversals // 2
        return is_foreign

    def forgot(self, batch: ExampleBatch) -> None:
        """Account for rows that are not learned as they are about what was forgotten."""
        self.counts["examples_forgotten"] += batch.n_rows - int(batch.is_reversal.sum()) // 2
        self.from_elsewhere(batch)

    def learned(self, batch: ExampleBatch) -> None:
        """Account for rows that were learned."""
        n_reversals = int(batch.is_reversal.sum())
        self.counts["rows_learned"] += batch.n_rows
        self.counts["examples_learned"] += batch.n_rows - n_reversals // 2
        # A pair takes back one example: the pairs count, not their rows.
        self.counts["examples_reversed"] += n_reversals // 2
        self.watermark_ms = max(self.watermark_ms, int(batch.ts_ms.max()))
        is_positive = (batch.weights.sum(axis=1) > 0) | batch.is_reversal
        is_positive &= (batch.weights >= 0).all(axis=1) & ~self.from_elsewhere(batch)
        self.actions.add(batch.appended_at_ms[is_positive & batch.is_action])
        self.impressions.add(batch.appended_at_ms[is_positive & ~batch.is_action])

    def finished(self, info: BatchInfo) -> None:
        """Account for a record whose rows are all dealt with."""
        for log, offset in info.offsets.items():
            self.offsets[log] = max(self.offsets.get(log, 0), offset)
        self.outcomes += info.outcomes
        n_too_many = len(self.outcomes) - OUTCOMES_MAX
        if n_too_many > 0:
            self.counts["outcomes_dropped"] += n_too_many
            del self.outcomes[:n_too_many]

    def published(self) -> None:
        """Forget what a frame has told."""
        self.outcomes.clear()
        self.actions.clear()
        self.impressions.clear()

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in _OWN_FORM}
        return plain | {
            "denied": [asdict(denial) for denial in self.denied],
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "actions": self.actions.state(),
            "impressions": self.impressions.state(),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "TrainerState":
        """Read what a checkpoint kept."""
        names = set(TrainerState.__slots__) - {*_OWN_FORM, "positions"}
        positions = {int(p): Position(*at) for p, at in content["positions"].items()}
        # What a later version added has its default.
        plain = {name: content[name] for name in names & content.keys()}
        plain["counts"] = Counter(plain["counts"])
        state = TrainerState(positions=positions, **plain)
        state.denied = [Denial.from_json(one) for one in content.get("denied", ())]
        state.outcomes = [Outcome(**outcome) for outcome in content["outcomes"]]
        state.actions.restore(content["actions"])
        state.impressions.restore(content["impressions"])
        return state
