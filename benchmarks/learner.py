"""A training step of the learner against a plain torch loop: the same net, slots and batches.

    python -m benchmarks.learner [--json]

Batches of 512 rows as a news portal brings them: requests of five candidates, 15 slots in 13
tables, one of them a bag of up to five. The learner gets 64-bit ids, which it counts, admits,
stamps, finds and updates in its store; it keeps the score that a row had before and adds it to the
metrics. The plain loop gets ready row numbers for `nn.Embedding(sparse=True)` and
`torch.optim.Adagrad`. One thread, CPU seconds, the two in turns, the median of five rounds.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import report
from benchmarks.report import Row, row
from embedding_store import mix_ids
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, FeatureEncoder, SlotIds
from freshrank.settings import Settings
from trainer.evaluation import Evaluation
from trainer.learner import Learner
from trainer.models import build_net

I64 = npt.NDArray[np.int64]
Indices = Mapping[str, tuple[Tensor, Tensor | None]]

BATCH, N_SHOWN, N_WARM, N_BATCHES, N_ROUNDS = 512, 5, 60, 60, 5
N_REQUESTS: Final = -(-(N_WARM + N_BATCHES * N_ROUNDS) * BATCH // N_SHOWN)
CONTEXT: Final = {"site": 4, "device": 5, "os": 20, "country": 11, "region": 28, "referrer": 7}
CROSSED: Final = ("last_item", "region", "device", "referrer")
DIM, N_DENSE, N_USERS, N_ITEMS, N_RECENT = 16, 4, 60_000, 10_000, 5
CONFIG: Final[dict[str, Any]] = {
    "features": [
        {"name": "user_id", "type": "id", "scope": "user", "dim": DIM},
        {"name": "item_id", "type": "id", "scope": "item", "dim": DIM, "expire": "14d"},
        *(
            {"name": name, "type": "id", "scope": "context", "dim": DIM}
            for name in (*CONTEXT, "hour")
        ),
        {"name": "last_item", "type": "recent", "event": "click", "max_len": 1},
        {"name": "recent_items", "type": "recent", "event": "click", "max_len": N_RECENT},
        *(
            {"name": f"item_x_{name}", "type": "cross", "of": ["item_id", name], "dim": DIM}
            for name in CROSSED
        ),
        *({"name": f"dense{i}", "type": "dense", "scope": "candidate"} for i in range(N_DENSE)),
    ],
    "tasks": [{"name": "click", "event": "click"}],
}


def run() -> list[Row]:
    """Learn the same batches both ways."""
    settings = Settings.model_validate(CONFIG)
    encoder = FeatureEncoder(settings)
    learner = Learner(settings, encoder)
    evaluation = Evaluation(["click"], ["logloss"])
    stream = raw_stream()
    batches = [batch_of(encoder, stream, start) for start in starts()]
    numbered, n_rows = row_numbers(encoder, stream)
    indices = [indices_of(encoder, numbered, start) for start in starts()]
    plain = PlainTorch(settings, encoder, n_rows)

    def learn(n: int) -> None:
        step = learner.learn(batches[n])
        evaluation.add(batches[n], step.predictions, step.item_age_s)

    def learn_plainly(n: int) -> None:
        dense, labels = batches[n].values.dense, batches[n].labels
        plain.learn(indices[n], torch.from_numpy(dense), torch.from_numpy(labels))

    rates = in_turns({"learner": learn, "torch": learn_plainly})
    return [
        row("learner_examples_per_second", rates["learner"], "examples/CPU s"),
        row("torch_sparse_examples_per_second", rates["torch"], "examples/CPU s"),
        row("learner_vs_torch_sparse", rates["learner"] / rates["torch"], "times", goal=1.5),
    ]


def in_turns(calls: Mapping[str, Callable[[int], None]]) -> dict[str, float]:
    """Median of examples a CPU second, after a warm-up in which most ids are met first."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for start in range(0, N_WARM + N_ROUNDS * N_BATCHES, N_BATCHES):
        for name, call in calls.items():
            start_s = time.process_time()
            for n in range(start, start + N_BATCHES):
                call(n)
            rates[name].append(N_BATCHES * BATCH / (time.process_time() - start_s))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}


class PlainTorch:
    """What one writes without an embedding store: ready row numbers, one matrix per table.

    Args:
        settings: Net, rates and seed.
        encoder: Slots and dense values.
        n_rows: Per table.
    """

    def __init__(
        self, settings: Settings, encoder: FeatureEncoder, n_rows: Mapping[str, int]
    ) -> None:
        torch.set_num_threads(1)
        dim = encoder.tables[0].dim
        self._slots = encoder.slots
        self._tables = {name: nn.Embedding(n, dim + 1, sparse=True) for name, n in n_rows.items()}
        self._net = build_net(
            settings.model.kind,
            n_slots=len(self._slots),
            width=dim + 1,
            n_dense=len(encoder.dense_names),
            n_tasks=1,
            hidden=settings.model.hidden,
            seed=settings.trainer.seed,
        )
        with torch.no_grad():
            for table in self._tables.values():
                table.weight.uniform_(-0.01, 0.01)
        self._adagrad = torch.optim.Adagrad(
            [table.weight for table in self._tables.values()],
            lr=settings.optimizer.sparse.lr,
            initial_accumulator_value=0.1,
        )
        self._adam = torch.optim.Adam(self._net.parameters(), lr=settings.optimizer.dense.lr)

    def learn(self, indices: Indices, dense: Tensor, labels: Tensor) -> Tensor:
        """One step.

        Args:
            indices: Slot -> row numbers, `int64[B]`; or `int64[m]` and the bags' starts.
            dense: `float32[B, K]`.
            labels: `float32[B, 1]`.

        Returns:
            The logits before the step, `float32[B, 1]`.
        """
        rows = torch.stack([self._read(slot.table, *indices[slot.name]) for slot in self._slots], 1)
        z = self._net(rows, dense)
        loss = functional.binary_cross_entropy_with_logits(z, labels, reduction="sum")
        self._adagrad.zero_grad()
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adagrad.step()
        self._adam.step()
        return cast("Tensor", z.detach())

    def _read(self, name: str, numbers: Tensor, starts: Tensor | None) -> Tensor:
        table = self._tables[name]
        if starts is None:
            return cast("Tensor", table(numbers))
        return functional.embedding_bag(numbers, table.weight, starts, mode="mean", sparse=True)


def starts() -> range:
    """First row of every batch."""
    return range(0, (N_WARM + N_ROUNDS * N_BATCHES) * BATCH, BATCH)


def raw_stream() -> dict[str, tuple[I64, I64]]:
    """Slot -> (values, offsets) of every row; popular values are frequent, as 1 / rank."""
    rng = np.random.default_rng(7)

    def popular(n_values: int, n: int) -> I64:
        return (n_values ** rng.random(n)).astype(np.int64) - 1

    per_request = {
        "user_id": rng.integers(0, N_USERS, N_REQUESTS),
        "hour": np.arange(N_REQUESTS) * 24 // N_REQUESTS,
        **{name: popular(n, N_REQUESTS) for name, n in CONTEXT.items()},
    }
    rows = {name: np.repeat(values, N_SHOWN) for name, values in per_request.items()}
    rows["item_id"] = popular(N_ITEMS, N_REQUESTS * N_SHOWN)
    n_rows = N_REQUESTS * N_SHOWN
    singles = np.arange(n_rows + 1)
    stream = {name: (values, singles) for name, values in rows.items()}
    lengths = rng.integers(0, N_RECENT + 1, N_REQUESTS)
    for name, length in (("recent_items", lengths), ("last_item", np.minimum(lengths, 1))):
        offsets = np.concatenate([[0], np.cumsum(np.repeat(length, N_SHOWN))])
        recent = popular(N_ITEMS, N_REQUESTS * N_RECENT).reshape(N_REQUESTS, N_RECENT)
        is_kept = np.arange(N_RECENT) < np.repeat(length, N_SHOWN)[:, None]
        stream[name] = np.repeat(recent, N_SHOWN, axis=0)[is_kept], offsets
    for name in CROSSED:
        values, offsets = stream[name]
        items = rows["item_id"][np.diff(offsets) > 0]
        stream[f"item_x_{name}"] = items * N_ITEMS + values, offsets
    return stream


def batch_of(
    encoder: FeatureEncoder,
    stream: Mapping[str, tuple[I64, I64]],
    start: int,
    n_shown: int = N_SHOWN,
) -> ExampleBatch:
    """A batch as the trainer gets it.

    Args:
        encoder: Slots and dense values.
        stream: Slot -> (values, offsets) of all rows.
        start: The batch's first row.
        n_shown: Rows of a request.
    """
    rng = np.random.default_rng(start)
    slots = {}
    for slot in encoder.slots:
        values, offsets = stream[slot.name]
        own = offsets[start : start + BATCH + 1]
        ids = values[own[0] : own[-1]].astype(np.uint64)
        salt = np.full(len(ids), sum(slot.table.encode()), np.uint64)
        slots[slot.name] = SlotIds(mix_ids(ids, salt, 1), own - own[0])
    requests = np.arange(start, start + BATCH) // n_shown
    ts_ms = 1_700_000_000_000 + requests * 20
    ones = np.ones((BATCH, 1), np.float32)
    n_dense = len(encoder.dense_names)
    return ExampleBatch(
        info=BatchInfo(encoder.schema_hash),
        request_ids=[f"request-{n}" for n in requests],
        items=["item"] * BATCH,
        ts_ms=ts_ms,
        appended_at_ms=ts_ms,
        is_action=np.zeros(BATCH, np.bool_),
        is_first=np.diff(requests, prepend=-1) > 0,
        is_reversal=np.zeros(BATCH, np.bool_),
        labels=(rng.random((BATCH, 1)) < 0.2).astype(np.float32),
        weights=ones,
        keep_rates=ones,
        served=np.full((BATCH, 1), np.nan, np.float32),
        values=Encoded(BATCH, slots, rng.random((BATCH, n_dense)).astype(np.float32)),
    )


def row_numbers(
    encoder: FeatureEncoder, stream: Mapping[str, tuple[I64, I64]]
) -> tuple[dict[str, tuple[I64, I64]], dict[str, int]]:
    """The stream with each table's values numbered from 1, and rows per table; 0 is "none"."""
    found = {}
    n_rows = {}
    for spec in encoder.tables:
        names = [slot.name for slot in encoder.slots if slot.table == spec.name]
        values, numbers = np.unique(
            np.concatenate([stream[name][0] for name in names]), return_inverse=True
        )
        n_rows[spec.name] = len(values) + 1
        ends = np.cumsum([len(stream[name][0]) for name in names])
        for name, part in zip(names, np.split(numbers + 1, ends[:-1]), strict=True):
            found[name] = part, stream[name][1]
    return found, n_rows


def indices_of(
    encoder: FeatureEncoder, numbered: Mapping[str, tuple[I64, I64]], start: int
) -> Indices:
    """A batch for torch: one row number per row, or bags."""
    indices: dict[str, tuple[Tensor, Tensor | None]] = {}
    for slot in encoder.slots:
        numbers, offsets = numbered[slot.name]
        own = offsets[start : start + BATCH + 1]
        lengths = np.diff(own)
        if lengths.max() > 1:
            bags = torch.from_numpy(numbers[own[0] : own[-1]].copy())
            indices[slot.name] = bags, torch.from_numpy(own[:-1] - own[0])
        else:
            singles = np.zeros(BATCH, np.int64)
            singles[lengths == 1] = numbers[own[0] : own[-1]]
            indices[slot.name] = torch.from_numpy(singles), None
    return indices


if __name__ == "__main__":
    report.main(run)
