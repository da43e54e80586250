"""Use embedding_store where nothing but numpy may be imported; then, with --torch, beside torch.

Beside torch the table reads and writes the memory of torch's tensors: no array is copied.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class OnlyNumpy:
    """An import hook that refuses what is neither numpy, nor Python's own, nor the store."""

    # org: by which Python's own copy and pickle ask whether they run on Jython.
    allowed = frozenset({*sys.stdlib_module_names, "org", "numpy", "embedding_store"})

    def __init__(self) -> None:
        self.refused: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse, or leave it to the finders behind."""
        if name.partition(".")[0] not in self.allowed:
            self.refused.append(name)
            raise ModuleNotFoundError(f"{name} must not be needed")
        return None


def main() -> None:
    """Admit, read, step, write and read again."""
    import numpy as np

    hook = OnlyNumpy()
    sys.meta_path.insert(0, hook)
    from embedding_store import Optimizer, ServingTable, Table

    ids = np.arange(1000, dtype=np.uint64)
    table = Table(
        dim=16, first_order=False, optimizer=Optimizer("adagrad", lr=0.1), init_scale=0.01,
        seed=1, slot=0, min_count=1, probability=1.0, ttl_s=0, initial_rows=0,
    )  # fmt: skip
    before = table.lookup_or_admit(ids, np.ones(1000, np.uint32), 1)
    assert table.apply(ids, np.ones_like(before)) == 1000
    assert (table.lookup(ids) < before).all()
    replica = ServingTable(width=16, initial_rows=0)
    replica.upsert(*table.delta(0)[:2])
    restored = Table.restore(table.snapshot())
    assert np.array_equal(restored.lookup(ids), replica.lookup(ids)[0])
    assert not hook.refused, f"embedding_store asked for {hook.refused}"
    sys.meta_path.remove(hook)
    print("embedding_store: needs numpy only,", np.__version__)
    if "--torch" in sys.argv:
        beside_torch(table)


def beside_torch(table: Any) -> None:
    """A step of somebody's torch loop."""
    import numpy as np
    import torch

    ids, counts = torch.arange(1000), np.ones(1000, np.uint32)
    rows = torch.empty(1000, 16, requires_grad=True)
    out = rows.detach().numpy()
    assert out.ctypes.data == rows.data_ptr(), "torch shares its memory with numpy"
    answer = table.lookup_or_admit(ids.numpy().view(np.uint64), counts, 2, out=out)
    assert answer.ctypes.data == rows.data_ptr(), "the table wrote into the tensor"
    (rows**2).sum().backward()
    assert rows.grad is not None
    before = rows.detach().clone()
    table.apply(ids.numpy().view(np.uint64), rows.grad.numpy())
    table.lookup(ids.numpy().view(np.uint64), out=out)
    assert (rows.detach().abs() < before.abs()).all(), "every weight has moved towards 0"
    print("embedding_store: beside torch", torch.__version__, "in its tensors' memory")


if __name__ == "__main__":
    main()
