"""Reading labelled tables: what comes out, and what becomes of bad input."""

import gzip
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshrank import config
from freshrank.clock import ManualClock
from freshrank.errors import ConfigError, DataError
from freshrank.replay import sources
from freshrank.replay import table as table_module
from freshrank.replay.chunks import Chunk
from freshrank.replay.rejects import Rejects
from freshrank.replay.sources import TableFile
from freshrank.replay.table import read_table
from freshrank.settings import Settings

CONFIG = """
version: 1
replay:
  ts_unit: s
  columns: {request: request, ts: ts, user: user, item: item, labels: {click: clicked}}
features:
  - {name: user_id, type: id, scope: user}
  - {name: item_id, type: id, scope: item, key: uint64}
  - {name: price, type: dense, scope: item, transform: log1p}
  - {name: device, type: id, scope: context}
  - {name: tags, type: id_list, scope: item}
tasks:
  - {name: click, event: click}
"""
NOW_S = 2_000_000
HEADER = "request,ts,user,item,price,device,tags,clicked"


def settings(text: str = CONFIG, **changes: str) -> Settings:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return config.loads(text, name="freshrank.yaml", environ={})


class Read:
    """The chunks of a table, its rejects, and the error that ended it, if one did."""

    def __init__(
        self, path: Path, chosen: Settings | None = None, share_max: float = 1.0, **options: Any
    ) -> None:
        rejects_path = path.with_name("rejects.jsonl")
        self.chunks: list[Chunk] = []
        self.error: DataError | None = None
        with Rejects(rejects_path, share_max=share_max) as self.rejects:
            chosen = chosen or settings()
            options["clock"] = ManualClock(now_ms=NOW_S * 1_000)
            try:
                self.file = TableFile(path, chosen.replay.format)
                for chunk in read_table(self.file, chosen, self.rejects, **options):
                    self.chunks.append(chunk)
            except DataError as error:
                self.error = error
        lines = rejects_path.read_text().splitlines() if rejects_path.exists() else []
        self.listed = [json.loads(line) for line in lines]
        n_examples = sum(chunk.n_rows for chunk in self.chunks)
        if self.error is None:  # nothing is silently dropped
            assert self.rejects.n_read == n_examples + len(self.listed)
        assert self.rejects.counts.total() == len(self.listed)

    @property
    def chunk(self) -> Chunk:
        (chunk,) = self.chunks
        return chunk

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(one.get("line", one.get("row")), one["reason"]) for one in self.listed]

    @property
    def items(self) -> list[int]:
        return [item for chunk in self.chunks for item in chunk.values.items.to_pylist()]


def failed(read: Read, code: str) -> str:
    assert read.error is not None
    assert read.error.code == code
    return str(read.error)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_lines(*lines: str, name: str = "table.csv", header: str = HEADER) -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join([header, *lines, ""]).encode())
        return path

    return write_lines


GOOD = (
    "r1,100,ann,7,1.5,phone,a|b,1",
    "r1,100,ann,8,,phone,,0",
    "r2,100.25,,9,0,,c,0",
)


def test_columns_become_values_of_whole_requests(write: Write) -> None:
    read = Read(write(*GOOD))
    values = read.chunk.values
    assert values.n_items.tolist() == [2, 1]
    assert values.ts_ms.tolist() == [100_000, 100_250]
    assert values.users.to_pylist() == ["ann", None]
    assert values.items.to_pylist() == [7, 8, 9]
    assert values.shared["device"].to_pylist() == ["phone", None]
    assert values.columns["price"].to_pylist() == [1.5, None, 0.0]
    assert values.columns["tags"].to_pylist() == [["a", "b"], None, ["c"]]
    assert values.acted["click"].tolist() == [True, False, False]
    assert read.chunk.labels.tolist() == [[1], [0], [0]]
    assert read.chunk.request_numbers.tolist() == [0, 0, 1]
    assert read.chunk.ts_ms.tolist() == [100_000, 100_000, 100_250]
    assert read.listed == []
    assert read.file.share_read == 1.0


def parquet(path: Path) -> Path:
    rows = {
        "request": [1, 1, 2],
        "ts": [100.0, 100.0, 100.25],
        "user": pa.array(["ann", "ann", None]).dictionary_encode(),
        "item": pa.array([7, 8, 9], pa.int32()),
        "price": [1.5, None, 0.0],
        "device": ["phone", "phone", None],
        "tags": [["a", "b"], None, ["c"]],
        "clicked": [True, False, False],
    }
    pq.write_table(pa.table(rows), path)
    return path


def same(left: Chunk, right: Chunk) -> None:
    for name in ("users", "items"):
        assert getattr(left.values, name).to_pylist() == getattr(right.values, name).to_pylist()
    for name in ("shared", "columns"):
        mine, theirs = getattr(left.values, name), getattr(right.values, name)
        assert {key: column.to_pylist() for key, column in mine.items()} == {
            key: column.to_pylist() for key, column in theirs.items()
        }
    np.testing.assert_array_equal(left.labels, right.labels)
    np.testing.assert_array_equal(left.ts_ms, right.ts_ms)
    np.testing.assert_array_equal(left.request_numbers, right.request_numbers)


@pytest.mark.parametrize("kind", ["csv.gz", "tsv", "tsv.gz", "parquet", "parquet.gz"])
def test_every_format_reads_the_same(kind: str, write: Write, tmp_path: Path) -> None:
    if kind.startswith("parquet"):
        data = parquet(tmp_path / "plain.parquet").read_bytes()
    else:
        text = "\n".join([HEADER, *GOOD, ""])
        data = (text.replace(",", "\t") if "tsv" in kind else text).encode()
    path = tmp_path / f"table.{kind}"
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    same(Read(path).chunk, Read(write(*GOOD, name="plain.csv")).chunk)


def test_format_of_the_configuration_wins_over_the_name(write: Write) -> None:
    path = write(*GOOD, name="log.inter")
    assert "replay.format" in failed(Read(path), "format")
    chosen = settings(**{"ts_unit: s": "ts_unit: s\n  format: csv"})
    assert Read(path, chosen).items == [7, 8, 9]


@pytest.mark.parametrize(
    ("unit", "texts"),
    [
        ("s", ["1000", "1000.5"]),
        ("ms", ["1000000", "1000500"]),
        ("us", ["1000000000", "1000500000"]),
        ("ns", ["1000000000000", "1000500000000"]),
        ("s", ["1970-01-01 00:16:40", "1970-01-01T00:16:40.500"]),
        ("s", ["1970-01-01T00:16:40Z", "1970-01-01T02:16:40.500+02:00"]),
        ("s", ["1970-01-01T00:16:40.000000", "1970-01-01T00:16:40.500999999"]),
        ("s", ["1970-01-01 00:16:40.000001+00:00", "1970-01-01 00:16:40.5+00:00"]),
        ("s", ["1970-01-01 00:16:40 UTC", "1970-01-01 00:16:40.500 UTC"]),
    ],
)
def test_times_are_numbers_in_their_unit_or_written_out(
    unit: str, texts: list[str], write: Write
) -> None:
    path = write(*(f"{n},{ts},ann,7,1,phone,,0" for n, ts in enumerate(texts)))
    read = Read(path, settings(**{"ts_unit: s": f"ts_unit: {unit}"}))
    assert read.chunk.ts_ms.tolist() == [1_000_000, 1_000_500]


def test_way_of_writing_times_is_that_of_the_rows_that_have_one(write: Write) -> None:
    starts = ["", "1970-01-01T00:16:40"]  # more empty ones than rows looked at
    lines = [f"{n},{starts[n // 150]},ann,{n},1,phone,,0" for n in range(300)]
    assert Read(write(*lines)).items == list(range(150, 300))
    lines = [f"{n},{n + n // 200 / 2:g},ann,{n},1,phone,,0" for n in range(300)]
    assert Read(write(*lines)).chunk.ts_ms[-1] == 299_500


def test_timestamps_of_parquet_are_times(tmp_path: Path) -> None:
    rows = pq.read_table(parquet(tmp_path / "table.parquet"))
    times = pa.array([datetime.fromtimestamp(100 + n, UTC) for n in (0, 0, 3)])
    pq.write_table(rows.set_column(1, "ts", times), tmp_path / "table.parquet")
    assert Read(tmp_path / "table.parquet").chunk.ts_ms.tolist() == [100_000, 100_000, 103_000]


def test_without_time_and_request_each_row_is_a_request_a_second_on(write: Write) -> None:
    chosen = settings(**{"request: request, ts: ts, ": ""})
    chunk = Read(write(*GOOD), chosen).chunk
    assert chunk.values.n_items.tolist() == [1, 1, 1]
    assert np.diff(chunk.ts_ms).tolist() == [1_000, 1_000]


def test_label_may_be_a_comparison(write: Write) -> None:
    lines = [f"r,100,ann,{item},1,phone,,{rating}" for item, rating in enumerate([3, 3.5, 4, 5])]
    chosen = settings(**{"click: clicked": 'click: "clicked >= 3.5"'})
    assert Read(write(*lines), chosen).chunk.labels[:, 0].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("number", ["four", "nan", "inf"])
def test_label_is_compared_with_a_number(number: str) -> None:
    with pytest.raises(ConfigError, match=f"'{number}' is not a number"):
        settings(**{"click: clicked": f'click: "clicked >= {number}"'})


def test_feature_may_have_a_column_of_another_name(write: Write) -> None:
    chosen = settings(**{"item: item,": "item: item, features: {price: cost},"})
    path = write(*GOOD, header=HEADER.replace("price", "cost"))
    assert Read(path, chosen).chunk.values.columns["price"].to_pylist() == [1.5, None, 0.0]


def test_missing_column_is_named_with_what_is_there(write: Write) -> None:
    text = failed(Read(write(*GOOD, header=HEADER.replace("clicked", "cliked"))), "missing-column")
    assert "'clicked'" in text
    assert "did you mean 'cliked'?" in text
    assert "request, ts, user, item, price, device, tags, cliked" in text
    text = failed(Read(write(*GOOD, header=HEADER.replace(",", ";"))), "missing-column")
    assert "values stand between ','" in text


@pytest.mark.parametrize("section", ["labels: {klick: clicked}", "features: {prise: price}"])
def test_mapping_of_what_the_configuration_lacks_is_its_mistake(section: str) -> None:
    with pytest.raises(ConfigError, match=r"\.yaml:\d+:\d+: .*there is no \w+ '\w+'; did you mean"):
        settings(**{"labels: {click: clicked}": section})


def test_empty_file_holds_no_rows(write: Write, tmp_path: Path) -> None:
    (tmp_path / "none.csv").touch()
    assert "header" in failed(Read(tmp_path / "none.csv"), "empty")
    for first in (b"a,b\r1,2\r", b"\xff\xfe", b"x" * 200_000):
        (tmp_path / "none.csv").write_bytes(first + b"\n")
        assert "is no header" in failed(Read(tmp_path / "none.csv"), "broken-file")
    assert "no rows" in failed(Read(write()), "empty")
    pq.write_table(pq.read_table(parquet(tmp_path / "t.parquet"))[:0], tmp_path / "t.parquet")
    assert "no rows" in failed(Read(tmp_path / "t.parquet"), "empty")


def test_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    assert "No such file" in failed(Read(tmp_path / "none.csv"), "broken-file")


def test_request_earlier_than_the_one_before_stops_with_both_rows_and_times(write: Write) -> None:
    read = Read(write(*GOOD, "r3,99.5,ann,1,1,phone,,0"))
    text = failed(read, "unsorted")
    assert "line 5: 1970-01-01T00:01:39.500+00:00" in text
    assert "00:01:40.250+00:00 of the request before, at line 4" in text
    assert "--sort" in text
    assert read.items == [7, 8, 9]  # what came before


def test_sort_brings_requests_into_time_and_their_rows_together(write: Write) -> None:
    lines = ["r3,300,ann,1,1,phone,,0", "r1,100,ann,2,1,phone,,1", "r2,200,ann,3,1,phone,,0"]
    lines += ["r1,250,ann,4,1,phone,,0", "r4,100,ann,5,1,phone,,0"]
    read = Read(write(*lines), sort=True)
    assert read.items == [2, 4, 5, 3, 1]  # r1 (both), r4, r2, r3: equal times as the file has them
    assert read.chunk.values.n_items.tolist() == [2, 1, 1, 1]
    assert read.chunk.values.ts_ms.tolist() == [100_000, 100_000, 200_000, 300_000]


def test_sorted_requests_have_the_time_of_their_first_row(write: Write) -> None:
    lines = ["r1,105,ann,1,1,phone,,0", "r1,103,ann,2,1,phone,,0", "r2,104,ann,3,1,phone,,0"]
    read = Read(write(*lines), sort=True)
    assert read.items == [3, 1, 2]
    assert read.chunk.values.ts_ms.tolist() == [104_000, 105_000]


@pytest.mark.parametrize("sort", [False, True])
def test_file_without_a_row_that_can_be_used_is_an_error(sort: bool, write: Write) -> None:
    assert "no rows" in failed(Read(write(), sort=sort), "empty")
    text = failed(Read(write("rubbish", "r,x,ann,1,1,,,0"), sort=sort), "empty")
    assert "1 corrupt-line, 1 bad-time" in text
    assert "rejects.jsonl" in text


def test_order_is_held_across_chunks(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_CHUNK_ROWS_MIN", 2)
    monkeypatch.setattr(table_module, "ROWS_PER_BATCH", 2)
    lines = [f"r{n},{n + 100},ann,{n},1,phone,,0" for n in range(6)]
    assert "line 8" in failed(Read(write(*lines, "r9,50,ann,9,1,phone,,0")), "unsorted")


def test_chunks_hold_whole_requests(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_CHUNK_ROWS_MIN", 5)
    monkeypatch.setattr(table_module, "ROWS_PER_BATCH", 3)
    lines = [f"r{n // 4},{100 + n // 4},ann,{n},1,phone,,0" for n in range(30)]
    read = Read(write(*lines))
    assert len(read.chunks) > 3
    assert read.items == list(range(30))
    numbers = np.concatenate([chunk.request_numbers for chunk in read.chunks])
    assert numbers.tolist() == [n // 4 for n in range(30)]
    for chunk in read.chunks:
        assert (
            chunk.values.n_items.tolist()
            == np.bincount(chunk.request_numbers)[chunk.request_numbers[0] :].tolist()
        )


def test_request_in_two_places_counts_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> list[str]:
        found = [f"r{n},{n + 100},ann,{n},1,phone,,0" for n in range(9)]
        return [*found, "r2,150,ann,77,1,phone,,1", "r8,150,ann,88,1,phone,,1"]

    whole = Read(write(*lines()))
    monkeypatch.setattr(table_module, "_CHUNK_ROWS_MIN", 2)
    monkeypatch.setattr(table_module, "ROWS_PER_BATCH", 2)
    for read in (whole, Read(write(*lines()))):
        assert read.items == list(range(9))
        assert read.reasons == [(11, "split-request"), (12, "split-request")]


def test_rows_of_another_user_or_context_than_their_request_are_rejected(write: Write) -> None:
    lines = ["r1,100,ann,1,1,phone,,0", "r1,100,bob,2,1,phone,,0", "r1,100,ann,3,1,desk,,1"]
    lines += ["r1,100,ann,4,1,,,0", "r2,101,,5,1,,,0", "r2,101,,6,1,,,0"]
    read = Read(write(*lines))
    assert read.items == [1, 5, 6]
    assert sorted(read.reasons) == [(n, "mixed-request") for n in (3, 4, 5)]


def test_time_in_the_future_is_rejected(write: Write) -> None:
    late = [f"r{n},{NOW_S + s},ann,{n},1,phone,,0" for n, s in enumerate((0, 300, 301))]
    read = Read(write(*late))
    assert read.items == [0, 1]
    assert read.reasons == [(4, "future")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("r,100,ann,-7,1,phone,,0", "bad-value"),
        ("r,100,ann,007,1,phone,,0", "bad-value"),
        ("r,100,ann,18446744073709551616,1,phone,,0", "bad-value"),
        ("r,100,ann,,1,phone,,0", "bad-value"),
        ("r,100,ann,7,cheap,phone,,0", "bad-value"),
        ("r,100,ann,7,-1,phone,,0", "bad-value"),
        ("r,100,ann,7,nan,phone,,0", "bad-value"),
        (f"r,100,ann,7,1,{'x' * 257},,0", "bad-value"),
        (f"r,100,ann,7,1,phone,a|{'x' * 257},0", "bad-value"),
        ("r,100,ann,7,1,phone," + "|".join("x" * 257) + ",0", "bad-value"),
        (",100,ann,7,1,phone,,0", "bad-value"),
        ("r,,ann,7,1,phone,,0", "bad-time"),
        ("r,yesterday,ann,7,1,phone,,0", "bad-time"),
        ("r,-1,ann,7,1,phone,,0", "bad-time"),
        ("r,1e12,ann,7,1,phone,,0", "bad-time"),
        ("r,100,ann,7,1,phone,,2", "bad-label"),
        ("r,100,ann,7,1,phone,,0.5", "bad-label"),
        ("r,100,ann,7,1,phone,,maybe", "bad-label"),
        ("r,100,ann,7,1,phone,,", "no-label"),
        ("r,100,ann,7,1,phone", "corrupt-line"),
        ("r,100,ann,7,1,phone,,0,9", "corrupt-line"),
        ('r,100,"ann,7,1,phone,,0', "corrupt-line"),
        ('r,100,5" ann,7,1,"phone,,0', "corrupt-line"),
        ('r,100,5" ann,7,1,phone,,"0', "corrupt-line"),
        ("r,100,a\rb,7,1,phone,,0", "corrupt-line"),
    ],
)
def test_unfit_row_is_rejected_with_its_line_and_content(
    line: str, reason: str, write: Write
) -> None:
    read = Read(write(*GOOD, "", line, "r9,101,ann,1,1,phone,,0"))
    assert read.items == [7, 8, 9, 1]
    assert read.reasons == [(6, reason)]
    (listed,) = read.listed
    if reason == "corrupt-line":
        assert listed["content"] == line
    else:
        assert list(listed["content"]) == sorted(HEADER.split(","))
        assert "expected" in listed["detail"]


@given(st.lists(st.text('",a\r', min_size=1, max_size=8), min_size=1, max_size=6))
def test_no_line_swallows_another(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:

        def rows(*chosen: str) -> tuple[list[int], list[dict[str, Any]]]:
            path = Path(name) / "table.csv"
            path.write_text("\n".join(["x,y", *chosen, ""]), newline="")
            found = list(TableFile(path).batches(["x", "y"], rejects := Rejects(None)))
            assert rejects.n_read == len(chosen)
            places = [place for _, own in found for place in own.tolist()]
            return places, [row for batch, _ in found for row in batch.to_pylist()]

        lines = [line for line in lines if line.strip("\r")] + ["1,2"]
        places, together = rows(*lines)
        assert together == [row for line in lines for row in rows(line)[1]]
        assert [rows(lines[place - 2])[0] for place in places] == [[2]] * len(places)


def test_text_that_is_no_utf8_is_rejected(write: Write) -> None:
    path = write(*GOOD, "r9,101,ann,1,1,p#one,,0")
    path.write_bytes(path.read_bytes().replace(b"#", b"\xff"))
    read = Read(path)
    assert read.reasons == [(5, "bad-value")]
    assert read.items == [7, 8, 9]


def test_unfit_rows_of_parquet_are_named_by_row(tmp_path: Path) -> None:
    rows = pq.read_table(parquet(tmp_path / "table.parquet"))
    rows = rows.set_column(3, "item", pa.array([7, -8, 9]))
    pq.write_table(rows, tmp_path / "table.parquet")
    read = Read(tmp_path / "table.parquet")
    assert read.items == [7, 9]
    assert read.reasons == [(2, "bad-value")]


@pytest.mark.parametrize(
    ("column", "use"), [("price", "feature price"), ("clicked", "label click")]
)
def test_column_that_can_never_fit_is_an_error(column: str, use: str, tmp_path: Path) -> None:
    rows = pq.read_table(parquet(tmp_path / "table.parquet"))
    at = rows.schema.get_field_index(column)
    rows = rows.set_column(at, column, pa.array([[1.5], None, [0.0]]))
    pq.write_table(rows, tmp_path / "table.parquet")
    text = failed(Read(tmp_path / "table.parquet"), "bad-column")
    assert f"column '{column}' holds list<" in text
    assert f": {use} needs " in text


@pytest.mark.parametrize(
    ("column", "values", "items"),
    [
        ("tags", pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2)), [7, 8, 9]),
        ("tags", pa.nulls(3), [7, 8, 9]),
        ("user", pa.nulls(3), [7, 8, 9]),
        ("user", pa.array(["ann", "ann", None], pa.string_view()), [7, 8, 9]),
        ("item", pa.array([2**64 - 1, 2**63, 9], pa.uint64()), [2**64 - 1, 2**63, 9]),
        ("ts", pa.array([100, 100, 101]).cast(pa.decimal128(30, 3)), [7, 8, 9]),
        ("request", pa.array([1.0, 1.0, np.nan]), [7, 8]),
    ],
)
def test_columns_of_other_types_are_read(
    column: str, values: pa.Array, items: list[int], tmp_path: Path
) -> None:
    rows = pq.read_table(parquet(tmp_path / "table.parquet"))
    rows = rows.set_column(rows.schema.get_field_index(column), column, values)
    pq.write_table(rows, tmp_path / "table.parquet")
    assert Read(tmp_path / "table.parquet").items == items


TWO_TASKS = {
    "tasks:": "tasks:\n  - {name: dwell, event: dwell, loss: huber}",
    "labels: {click: clicked}": "labels: {click: clicked, dwell: seconds}",
}


def test_missing_label_of_one_task_says_nothing_of_it(write: Write) -> None:
    lines = [f"r{n},100,ann,{n},1,phone,,{labels}" for n, labels in enumerate(("1,", ",9", ","))]
    chunk = (read := Read(write(*lines, header=HEADER + ",seconds"), settings(**TWO_TASKS))).chunk
    assert chunk.weights.tolist() == [[0, 1], [1, 0]]  # dwell, click
    assert chunk.labels[0, 1] == 1
    assert chunk.labels[1, 0] == 9
    assert np.isnan(chunk.labels[0, 0])
    assert np.isnan(chunk.labels[1, 1])
    assert {event: did.tolist() for event, did in chunk.values.acted.items()} == {
        "click": [True, False],
        "dwell": [False, True],
    }
    assert read.reasons == [(4, "no-label")]


def many(n: int, n_bad: int) -> list[str]:
    """n lines of which `n_bad`, spread over them, are corrupt."""
    every = n // n_bad if n_bad else n + 1
    return [
        "rubbish" if i % every == every // 2 and i // every < n_bad else f"{i},{i},ann,{i},1,p,,0"
        for i in range(n)
    ]


def test_one_percent_of_corrupt_lines_is_listed_and_counted(write: Write) -> None:
    read = Read(write(*many(20_000, 200)), share_max=0.01)
    assert read.error is None
    assert read.rejects.counts == {"corrupt-line": 200}
    assert read.rejects.n_read == 20_000
    assert len(read.items) == 19_800


def test_rejects_of_an_earlier_replay_do_not_stay(write: Write) -> None:
    assert Read(write(*GOOD, "rubbish")).listed != []
    assert Read(write(*GOOD)).listed == []


def test_more_corrupt_lines_than_allowed_stop_with_the_first_of_each_reason(write: Write) -> None:
    text = failed(Read(write(*many(20_000, 201)), share_max=0.01), "too-many-rejects")
    assert "201 of 20,000 rows" in text
    assert "--max-rejects" in text
    assert "201 corrupt-line, the first in line" in text
    assert "rejects.jsonl" in text


def test_rows_read_before_too_many_were_rejected_are_replayed(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 1 << 15)
    read = Read(write(*many(20_000, 2_000)), share_max=0.01)
    failed(read, "too-many-rejects")
    assert read.rejects.n_read == len(read.items) + len(read.listed) < 4_000


def test_small_file_is_judged_as_a_whole(write: Write) -> None:
    failed(Read(write(*GOOD, "rubbish"), share_max=0.2), "too-many-rejects")
    assert Read(write(*GOOD, "rubbish"), share_max=0.25).error is None


def noise(n: int) -> list[str]:
    """Lines that hardly compress, so that half of the file holds about half of them."""
    users = np.random.default_rng(1).integers(0, 1 << 60, n)
    return [f"r{i},{i},{user:x},{i},1,p,,0" for i, user in enumerate(users)]


def test_truncated_gzip_gives_what_could_be_read_and_says_where_it_ends(
    write: Write, tmp_path: Path
) -> None:
    packed = gzip.compress(write(*noise(20_000)).read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    read = Read(tmp_path / "cut.csv.gz")
    assert "end-of-stream" in failed(read, "broken-file")
    assert 5_000 < len(read.items) < 15_000
    assert read.items == list(range(len(read.items)))
    assert read.rejects.n_read == len(read.items)


def test_line_that_a_broken_file_cuts_is_no_row(tmp_path: Path) -> None:
    # Stored, not compressed: so it breaks off within the last number, which still is one.
    chosen = settings(**{"item: item, ": "item: item, features: {price: item, device: ts},"})
    text = "\n".join(["clicked,tags,request,ts,user,item", "0,,1,1,ann,1", "0,,2,2,ann,1234567"])
    packed = gzip.compress(text.encode(), 0)
    (tmp_path / "cut.csv.gz").write_bytes(packed[: packed.index(b"567")])
    read = Read(tmp_path / "cut.csv.gz", chosen)
    assert (read.items, read.listed) == ([1], [])
    assert "after 1 rows" in failed(read, "broken-file")


def test_truncated_parquet_cannot_be_read(tmp_path: Path) -> None:
    data = parquet(tmp_path / "table.parquet").read_bytes()
    (tmp_path / "table.parquet").write_bytes(data[: len(data) // 2])
    assert "parquet" in failed(Read(tmp_path / "table.parquet"), "broken-file")


def test_request_that_never_ends_is_a_wrong_column(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "REQUEST_ROWS_MAX", 9_000)
    lines = [f"r,100,ann,{n},1,p,,0" for n in range(9_001)]
    assert "line 2" in failed(Read(write(*lines)), "request-too-long")


def test_limit_ends_the_reading(write: Write) -> None:
    read = Read(write(*many(100, 0)), limit=7)
    assert read.items == list(range(7))
    assert read.rejects.n_read == 7
    assert Read(parquet(write().with_name("t.parquet")), limit=2).items == [7, 8]
    read = Read(write(*many(100, 50)), limit=7)
    assert read.rejects.n_read == 7
    assert read.items == [0, 2, 4, 6]
