"""`freshrank replay` on small tables, as a user runs it."""

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.programs import FRESHRANK

N_REQUESTS, N_ITEMS = 600, 4

CONFIG = """
version: 1
replay:
  columns:
    request: session
    ts: at
    user: visitor
    item: article
    labels: {click: clicked, dwell: seconds}
    features: {kind: category}
features:
  - {name: user_id, type: id, scope: user, dim: 4}
  - {name: item_id, type: id, scope: item, dim: 4}
  - {name: kind, type: id, scope: item, dim: 4}
  - {name: hour, type: bucket, scope: context, boundaries: [6, 12, 18], dim: 4}
  - {name: clicks, type: count, event: click}
  - {name: last, type: recent, event: click, max_len: 3}
tasks:
  - {name: click, event: click}
  - {name: dwell, event: dwell, loss: huber, weight: 0.1}
optimizer: {sparse: {lr: 0.2}}
trainer: {batch_max: 32}
"""


def rows(seed: int = 1) -> pa.Table:
    """Requests of four articles; a visitor likes one of three categories, at 60 % against 10 %."""
    rng = np.random.default_rng(seed)
    n = N_REQUESTS * N_ITEMS
    visitor = np.repeat(rng.integers(0, 30, N_REQUESTS), N_ITEMS)
    article = rng.integers(0, 60, n)
    clicked = rng.random(n) < np.where(article % 3 == visitor % 3, 0.6, 0.1)
    at = np.repeat(1_700_000_000.25 + 20.0 * np.arange(N_REQUESTS), N_ITEMS)
    return pa.table(
        {
            "session": [f"s{number}" for number in np.repeat(np.arange(N_REQUESTS), N_ITEMS)],
            "at": at,
            "visitor": [f"v{number}" for number in visitor],
            "article": [f"a{number}" for number in article],
            "category": [f"c{number % 3}" for number in article],
            "hour": (at // 3_600 % 24).astype(np.int64),
            "clicked": clicked.astype(np.int8),
            "seconds": pa.array(np.where(clicked, 1.5, 0), mask=~clicked),
        }
    )


def write(directory: Path, name: str, table: pa.Table) -> None:
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(table, directory / name)
    else:
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        (directory / name).write_bytes(gzip.compress(bytes(sink.getvalue())))


def replay(
    directory: Path, *arguments: str, config: str = CONFIG
) -> subprocess.CompletedProcess[str]:
    (directory / "freshrank.yaml").write_text(config)
    return subprocess.run(
        [FRESHRANK, "replay", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def learned(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What must repeat to the bit: everything but time and memory."""
    return [model["tasks"] for model in report["models"]] + [report["tables"]]


def test_a_log_and_a_config_give_a_report(tmp_path: Path) -> None:
    write(tmp_path, "log.parquet", rows())
    arguments = ("log.parquet", "--report", "out", "--sync-every", "10m,60m", "--json")
    report = document(replay(tmp_path, *arguments))
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert report["rows_read"] == report["examples"] == N_REQUESTS * N_ITEMS
    assert report["requests"] == N_REQUESTS
    assert report["rejected"] == {}
    assert report["stopped"] is None
    assert report["rejects_file"] is None
    assert report["tables"]["item_id"]["rows"] == 60
    assert report["tables"]["kind"]["rows"] == 3
    assert report["peak_rss_bytes"] > 1 << 20
    ours, *stale = report["models"]
    click = ours["tasks"]["click"]
    # The likings are known by the end, and knowing them all would give 0.79.
    assert 0.7 < click["auc_second_half"] < 0.82
    assert click["auc_second_half"] > click["auc_all"]
    assert 0.8 < click["calibration"] < 1.25
    hours, n_rows = np.unique(rows()["at"].to_numpy() // 3_600, return_counts=True)
    assert [(hour["ts_ms"], hour["examples"]) for hour in click["by_hour"]] == [
        (hour * 3_600_000, n) for hour, n in zip(hours, n_rows, strict=True)
    ]
    assert ours["tasks"]["dwell"]["examples"] == round(float(np.sum(rows()["clicked"])))
    assert [model["sync_every_s"] for model in stale] == [600, 3_600]
    aucs = [model["tasks"]["click"]["auc_all"] for model in report["models"]]
    assert aucs[0] > aucs[2]


def test_the_same_rows_give_the_same_figures_in_every_format_and_run(tmp_path: Path) -> None:
    for name in ("log.parquet", "log.csv.gz"):
        write(tmp_path, name, rows())
    found = [
        document(replay(tmp_path, name, "--json"))
        for name in ("log.parquet", "log.parquet", "log.csv.gz")
    ]
    assert learned(found[0]) == learned(found[1]) == learned(found[2])


def test_labels_of_a_request_do_not_reach_its_own_scores(tmp_path: Path) -> None:
    # Each request shows four articles never seen before, all clicked or none: whoever learned one
    # of them, or counted its click, before scoring the others would know them.
    table = rows()
    n = len(table)
    clicked = np.repeat(np.random.default_rng(3).random(N_REQUESTS) < 0.5, N_ITEMS)
    articles = np.repeat([f"new{number}" for number in range(N_REQUESTS)], N_ITEMS)
    for name, column in {
        "article": articles,
        "visitor": [f"v{number}" for number in np.repeat(np.arange(N_REQUESTS), N_ITEMS)],
        "category": np.full(n, "c"),
        "clicked": clicked.astype(np.int8),
    }.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(column))
    write(tmp_path, "log.parquet", table)
    config = CONFIG.replace("batch_max: 32", "batch_max: 1")
    (model,) = document(replay(tmp_path, "log.parquet", "--json", config=config))["models"]
    # 600 coin tosses: a standard error of 0.024.
    assert model["tasks"]["click"]["auc_all"] == pytest.approx(0.5, abs=0.1)


def test_seeds_give_a_spread_and_text_shows_it(tmp_path: Path) -> None:
    write(tmp_path, "log.parquet", rows())
    done = replay(tmp_path, "log.parquet", "--seeds", "2", "--limit", "1000")
    assert done.returncode == 0, done.stderr
    assert "1,000 examples of 250 requests, 0 rejected" in done.stdout
    assert " ± 0.0" in done.stdout
    # 5,000 s from 22:13 on; seconds taken for milliseconds would be of 1970.
    assert "click, 2023-11-14 22:00 to 2023-11-15 00:00 UTC: 1,000 rows, " in done.stdout
    assert done.stderr == ""  # no bar where nobody looks


def test_baseline_has_a_row_over_the_same_examples(tmp_path: Path) -> None:
    write(tmp_path, "log.parquet", rows())
    report = document(replay(tmp_path, "log.parquet", "--baselines", "rate", "--json"))
    ours, rate = report["models"]
    assert rate["name"] == "rate"
    assert list(rate["tasks"]) == ["click"]
    assert rate["tasks"]["click"]["examples"] == ours["tasks"]["click"]["examples"]
    assert rate["tasks"]["click"]["auc_all"] < ours["tasks"]["click"]["auc_all"]


def test_corrupt_lines_are_listed_beside_the_report(tmp_path: Path) -> None:
    write(tmp_path, "log.csv.gz", rows())
    lines = gzip.decompress((tmp_path / "log.csv.gz").read_bytes()).splitlines()
    lines[100:100] = [b"rubbish"] * 5
    (tmp_path / "log.csv").write_bytes(b"\n".join(lines))
    report = document(replay(tmp_path, "log.csv", "--report", "out", "--json"))
    assert report["rejected"] == {"corrupt-line": 5}
    assert report["rows_read"] == report["examples"] + 5
    listed = (tmp_path / report["rejects_file"]).read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [101, 102, 103, 104, 105]
    done = replay(tmp_path, "log.csv", "--max-rejects", "0.1%")
    assert done.returncode == 1
    assert "5 of 2,405 rows were rejected" in done.stderr


def test_truncated_gzip_reports_what_was_read_and_fails(tmp_path: Path) -> None:
    write(tmp_path, "log.csv.gz", rows())
    data = (tmp_path / "log.csv.gz").read_bytes()
    (tmp_path / "log.csv.gz").write_bytes(data[: len(data) // 2])
    done = replay(tmp_path, "log.csv.gz", "--report", "out")
    assert done.returncode == 1
    assert "end-of-stream" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < report["examples"] < N_REQUESTS * N_ITEMS
    assert report["stopped"] in done.stderr


def test_unsorted_log_fails_and_sort_mends_it(tmp_path: Path) -> None:
    table = rows()
    write(tmp_path, "log.parquet", pa.concat_tables([table[1_200:], table[:1_200]]))
    done = replay(tmp_path, "log.parquet")
    assert done.returncode == 1
    assert "row 1201: 2023-11-14T22:13:20.250+00:00 is earlier" in done.stderr
    assert "--sort" in done.stderr
    write(tmp_path, "sorted.parquet", table)
    mended = document(replay(tmp_path, "log.parquet", "--sort", "--json"))
    assert learned(mended) == learned(document(replay(tmp_path, "sorted.parquet", "--json")))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sync-every", "soon"), "--sync-every: not a duration: 'soon'"),
        (("--speed", "fast"), "--speed fast: write a number such as 10x"),
        (("--max-rejects", "200%"), "--max-rejects 200%: write a number such as 1%"),
        (("--baselines", "magic"), "unknown baseline 'magic'"),
        (("--rejects", "./log.parquet"), "--rejects log.parquet is the log itself"),
    ],
)
def test_wrong_option_is_said_with_what_to_write(
    arguments: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    write(tmp_path, "log.parquet", rows()[:8])
    done = replay(tmp_path, "log.parquet", *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_report_that_cannot_be_written_is_said_before_the_replay(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    done = replay(tmp_path, "none.parquet", "--report", "out")
    assert done.returncode == 3
    assert "write the report to out: " in done.stderr


def test_events_that_break_off_are_reported_and_fail(tmp_path: Path) -> None:
    shown = {"kind": "impression", "items": [{"item": "a"}, {"item": "b"}], "user": "ann"}
    events = [shown | {"request_id": str(n), "ts": 1_700_000_000 + n} for n in range(200)]
    lines = [json.dumps(event) for event in events] + ["rubbish"] * 3
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    done = replay(tmp_path, "events.jsonl", "--report", "out")
    assert done.returncode == 1
    assert "3 of 203 rows were rejected" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["examples"], report["rejected"]) == (400, {"malformed-json": 3})
    assert report["stopped"] in done.stderr
