"""Embedding tables of torch and FBGEMM, one thread, on a stream of known row numbers.

    python python_peer.py KIND FOLDER N_ROWS DIM N_BATCHES

Needs torch and numpy alone, and fbgemm_gpu for its kind; runs by path in whatever environment has
them. FOLDER holds the files of stream.py, see process.py for what is printed.
"""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BATCH = 8_192
LR, EPS, INITIAL_ACCUMULATOR = 0.05, 1e-8, 0.1
Step = Callable[[torch.Tensor], object]


def lookup(n_rows: int, dim: int, _: torch.Tensor) -> Step:
    """F.embedding without gradients."""
    weight = torch.empty(n_rows, dim).uniform_(-0.01, 0.01)
    return lambda numbers: functional.embedding(numbers, weight)


def sparse_adagrad(n_rows: int, dim: int, gradients: torch.Tensor) -> Step:
    """nn.Embedding(sparse=True) with torch.optim.Adagrad: forward, backward, step."""
    table = nn.Embedding(n_rows, dim, sparse=True)
    with torch.no_grad():
        table.weight.uniform_(-0.01, 0.01)
    optimizer = torch.optim.Adagrad(
        table.parameters(), lr=LR, eps=EPS, initial_accumulator_value=INITIAL_ACCUMULATOR
    )

    def step(numbers: torch.Tensor) -> None:
        optimizer.zero_grad()
        table(numbers).backward(gradients)
        optimizer.step()

    return step


def fbgemm_adagrad(n_rows: int, dim: int, gradients: torch.Tensor) -> Step:
    """FBGEMM's table-batched embedding on the CPU; forward, and backward with exact Adagrad."""
    # Found in the environment that install.py makes, and there alone.
    configs = import_module("fbgemm_gpu.split_embedding_configs")
    common = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    training = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    table = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(n_rows, dim, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=configs.EmbOptimType.EXACT_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
        pooling_mode=common.PoolingMode.SUM,  # of one id a bag: the mode NONE is three times slower
    )
    table.init_embedding_weights_uniform(-0.01, 0.01)
    offsets = torch.arange(BATCH + 1)  # bags of one id

    def step(numbers: torch.Tensor) -> None:
        table(numbers, offsets).backward(gradients)

    return step


KINDS = {"lookup": lookup, "sparse_adagrad": sparse_adagrad, "fbgemm_adagrad": fbgemm_adagrad}


def main(kind: str, folder: Path, n_rows: int, dim: int, n_batches: int) -> None:
    """Answer rounds until standard input ends."""
    torch.set_num_threads(1)
    # Off by default too; said aloud, torch does not warn of it.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    numbers = torch.from_numpy(np.fromfile(folder / "numbers", np.int64)).view(-1, n_batches, BATCH)
    gradients = torch.from_numpy(np.fromfile(folder / "gradients", np.float32)).view(BATCH, dim)
    step = KINDS[kind](n_rows, dim, gradients)
    step(numbers[-1, -1])  # loads what is loaded at the first call
    print("ready", flush=True)
    for line in sys.stdin:
        start_s = time.perf_counter()
        for batch in numbers[int(line)]:
            step(batch)
        print(time.perf_counter() - start_s, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
