"""A recommender with two towers in plain torch; `embedding_store` holds its sparse part.

The audience is made up: tastes of users meet the tags of items. Each batch is scored before it is
learned, and after each stretch a service's copy of the tables gets what changed: in this process
by a call, elsewhere those three arrays would travel. At the end the tables are saved and read back.

    python examples/two_towers.py --batches 400 --out /tmp/towers
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from embedding_store import Optimizer, ServingTable, Table, hash_strings

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

DIM = 16
SECONDS_PER_BATCH = 60
STRETCH = 50  # batches between two deltas


@dataclass(frozen=True)
class Bags:
    """Row i has the ids `ids[offsets[i]:offsets[i + 1]]`."""

    ids: U64
    offsets: I64

    @staticmethod
    def of_one(ids: U64) -> "Bags":
        """One id per row."""
        return Bags(ids, np.arange(len(ids) + 1))


@dataclass(frozen=True)
class Batch:
    """Impressions of one minute: who, which item, its tags, and whether it was clicked."""

    slots: dict[str, Bags]
    clicks: F32
    now_s: int


class Audience:
    """Users like some tags and dislike others; an item has one to three."""

    def __init__(
        self, seed: int, n_users: int = 2_000, n_items: int = 1_000, n_tags: int = 40
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._likes = self._rng.normal(0, 2, (n_users, n_tags))
        self._tags = [
            self._rng.choice(n_tags, self._rng.integers(1, 4), False) for _ in range(n_items)
        ]
        # Texts become 64-bit ids by a keyed hash; integers would be ids as they are.
        self._ids = {
            name: hash_strings([f"{name}-{i}" for i in range(n)], seed)
            for name, n in (("user", n_users), ("item", n_items), ("tag", n_tags))
        }

    def batches(self, n: int, n_rows: int = 512) -> Iterator[Batch]:
        """So many minutes; users and items come as often as Zipf's law has it."""
        for minute in range(n):
            users = self._rng.zipf(1.2, n_rows) % len(self._ids["user"])
            items = self._rng.zipf(1.2, n_rows) % len(self._ids["item"])
            tags = [self._tags[item] for item in items]
            appeal = np.array([self._likes[u, t].mean() for u, t in zip(users, tags, strict=True)])
            offsets = np.cumsum([0, *map(len, tags)])
            slots = {
                "user": Bags.of_one(self._ids["user"][users]),
                "item": Bags.of_one(self._ids["item"][items]),
                "tag": Bags(self._ids["tag"][np.concatenate(tags)], offsets),
            }
            clicks = self._rng.random(n_rows) < 1 / (1 + np.exp(-appeal))
            yield Batch(slots, clicks.astype(np.float32), minute * SECONDS_PER_BATCH)


class Embedding(torch.nn.Module):
    """A table as a torch module: `forward` counts, admits and pools, `step` follows `backward`."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table
        self._rows = torch.empty(0)

    def forward(self, bags: Bags, now_s: int) -> torch.Tensor:
        """The mean of each bag's rows: `float32[n, width]`."""
        n = len(bags.offsets) - 1
        rows = np.empty((n, 1, self.table.width), np.float32)
        slot = (0, bags.ids, bags.offsets, np.ones(n, np.bool_), "mean", 0)
        self.table.read([slot], np.arange(n, dtype=np.uint64), now_s, rows)
        self._rows = torch.from_numpy(rows[:, 0]).requires_grad_()
        return self._rows

    def step(self) -> None:
        """Let the table's optimizer move every row of the last `forward`."""
        gradients = self._rows.grad
        if gradients is not None:
            self.table.learn(gradients.numpy()[:, None])


def tower(n_in: int) -> torch.nn.Module:
    """From rows to a vector."""
    layers = torch.nn.Linear(n_in, 32), torch.nn.ReLU(), torch.nn.Linear(32, DIM)
    return torch.nn.Sequential(*layers)


class Towers(torch.nn.Module):
    """User rows meet item and tag rows: the dense part, all that torch itself keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = tower(DIM), tower(2 * DIM)

    def forward(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log odds of a click: `float32[n]`."""
        item = self.item(torch.cat([rows["item"], rows["tag"]], dim=1))
        return (self.user(rows["user"]) * item).sum(dim=1)


def new_table(slot: int) -> Table:
    """Rows for ids seen twice, which leave after a day unseen."""
    optimizer = Optimizer("adagrad", lr=0.1, accumulator_half_life_s=7 * 86_400)
    return Table(
        dim=DIM,
        optimizer=optimizer,
        init_scale=0.1,
        slot=slot,
        min_count=2,
        ttl_s=86_400,
        max_bytes=64 << 20,
    )


Tables = dict[str, Table] | dict[str, ServingTable]


def rows_of(tables: Tables, batch: Batch) -> dict[str, torch.Tensor]:
    """What a request reads: nothing is counted, absent ids are zeros."""
    rows = {}
    for name, bags in batch.slots.items():
        found = tables[name].lookup_pooled(bags.ids, bags.offsets, "mean")
        rows[name] = torch.from_numpy(found[0] if isinstance(found, tuple) else found)
    return rows


class Service:
    """Weights alone, a byte each, brought up to date by deltas."""

    def __init__(self, tables: dict[str, Table]) -> None:
        self.tables = {
            name: ServingTable(width=table.width, dtype="int8") for name, table in tables.items()
        }
        self._versions = dict.fromkeys(tables, 0)

    def follow(self, tables: dict[str, Table]) -> int:
        """Take over what changed; returns rows and tombstones."""
        n_changed = 0
        for name, table in tables.items():
            closed = table.advance()
            keys, rows, gone = table.delta(since=self._versions[name])
            self.tables[name].upsert(keys, rows)
            self.tables[name].remove(gone)
            table.trim_tombstones(through=closed)
            self._versions[name] = closed
            n_changed += len(keys) + len(gone)
        return n_changed


class Trainer:
    """Tables, towers and their optimizers."""

    def __init__(self) -> None:
        names = ("user", "item", "tag")
        self._embeddings = {name: Embedding(new_table(i)) for i, name in enumerate(names)}
        self.tables = {name: one.table for name, one in self._embeddings.items()}
        self.towers = Towers()
        self._adam = torch.optim.Adam(self.towers.parameters(), lr=1e-3)

    def learn(self, batch: Batch) -> F32:
        """Score the batch, then learn it."""
        rows = {
            name: embedding(batch.slots[name], batch.now_s)
            for name, embedding in self._embeddings.items()
        }
        z = self.towers(rows)
        # A sum, not a mean: an id's step must not depend on how many others are in the batch.
        loss = functional.binary_cross_entropy_with_logits(
            z, torch.from_numpy(batch.clicks), reduction="sum"
        )
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        for embedding in self._embeddings.values():
            embedding.step()
            embedding.table.expire(batch.now_s, max_rows=10_000)
        scores: F32 = z.detach().numpy()
        return scores


def auc(scores: F32, labels: F32) -> float:
    """Chance that a click scores above a row without one."""
    ranks = np.argsort(np.argsort(scores)) + 1
    n_clicks = labels.sum()
    above = ranks[labels > 0].sum() - n_clicks * (n_clicks + 1) / 2
    return float(above / (n_clicks * (len(labels) - n_clicks)))


def main(n_batches: int, out: Path) -> dict[str, float]:
    """Train, publish, save; returns figures of the last stretch."""
    torch.manual_seed(1)
    trainer = Trainer()
    service = Service(trainer.tables)
    scores, clicks = [], []
    figures: dict[str, float] = {}
    for number, batch in enumerate(Audience(1).batches(n_batches), start=1):
        scores.append(trainer.learn(batch))
        clicks.append(batch.clicks)
        if number % STRETCH == 0:
            n_changed = service.follow(trainer.tables)
            with torch.no_grad():
                own = trainer.towers(rows_of(trainer.tables, batch))
                served = trainer.towers(rows_of(service.tables, batch))
            figures = {
                "auc": auc(np.concatenate(scores), np.concatenate(clicks)),
                "rows": sum(map(len, trainer.tables.values())),
                "changed": n_changed,
                "int8_error": float((own - served).abs().max()),
            }
            print(f"batch {number}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            scores, clicks = [], []
    out.mkdir(parents=True, exist_ok=True)
    for name, table in trainer.tables.items():
        path = out / f"{name}.table"
        path.write_bytes(table.snapshot())
        print(f"{path}: {len(Table.restore(path.read_bytes()))} rows")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("two_towers"))
    arguments = parser.parse_args()
    main(arguments.batches, arguments.out)
