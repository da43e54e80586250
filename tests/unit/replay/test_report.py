"""The report as JSON and as a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from freshrank.replay.measures import Figures, Measures
from freshrank.replay.report import ModelRow, Report
from freshrank.replay.report_text import report_lines


def figures(seed: int, *, noise: float = 0.5) -> dict[str, Figures]:
    rng = np.random.default_rng(seed)
    n = 400
    labels = (rng.random(n) < 0.3).astype(np.float32)
    scores = np.clip(0.3 + 0.3 * labels + rng.normal(0, noise, n), 0.01, 0.99).astype(np.float32)
    measures = Measures(["click"], ["logloss"])
    measures.add(
        scores[:, None],
        labels[:, None],
        np.ones((n, 1), np.float32),
        ts_ms=np.arange(n) * 60_000,
        request_numbers=np.arange(n) // 5,
        item_age_s=np.arange(n) * 30,
    )
    return measures.figures()


def report(**changes: object) -> Report:
    ours = [figures(seed) for seed in (1, 2, 3)]
    models = [
        ModelRow("freshrank", ours, examples_per_second=12_345.6),
        ModelRow("freshrank every 60m", ours, sync_every_s=3_600.0),
        ModelRow("vw <tuned>", [figures(4)]),
    ]
    found = Report("news.yaml", "requests.parquet", models, rows_read=410, examples=400)
    found.rejected, found.rejects_file = {"future": 7, "bad-value": 3}, "rejects.jsonl"
    found.tables = {"item_id": {"rows": 5, "bytes": 640, "filtered": 2, "expired": 1}}
    found.seeds = [1, 2, 3]
    for name, value in changes.items():
        setattr(found, name, value)
    return found


class Page(HTMLParser):
    """Collects tags and texts, and holds that every tag is closed in order."""

    VOID = ("meta", "rect", "line", "polyline", "circle", "html", "body")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def written(tmp_path: Path) -> Path:
    report().write(tmp_path / "out")
    return tmp_path / "out"


def test_seeds_have_mean_spread_and_extremes(written: Path) -> None:
    document = json.loads((written / "report.json").read_text())
    click = document["models"][0]["tasks"]["click"]
    runs = [figures(seed)["click"]["auc_second_half"] for seed in (1, 2, 3)]
    assert click["auc_second_half"] == runs[0]
    assert click["seeds"]["auc_second_half"] == pytest.approx(
        {"mean": np.mean(runs), "sd": np.std(runs, ddof=1), "min": min(runs), "max": max(runs)}
    )
    assert document["models"][2]["tasks"]["click"]["seeds"]["auc_all"]["sd"] == 0.0


def test_totals_are_sums_over_tables() -> None:
    tables = {
        name: {"rows": n, "bytes": 10 * n, "filtered": 1, "expired": 0}
        for name, n in (("a", 3), ("b", 4))
    }
    document = report(tables=tables).document()
    assert [document[name] for name in ("rows", "bytes", "filtered", "expired")] == [7, 70, 2, 0]
    assert document["peak_rss_bytes"] > 1 << 20


def test_page_is_well_formed_and_needs_nothing_from_elsewhere(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags} == set()
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", text)
    assert 'lang="en"' in text
    assert "light dark" in text


def test_every_plot_has_a_name_and_every_table_its_headers(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and "aria-hidden" not in attrs]
    assert len(plots) == 5  # AUC by model; AUC, log loss, calibration by hour; calibration by age
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert {attrs.get("scope") for tag, attrs in page.tags if tag == "th"} == {"col", "row"}


def test_page_tells_the_figures_of_every_model(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    document = json.loads((written / "report.json").read_text())
    for model in document["models"]:
        assert model["name"] in page.text  # escaped: <tuned> would else be a tag
        spread = model["tasks"]["click"]["seeds"]["auc_second_half"]
        assert f"{spread['mean']:.4f}" in page.text
    for expected in ("60 min", "12,346", "future", "rejects.jsonl", "640"):
        assert expected in page.text


def test_a_model_of_one_task_is_left_out_of_the_others() -> None:
    both = figures(1) | {"like": figures(2)["click"]}
    found = Report("c.yaml", "x.csv", [ModelRow("freshrank", [both]), ModelRow("vw", [figures(3)])])
    text = Page(_page(found)).text
    assert "Task like" in text
    assert "vw" in text[: text.index("Task like")]
    assert "vw" not in text[text.index("Task like") :]


def test_page_says_why_a_replay_stopped() -> None:
    assert "It stopped early" not in Page(_page(report())).text
    assert "unexpected end at row 7" in Page(_page(report(stopped="unexpected end at row 7"))).text


def test_notes_stand_in_every_form_of_the_report() -> None:
    found = report(notes=["3 of 4 lines are <odd>", "another"])
    assert found.document()["notes"] == found.notes
    shown = Page(_page(found)).text
    assert shown.index("3 of 4 lines are <odd>") < shown.index("What was replayed")
    lines = list(report_lines(found, None))
    assert lines.index("note: another") == lines.index("note: 3 of 4 lines are <odd>") + 1
    assert not [line for line in report_lines(report(), None) if line.startswith("note: ")]


def test_page_of_nothing_is_a_page() -> None:
    assert "Replay of x.csv" in Page(_page(Report("c.yaml", "x.csv"))).text


def _page(found: Report) -> str:
    from freshrank.replay.page import page

    return page(found.document())
