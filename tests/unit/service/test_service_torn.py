"""The hammer: rows carry a checksum in their weights, one thread applies frames, many read."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from embedding_store import mix_ids
from freshrank.frames import Frame, TableRows
from service.model import Model, ModelShape, Reading
from tests.proofs import record, scale
from tests.unit.service.conftest import MakeWorld
from tests.unit.service.support import World, linear_net, make_settings

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

DTYPES = ("float32", "float16", "int8")
DIM, N_SIGNS = 16, 16  # a row is [magnitude, then one sign each]
TABLES = ("item_id", "user_id")
KEYS = np.sort(mix_ids(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64), 3))
# Up to it float16 holds every integer, and int8 as many steps of its scale.
MAGNITUDES = 2_000
# In 16 versions the share of ids with a row rises from a sixteenth to all, then it falls: the table
# grows while it is read, and rows leave, come back and take the places of others.
ROUND = 16
N_READERS, N_READ = 3, 300


def marks(keys: U64, seq: npt.NDArray[np.int64]) -> U64:
    """One hash for each key and version: `uint64[n]`."""
    return mix_ids(keys, seq.astype(np.uint64), 7)


def is_alive(mark: U64, seq: npt.NDArray[np.int64]) -> Bools:
    alive: Bools = (mark >> np.uint64(32)) % ROUND <= (seq % ROUND).astype(np.uint64)
    return alive


def rows_of(mark: U64, seq: npt.NDArray[np.int64]) -> F32:
    """The only row that a key may have in a version: all weights equally large, signs hashed."""
    magnitude = (seq % MAGNITUDES + 1).astype(np.float32)
    bits = (mark[:, None] >> np.arange(N_SIGNS, dtype=np.uint64)) & np.uint64(1)
    signs = np.concatenate([np.ones((len(mark), 1)), 1 - 2.0 * bits], axis=1)
    rows: F32 = (magnitude[:, None] * signs).astype(np.float32)
    return rows


def frame(world: World, seq: int) -> Frame:
    """The base, then deltas that put in or remove every row of both tables."""
    version = np.full(len(KEYS), seq)
    mark = marks(KEYS, version)
    alive = is_alive(mark, version)
    changed = TableRows(KEYS[alive], rows_of(mark, version)[alive], KEYS[~alive])
    info = world.info("delta" if seq else "base", seq)
    net = None if seq else linear_net(world.settings)
    return Frame(info, dict.fromkeys(TABLES, changed), net)


@dataclass
class Hammer:
    """Readers of one model, and what they found."""

    model: Model
    stop: threading.Event = field(default_factory=threading.Event)
    faults: list[str] = field(default_factory=list)
    n_rows: list[int] = field(default_factory=lambda: [0] * N_READERS)

    def read(self, number: int) -> None:
        """Read whatever ids until told to stop, or something is wrong."""
        rng = np.random.default_rng(number)
        offsets = np.arange(N_READ + 1)
        while not self.stop.is_set() and not self.faults:
            keys = {name: rng.choice(KEYS, N_READ) for name in TABLES}
            bags = {name: (name, ids, offsets, "sum") for name, ids in keys.items()}
            reading = self.model.read(bags)
            for name, ids in keys.items():
                self._check(name, ids, reading)
            self.n_rows[number] += len(TABLES) * N_READ

    def _check(self, name: str, ids: U64, reading: Reading) -> None:
        """Every row is that of the version named, or of the next one."""
        seq = reading.current.info.seq
        rows, is_found = reading.rows[name], reading.n_found[name] > 0
        fits = np.zeros(len(ids), np.bool_)
        for version in (seq, seq + 1):
            versions = np.full(len(ids), version)
            mark = marks(ids, versions)
            alive = is_alive(mark, versions)
            expected = np.where(alive[:, None], rows_of(mark, versions), 0)
            # An int8's scale is rounded: far less than the step of 1 from version to version.
            is_equal = np.isclose(rows, expected, rtol=1e-5, atol=0).all(axis=1)
            fits |= is_equal & (alive == is_found)
        if not fits.all():
            i = int(np.argmin(fits))
            self.faults.append(f"{name} {ids[i]} at {seq}: {rows[i].tolist()}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_row_is_torn_lost_or_anothers_while_frames_are_applied(
    make_world: MakeWorld, dtype: str
) -> None:
    features = [{"name": name, "type": "id", "scope": name[:4], "dim": DIM} for name in TABLES]
    world = make_world(settings=make_settings(features=features))
    seconds = scale("torn", 2) / len(DTYPES)
    model = Model(frame(world, 0), ModelShape.of(world.encoder, n_tasks=2, dtype=dtype))
    hammer = Hammer(model)
    readers = [threading.Thread(target=hammer.read, args=(n,)) for n in range(N_READERS)]
    for reader in readers:
        reader.start()
    seq, end_s = 0, time.monotonic() + seconds
    try:
        while not hammer.faults and (time.monotonic() < end_s or min(hammer.n_rows) == 0):
            seq += 1
            assert model.apply(frame(world, seq)) is None
    finally:
        hammer.stop.set()
        for reader in readers:
            reader.join()
    assert hammer.faults == []
    n_rows = sum(hammer.n_rows)
    record(f"{dtype} rows under deltas", rows_read=n_rows, frames=seq, torn=len(hammer.faults))


def test_the_hammer_finds_half_a_row() -> None:
    """A checksum that any row passed would prove nothing."""
    version = np.array([5])
    row = rows_of(marks(KEYS[:1], version), version)[0]
    for other in (4, 6):
        after = np.array([other])
        torn = row.copy()
        torn[N_SIGNS // 2 :] = rows_of(marks(KEYS[:1], after), after)[0][N_SIGNS // 2 :]
        assert not np.isclose(torn, row, rtol=1e-5, atol=0).all()
    of_another = rows_of(marks(KEYS[1:2], version), version)[0]
    assert not np.isclose(of_another, row, rtol=1e-5, atol=0).all()
