"""One step: score a batch, then learn it. The dense net in torch, the rows in the store."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch

from freshrank.examples import ExampleBatch
from freshrank.features import Encoded, FeatureEncoder
from freshrank.settings import Settings
from trainer.adam import DenseAdam
from trainer.losses import Loss, loss_and_gradient, served
from trainer.models import Net, build_net
from trainer.passes import Passes
from trainer.table_settings import create_budgets, create_tables
from trainer.tables import SparseTables

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

# Rows kept to compare the exported net with this one; docs/semantics.md, versions and replicas.
PROBE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        is_applied: False when the loss or a gradient was not finite: no parameter moved.
        predictions: `float32[B, T]`, as served, before the batch was learned.
        item_age_s: `int64[B]`, event time since the item got its row; 0 where it has none.
    """

    is_applied: bool
    predictions: F32
    item_age_s: npt.NDArray[np.int64]


class Learner:
    """The parameters and how they move.

    Args:
        settings: Model, tasks, optimizers and seed.
        encoder: Slots, tables and dense values.

    Attributes:
        net: The dense net.
        adam: Its optimizer.
        sparse: The tables.
        clock_s: Newest event time learned, in seconds; never goes back.
    """

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        # One compute thread per process: two collapse on a busy two-core machine.
        torch.set_num_threads(1)
        budgets = create_budgets(settings, encoder)
        tables = create_tables(settings, encoder, budgets)
        self.sparse = SparseTables(encoder.slots, tables, budgets)
        self.losses: list[Loss] = [task.loss for task in settings.tasks]
        self.net: Net = build_net(
            settings.model.kind,
            n_slots=len(encoder.slots),
            width=self.sparse.width,
            n_dense=len(encoder.dense_names),
            n_tasks=len(settings.tasks),
            hidden=settings.model.hidden,
            seed=settings.trainer.seed,
        )
        dense = settings.optimizer.dense
        self.adam = DenseAdam(self.net, lr=dense.lr, clip_norm=settings.optimizer.clip_norm)
        self._passes = Passes(self.net)
        self._task_weights = np.array([task.weight for task in settings.tasks], np.float32)
        self.clock_s = 0
        self._probe: tuple[F32, F32] | None = None

    def learn(self, batch: ExampleBatch, *, counts: bool = True) -> Step:
        """Score the batch, then learn it.

        Where the loss or a gradient is not finite nothing is applied. Occurrences of the batch are
        counted by then, and rows born from them stay at their initial values: counting is what
        reads the rows, and an id was seen whether or not its example could be learned.

        Args:
            batch: B rows.
            counts: False for rows of a batch that was not applied: they are counted already.
        """
        self.clock_s = max(self.clock_s, int(batch.ts_ms.max()) // 1_000)
        born_s = self.sparse.item_born_s(batch.values)
        age_s = np.where(born_s > 0, np.maximum(batch.ts_ms // 1_000 - born_s, 0), 0)
        rows = self.sparse.read(batch, self.clock_s, counts=counts)  # [B, S, W]
        z = _logits(self._passes, rows, batch.values.dense)
        predictions = served(z, self.losses)
        loss, gradient = loss_and_gradient(z, self.losses, self._task_weights, batch)
        is_applied = self._apply(loss, gradient, batch)
        if is_applied:
            self._remember(rows, batch.values.dense)
        self.sparse.expire(self.clock_s)
        return Step(is_applied, predictions, age_s)

    def is_sound(self, batch: ExampleBatch) -> bool:
        """Whether loss and gradients of these rows are finite; nothing is counted or learned."""
        z = _logits(self._passes, self.sparse.peek(batch.values), batch.values.dense)
        loss, gradient = loss_and_gradient(z, self.losses, self._task_weights, batch)
        return self._backward(loss, gradient) is not None

    def is_finite(self) -> bool:
        """Whether the dense net is."""
        return bool(np.isfinite(self.adam.parameters.numpy()).all())

    def predict(self, values: Encoded) -> F32:
        """What would be served now, with nothing counted or learned: `float32[B, T]`."""
        return scores(self._passes, self.losses, self.sparse.peek(values), values.dense)

    def _backward(self, loss: float, gradient: F32) -> F32 | None:
        """Gradients of the rows read, `float32[B, S, W]`; None where anything is not finite."""
        gradients: F32 = self._passes.backward(torch.from_numpy(gradient)).numpy()
        # In numpy, as `torch.isfinite` takes five times as long.
        is_finite = isfinite(loss) and np.isfinite(gradients).all()
        return gradients if is_finite and np.isfinite(self.adam.gradients.numpy()).all() else None

    def _apply(self, loss: float, gradient: F32, batch: ExampleBatch) -> bool:
        gradients = self._backward(loss, gradient)
        if gradients is None:
            return False
        self.sparse.learn(gradients)
        total_weight = float(np.abs(batch.weights).sum())
        if total_weight > 0:
            self.adam.step(total_weight)
        return True

    def _remember(self, rows: F32, dense: F32) -> None:
        """Keep the last rows scored, as inputs for the check of the exported net."""
        if self._probe is not None and len(rows) < PROBE_ROWS:
            rows = np.concatenate([self._probe[0], rows])
            dense = np.concatenate([self._probe[1], dense])
        self._probe = rows[-PROBE_ROWS:].copy(), dense[-PROBE_ROWS:].copy()

    def probe(self) -> tuple[F32, F32]:
        """The last rows and dense values learned, up to 64; random ones before the first.

        Returns:
            `float32[n, S, W]` and `float32[n, K]`.
        """
        if self._probe is not None:
            return self._probe
        random = np.random.default_rng(0)
        net = self.net
        rows = random.normal(0, 0.3, (PROBE_ROWS, net.n_slots, net.width))
        dense = random.normal(0, 1, (PROBE_ROWS, net.n_dense))
        return rows.astype(np.float32), dense.astype(np.float32)


def scores(passes: Passes, losses: Sequence[Loss], rows: F32, dense: F32) -> F32:
    """What is served for pooled rows `float32[B, S, W]` and dense values: `float32[B, T]`."""
    return served(_logits(passes, rows, dense), losses)


def _logits(passes: Passes, rows: F32, dense: F32) -> F32:
    """The net's answers for the same: `float32[B, T]`."""
    # Dense values of a record decoded in place are read-only, which torch does not know.
    known = torch.from_numpy(np.require(dense, requirements="W")) if passes.net.n_dense else None
    z: F32 = passes.forward(torch.from_numpy(rows), known).numpy()
    return z
