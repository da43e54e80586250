"""Rows to Parquet and back: nothing lost, nothing that does not fit let in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_store import ServingTable, StoreError, Table
from embedding_store.io import export_parquet, import_parquet
from embedding_store.optimizer import Kind
from tests.store.helpers import DEFAULTS, admit, ids_of, make, plain

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def lived_table(kind: Kind = "sgd", **changes: Any) -> Table:
    """Rows of several versions and ages, freed row numbers among them."""
    table = make(kind, **{"first_order": True, "ttl_s": 50, **changes})
    rng = np.random.default_rng(5)
    for now_s in range(1, 60):
        ids = rng.integers(2**64 - 300, 2**64, 40, np.uint64)
        admit(table, ids, now_s)
        table.apply(ids, rng.normal(size=(40, table.width)).astype(np.float32))
        table.expire(now_s, 20)
        table.advance()
    return table


def config_of(kind: Kind = "sgd", **changes: Any) -> dict[str, Any]:
    optimizer = plain(kind, **changes)
    return DEFAULTS | {"first_order": True, "ttl_s": 50, "optimizer": optimizer}


def told(rows: Any, metadata: bytes) -> Any:
    """The rows, under other words about their table."""
    return rows.replace_schema_metadata({b"embedding_store": metadata})


def columns_by_id(table: Table) -> list[np.ndarray[Any, Any]]:
    columns = table.rows_from(0, 10**6)[1:]
    order = np.argsort(columns[0])
    return [column[order] for column in columns]


def assert_same_rows(left: Table, right: Table) -> None:
    for one, other in zip(columns_by_id(left), columns_by_id(right), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
        assert one.shape == other.shape


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd"},
        {"kind": "adagrad", "accumulator_half_life_s": 7},
        {"kind": "rowwise_adagrad"},
        {"kind": "adam"},
        {"kind": "ftrl"},
    ],
)
@pytest.mark.parametrize("batch_rows", [1, 7, 10_000])
def test_rows_come_back_to_the_bit(
    tmp_path: Path, optimizer: dict[str, Any], batch_rows: int
) -> None:
    table = lived_table(**optimizer)
    path = tmp_path / "rows.parquet"
    assert export_parquet(table, path, batch_rows=batch_rows) == len(table) > 100
    assert [one.name for one in tmp_path.iterdir()] == ["rows.parquet"]
    config = config_of(**optimizer)
    back = import_parquet(path, config, batch_rows=batch_rows)
    assert_same_rows(table, back)
    assert back.version == table.version
    assert back.statistics()["clock_s"] == table.statistics()["clock_s"]
    gradients = np.ones((20, table.width), np.float32)
    for one in (table, back):
        one.apply(table.keys()[:20], gradients)
    assert_same_rows(table, back)
    np.testing.assert_array_equal(back.delta(40)[0], table.delta(40)[0])


def test_other_tools_read_the_documented_columns(tmp_path: Path) -> None:
    table = lived_table("adagrad")
    export_parquet(table, tmp_path / "rows", batch_rows=64)
    read = pq.read_table(tmp_path / "rows")
    assert read.schema.names == [
        "id", "weights", "state", "version", "last_seen_s", "born_s", "frequency",
    ]  # fmt: skip
    ids = read["id"].to_numpy()
    assert np.array_equal(np.array(read["weights"].to_pylist(), np.float32), table.lookup(ids))
    assert np.array_equal(read["born_s"].to_numpy(), table.born_s(ids))
    assert np.array_equal(read["last_seen_s"].to_numpy(), table.last_seen_s(ids))
    first = table.inspect(int(ids[0]))
    assert first["version"] == read["version"][0].as_py()
    assert first["frequency"] == read["frequency"][0].as_py()
    assert pq.ParquetFile(tmp_path / "rows").metadata.num_row_groups == -(-len(table) // 64)
    layout = json.loads(read.schema.metadata[b"embedding_store"])
    assert layout == {
        "dim": 4,
        "first_order": True,
        "optimizer": {"kind": "adagrad", "beta": None, "decays": False},
        "first_order_optimizer": None,
        "version": table.version,
        "clock_s": 59,
    }


def test_rows_put_into_a_living_table_are_changed_now(tmp_path: Path) -> None:
    export_parquet(lived_table(), tmp_path / "rows")
    table = make(first_order=True, min_count=2)
    theirs = int(lived_table().keys()[0])
    admit(table, ids_of(5, theirs), count=2)  # one row stays, one is replaced
    table.erase(lived_table().keys()[1:2])
    admit(table, lived_table().keys()[2:3])  # pending
    before = table.lookup(ids_of(5))
    mark = table.advance()
    assert import_parquet(tmp_path / "rows", table) is table
    keys, _, tombstones = table.delta(mark)
    np.testing.assert_array_equal(keys, lived_table().keys())
    assert len(tombstones) == 0
    assert table.statistics()["pending"] == 0
    np.testing.assert_array_equal(table.lookup(ids_of(5)), before)
    np.testing.assert_array_equal(table.lookup(keys), lived_table().lookup(keys))


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "rows", tmp_path / "link"
    link.symlink_to(target)
    for table in (make(first_order=True), lived_table()):  # it leads nowhere, then to a file
        export_parquet(table, link)
        assert link.readlink() == target
        assert_same_rows(import_parquet(target, config_of()), table)
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["disk", "link", "rows"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    before = sorted((one.name, one.lstat().st_ino) for one in tmp_path.iterdir())
    for path in (*(tmp_path / name for name, _ in before), Path("/dev/null")):
        with pytest.raises(StoreError, match=f"^{path} is no regular file, .*: name a file"):
            export_parquet(make(), path)
    assert sorted((one.name, one.lstat().st_ino) for one in tmp_path.iterdir()) == before


def test_empty_table_is_an_empty_file(tmp_path: Path) -> None:
    assert export_parquet(make(), tmp_path / "rows") == 0
    assert len(import_parquet(tmp_path / "rows", DEFAULTS | {"optimizer": plain("sgd")})) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 5}, "rows of dim 4, this table is of dim 5"),
        ({"first_order": False}, "first_order True, .* first_order False"),
        ({"optimizer": "adam"}, "optimizer .*adagrad.*, this table is of optimizer .*adam"),
        ({"accumulator_half_life_s": 5}, "'decays': False.*, this table .*'decays': True"),
        ({"first_order_optimizer": plain("sgd")}, "of first_order_optimizer None, this .*sgd"),
    ],
)
def test_file_of_other_rows_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    export_parquet(lived_table("adagrad"), tmp_path / "rows")
    table = make(**{"first_order": True, "optimizer": "adagrad", **changes})
    with pytest.raises(StoreError, match=message):
        import_parquet(tmp_path / "rows", table)
    assert len(table) == 0


def test_only_tables_have_rows_with_state(tmp_path: Path) -> None:
    wrong: Any = ServingTable(width=4)
    with pytest.raises(TypeError, match=r"those of a Table, not of .*ServingTable"):
        export_parquet(wrong, tmp_path / "rows")
    export_parquet(lived_table(), tmp_path / "rows")
    with pytest.raises(TypeError, match=r"those of a Table, not of .*ServingTable"):
        import_parquet(tmp_path / "rows", wrong)


def test_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    export_parquet(lived_table(), path)
    whole = pq.read_table(path)
    narrow = whole.set_column(0, "id", whole["id"].cast(pa.float64(), safe=False))
    for changed, message in (
        (whole.drop_columns(["born_s"]), "column 'born_s' is missing, it must be uint32"),
        (whole.append_column("more", whole["id"]), "column 'more' is uint64, it must be left out"),
        (narrow, "column 'id' is double, it must be uint64"),
        (whole.replace_schema_metadata({}), "was not written by export_parquet"),
        (told(whole, b"[]"), "what it says of its table is damaged"),
        (told(whole, b'{"dim":'), "what it says of its table is damaged"),
        (told(whole, b'{"version": "1", "clock_s": 1}'), "what it says of its table is damaged"),
    ):
        pq.write_table(changed, path)
        with pytest.raises(StoreError, match=message):
            import_parquet(path, config_of())


def test_file_with_nulls_and_no_parquet_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    export_parquet(lived_table(), path)
    whole = pq.read_table(path)
    nulls = pa.nulls(len(whole), pa.uint32())
    field = pa.field("born_s", pa.uint32())
    pq.write_table(whole.set_column(whole.schema.get_field_index("born_s"), field, nulls), path)
    with pytest.raises(StoreError, match=r"column 'born_s' holds .* nulls"):
        import_parquet(path, config_of())
    path.write_bytes(b"PAR1 and nothing that follows from it")
    with pytest.raises(StoreError, match="cannot be read as Parquet"):
        import_parquet(path, config_of())
    for call in (lambda: export_parquet(make(), path, batch_rows=0),
                 lambda: import_parquet(path, make(), batch_rows=0)):  # fmt: skip
        with pytest.raises(ValueError, match="batch_rows is 0"):
            call()


def test_version_beyond_the_tables_is_refused() -> None:
    table = make()
    columns: list[Any] = [np.ones(1, np.uint32)] * 3
    with pytest.raises(StoreError, match="version is 9; it must be from 1 to the table's, 1"):
        table.put_rows(ids_of(1), np.ones((1, 4), np.float32), ids_of(9), *columns)
    assert len(table) == 0


def test_store_needs_numpy_only_until_a_file_is_asked_for() -> None:
    code = """if True:
        import sys
        import embedding_store.io
        assert not {"pyarrow", "torch", "pandas"} & set(sys.modules), "imported too early"
        sys.modules["pyarrow"] = None
        try:
            embedding_store.io.export_parquet(None, "rows")
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'freshrank[io]'" in done.stdout


def test_memory_is_bounded_by_a_slice_and_not_by_the_table(tmp_path: Path) -> None:
    code = """if True:
        import json, sys
        import numpy as np
        import pyarrow as pa
        from embedding_store import Optimizer, Table
        from embedding_store.io import export_parquet, import_parquet
        table = Table(optimizer=Optimizer("adagrad", lr=0.1), **json.loads(sys.argv[1]))
        table.lookup_or_admit(np.arange(100_000, dtype=np.uint64), np.ones(100_000, np.uint32), 1)
        export_parquet(table, sys.argv[2], batch_rows=2_000)
        print(pa.default_memory_pool().max_memory())
        import_parquet(sys.argv[2], table, batch_rows=2_000)
        print(pa.default_memory_pool().max_memory())
    """
    config = json.dumps(DEFAULTS | {"dim": 16})  # 13 MB, 260 kB a slice
    command = [sys.executable, "-c", code, config, str(tmp_path / "rows")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == 2
    assert 260_000 < max(peaks) < 4_000_000, peaks
