"""What replays of real logs come to: quality, the cost of staleness, calibration, and speed.

    FRESHRANK_DATA=... python -m benchmarks.replay [--json]

The configurations are those of `examples/`, as shipped. News: requests of five built from the first
400,000 clicks of a portal (one click, four popular articles), so its figures compare models on this
stream and promise no click rate. Every row was scored before any row of its request was learned;
`auc_second_half` pools the second half of the rows; spreads are standard deviations over seeds.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import report
from benchmarks.learner import Indices, PlainTorch
from benchmarks.report import Row, row
from freshrank import config
from freshrank.features import FeatureEncoder
from freshrank.replay import baselines
from freshrank.replay.events import EventOptions, replay_events
from freshrank.replay.loop import Online, TableReplay, seeded
from freshrank.replay.rejects import Rejects
from freshrank.replay.report import Report
from freshrank.replay.sources import TableFile
from freshrank.replay.table import read_table
from freshrank.settings import Settings
from freshrank.table_encoder import TableEncoder

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
N_SEEDS: Final = 3
PERIODS: Final = {f"{minutes}m": timedelta(minutes=minutes) for minutes in (10, 60, 360)}
TASK: Final = "click"
# Of the speed comparison: some seconds per run, and three in turns.
SPEED_ROWS, SPEED_BATCH, SPEED_ROUNDS = 200_000, 512, 3
BAND_MAX: Final = 1.25  # of calibration, as a factor: within [0.8, 1.25]


def run() -> list[Row]:
    """Replay news and ML-100K."""
    if not os.environ.get("FRESHRANK_DATA"):
        sys.exit("set FRESHRANK_DATA to the folder of the public data sets: see examples/README.md")
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as name:
        directory = Path(name)
        news = prepared("news", directory / "news.parquet")
        settings = settings_of("news")
        return [
            *quality(news, settings),
            *logistic(news),
            *movielens(prepared("movielens", directory / "ml.parquet")),
            *speed(news, settings, directory),
            *calibration(settings, directory),
        ]


def prepared(example: str, target: Path, *options: str) -> Path:
    """What an example's `prepare.py` makes of the public download."""
    command = [sys.executable, str(EXAMPLES / example / "prepare.py"), str(target), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def settings_of(example: str, name: str = "freshrank.yaml") -> Settings:
    """An example's configuration."""
    return config.load(EXAMPLES / example / name, environ={})


def replayed(
    table: Path,
    settings: Settings,
    *,
    n_seeds: int = 1,
    periods: Sequence[timedelta] = (),
    compared: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The models of a report on the whole table, ours first."""
    encoder = FeatureEncoder(settings)
    replay = TableReplay(
        settings,
        encoder,
        TableEncoder(settings, encoder).encode,
        seeds=range(settings.trainer.seed, settings.trainer.seed + n_seeds),
        sync_every=periods,
        baselines=[baselines.create(name, settings, encoder) for name in compared],
    )
    found = Report("", "")
    with Rejects(None, share_max=0.0) as rejects:
        broken = replay.run(read_table(TableFile(table), settings, rejects), found)
    if broken is not None:
        raise broken
    models: list[dict[str, Any]] = found.document()["models"]
    return models


def auc_of(model: dict[str, Any]) -> dict[str, float]:
    """Mean, sd, min and max over seeds of AUC in the second half, of the first task."""
    spread: dict[str, float] = next(iter(model["tasks"].values()))["seeds"]["auc_second_half"]
    return spread


def quality(table: Path, settings: Settings) -> Iterator[Row]:
    """News as shipped, every step and with parameters of the last synchronisation."""
    models = replayed(table, settings, n_seeds=N_SEEDS, periods=list(PERIODS.values()))
    found = [auc_of(model) for model in models]
    yield row("news_auc_second_half", found[0]["mean"], "AUC", goal=0.835)
    yield row("news_auc_second_half_sd", found[0]["sd"], "AUC")
    for name, spread in zip(PERIODS, found[1:], strict=True):
        yield row(f"news_sync_{name}_auc_second_half", spread["mean"], "AUC")
        yield row(f"news_sync_{name}_auc_second_half_sd", spread["sd"], "AUC")
    # The worst seed of each is better than the best of the next.
    falls = all(one["min"] > other["max"] for one, other in pairwise(found))
    yield row("news_falls_in_order", falls, "1 is yes", goal=1.0)
    click = models[0]["tasks"][TASK]
    yield row("news_logloss", click["logloss"], "nats")
    yield row("news_calibration", click["calibration"], "predicted/observed")


def logistic(table: Path) -> Iterator[Row]:
    """Logistic regression with Vowpal Wabbit's own features and crosses, beside it."""
    ours, theirs = replayed(table, settings_of("news", "logistic.yaml"), compared=["vw"])
    difference = auc_of(ours)["mean"] - auc_of(theirs)["mean"]
    yield row("news_logistic_auc_second_half", auc_of(ours)["mean"], "AUC")
    yield row("news_vw_auc_second_half", auc_of(theirs)["mean"], "AUC")
    yield row("news_logistic_minus_vw", difference, "AUC", goal=-0.005)


def movielens(table: Path) -> Iterator[Row]:
    """ML-100K: was the rating 4 or 5?"""
    (model,) = replayed(table, settings_of("movielens"), n_seeds=N_SEEDS)
    yield row("ml100k_auc_second_half", auc_of(model)["mean"], "AUC", goal=0.765)
    yield row("ml100k_auc_second_half_sd", auc_of(model)["sd"], "AUC")


def speed(table: Path, settings: Settings, directory: Path) -> Iterator[Row]:
    """CPU seconds of one run over the first rows: ours from the log, torch's from ready indices."""
    batch = settings.trainer.model_copy(update={"batch_max": SPEED_BATCH})
    settings = settings.model_copy(update={"trainer": batch})
    ready = directory / "ready.parquet"
    n_rows, sizes = write_ready(table, settings, ready)
    calls = {
        "freshrank": lambda: replay_once(table, settings),
        "torch": lambda: torch_once(ready, settings, sizes),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SPEED_ROUNDS):
        for name, call in calls.items():
            rates[name].append(n_rows / cpu_s(call))
    ours, theirs = (statistics.median(rates[name]) for name in calls)
    yield row("replay_examples_per_second", ours, "examples/CPU s")
    yield row("torch_sparse_examples_per_second", theirs, "examples/CPU s")
    yield row("replay_vs_torch_sparse", ours / theirs, "times", goal=1.2)


def cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of all threads, so that a busy machine slows neither."""
    began_s = time.process_time()
    call()
    return time.process_time() - began_s


def replay_once(table: Path, settings: Settings) -> None:
    """Read, hash, count, score and learn."""
    encoder = FeatureEncoder(settings)
    encode = TableEncoder(settings, encoder).encode
    model = Online(seeded(settings, 1), encoder)
    for chunk in read_table(TableFile(table), settings, Rejects(None), limit=SPEED_ROWS):
        model.predict_then_learn(chunk, encode(chunk.values))


def write_ready(table: Path, settings: Settings, target: Path) -> tuple[int, dict[str, int]]:
    """The same rows with ids numbered per table from 1 and live features filled in.

    Returns:
        Rows written, and the largest number + 1 of each table.
    """
    encoder = FeatureEncoder(settings)
    encode = TableEncoder(settings, encoder).encode
    chunks = read_table(TableFile(table), settings, Rejects(None), limit=SPEED_ROWS)
    encoded, labels = [], []
    for chunk in chunks:
        encoded.append(encode(chunk.values))
        labels.append(chunk.labels[:, 0])
    columns: dict[str, pa.Array] = {"label": pa.array(np.concatenate(labels))}
    sizes = {}
    for spec in encoder.tables:
        slots = [slot.name for slot in encoder.slots if slot.table == spec.name]
        ids = [np.concatenate([one.slots[name].ids for one in encoded]) for name in slots]
        known, numbers = np.unique(np.concatenate(ids), return_inverse=True)
        sizes[spec.name] = len(known) + 1
        ends = np.cumsum([len(one) for one in ids])[:-1]
        for name, own in zip(slots, np.split(numbers + 1, ends), strict=True):
            lengths = np.concatenate([np.diff(one.slots[name].offsets) for one in encoded])
            columns[f"slot.{name}"] = ready_column(own, lengths)
    dense = np.concatenate([one.dense for one in encoded])
    for number, column in enumerate(dense.T):
        columns[f"dense.{number}"] = pa.array(np.ascontiguousarray(column))
    pq.write_table(pa.table(columns), target, compression="zstd")
    return len(dense), sizes


def ready_column(numbers: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> pa.Array:
    """A number per row, 0 where there is none; lists where a row has several."""
    if lengths.max() > 1:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers))
    found = np.zeros(len(lengths), np.int64)
    found[lengths == 1] = numbers
    return pa.array(found)


def torch_once(ready: Path, settings: Settings, sizes: dict[str, int]) -> None:
    """The loop one writes without an embedding store; scores are kept, as ours are."""
    encoder = FeatureEncoder(settings)
    plain = PlainTorch(settings, encoder, sizes)
    n_dense = len(encoder.dense_names)
    scores = []
    with pq.ParquetFile(ready) as file:
        for batch in file.iter_batches(batch_size=SPEED_BATCH * 128):
            for start in range(0, batch.num_rows, SPEED_BATCH):
                part = batch[start : start + SPEED_BATCH]
                indices: Indices = {
                    slot.name: tensors(part.column(f"slot.{slot.name}")) for slot in encoder.slots
                }
                columns = [part.column(f"dense.{n}").to_numpy() for n in range(n_dense)]
                dense = np.stack(columns, axis=1) if columns else np.empty((len(part), 0))
                labels = torch.from_numpy(part.column("label").to_numpy().copy())[:, None]
                z = plain.learn(indices, torch.from_numpy(dense.astype(np.float32)), labels)
                scores.append(torch.sigmoid(z))


def tensors(column: pa.Array) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Row numbers; of lists, all of them and where each row's begin."""
    if pa.types.is_list(column.type):
        offsets = column.offsets.to_numpy().astype(np.int64)
        numbers = column.flatten().to_numpy()
        return torch.from_numpy(numbers.copy()), torch.from_numpy(offsets[:-1] - offsets[0])
    return torch.from_numpy(column.to_numpy().copy()), None


def calibration(settings: Settings, directory: Path) -> Iterator[Row]:
    """News as events through joiner and trainer: how far each age band is from 1, as a factor."""
    events = prepared("news", directory / "events.jsonl", "--events")
    began_s = time.process_time()
    with Rejects(None, share_max=0.0) as rejects:
        found = replay_events(events, settings, rejects, EventOptions())
    if found.broken is not None:
        raise found.broken
    rate = found.rows_read / (time.process_time() - began_s)
    figures = found.measures.figures()[TASK]
    yield row("news_events_per_second", rate, "events/CPU s")
    yield row("news_events_auc_second_half", figures["auc_second_half"], "AUC")
    for age, band in figures["calibration_by_age"].items():
        factor = max(band["calibration"], 1 / band["calibration"])
        yield row(
            f"news_events_calibration_{age}_off", factor, "times", goal=BAND_MAX, is_maximum=True
        )


if __name__ == "__main__":
    report.main(run)
