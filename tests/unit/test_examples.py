"""The shipped examples: their stand-ins can be replayed, and requests are built as they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from freshrank import config
from freshrank.features import FeatureEncoder
from freshrank.replay.events import replay_events
from freshrank.replay.rejects import Rejects
from freshrank.replay.sources import TableFile
from freshrank.replay.table import read_table
from freshrank.table_encoder import TableEncoder

EXAMPLES = Path(__file__).parents[2] / "examples"


def prepare_of(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"{example}_prepare", EXAMPLES / example / "prepare.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("example", "name"),
    [
        ("news", "freshrank.yaml"),
        ("news", "logistic.yaml"),
        ("movielens", "freshrank.yaml"),
        ("criteo", "freshrank.yaml"),
    ],
)
def test_every_row_of_a_stand_in_fits_its_configuration(
    example: str, name: str, tmp_path: Path
) -> None:
    table = tmp_path / "table.parquet"
    script = EXAMPLES / example / "prepare.py"
    subprocess.run([sys.executable, str(script), str(table), "--generate"], check=True)
    settings = config.load(EXAMPLES / example / name, environ={})
    encoder = FeatureEncoder(settings)
    encode = TableEncoder(settings, encoder).encode
    positives = 0.0
    with Rejects(None, share_max=0.0) as rejects:
        for chunk in read_table(TableFile(table), settings, rejects, limit=2_000):
            assert np.isfinite(encode(chunk.values).dense).all()
            positives += float(chunk.labels.sum())
    assert rejects.counts == {}
    assert 0 < positives < 2_000


def test_a_news_request_holds_its_click_and_four_articles_clicked_within_the_hour() -> None:
    news = prepare_of("news")
    clicks = news.generate_clicks(3_000)
    articles = clicks["click_article_id"].to_numpy()
    ts_ms = clicks["click_timestamp"].to_numpy()

    sources, shown, places = news.draw_requests(articles, ts_ms)

    places_of = dict(zip(sources.tolist(), places.tolist(), strict=True))
    items_of = dict(zip(sources.tolist(), shown.tolist(), strict=True))
    for n, (article, at) in enumerate(zip(articles.tolist(), ts_ms.tolist(), strict=True)):
        window = articles[:n][ts_ms[:n] >= at - 3_600_000].tolist()
        assert (n in items_of) == (len(window) >= 500 and article in window)
        if n in items_of:
            items = items_of[n]
            assert len(set(items)) == 5
            assert items[places_of[n]] == article
            assert set(items) <= set(window)
    assert np.bincount(places, minlength=5).min() > 0.15 * len(places)  # in random order


def test_news_as_events_is_the_same_requests(tmp_path: Path) -> None:
    news = prepare_of("news")
    table = news.build_requests(news.generate_clicks(700))
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in news.events(table)))
    settings = config.load(EXAMPLES / "news" / "freshrank.yaml", environ={})
    found = replay_events(path, settings, Rejects(None, share_max=0.0))
    assert found.broken is None
    assert found.requests == table.num_rows // 5 > 100
    assert found.accounting["click.positive"] == found.requests
    assert found.accounting["click.negative"] == 4 * found.requests


def test_both_downloads_of_movielens_are_read_alike(tmp_path: Path) -> None:
    movielens = prepare_of("movielens")
    films = "1|Toy Story (1995)|01-Jan-1995|||0|0|0|1|1|1" + "|0" * 13
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, texts in (
        (
            old,
            {
                "u.data": "5\t2\t3\t20\n5\t1\t4\t10\n",
                "u.item": f"{films}\n2|unknown|||{'|0' * 19}\n",
            },
        ),
        (
            new,
            {
                "ml-100k.inter": "u\ti\tr\tt\n5\t2\t3\t20\n5\t1\t4\t10\n",
                "ml-100k.item": "i\tt\ty\tc\n1\tToy Story\t1995\tAnimation Children's Comedy\n"
                "2\tunknown\t\t\n",
            },
        ),
    ):
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text)
    table = movielens.build(*movielens.read(old))
    assert table.equals(movielens.build(*movielens.read(new)))
    assert table.to_pydict() == {
        "user_id": [5, 5],
        "item_id": [1, 2],
        "rating": [4.0, 3.0],
        "ts": [10, 20],
        "year": [1995, None],
        "genres": [["Animation", "Children's", "Comedy"], []],
    }


def test_download_of_criteo_has_nulls_and_no_negative_numbers(tmp_path: Path) -> None:
    numbers = ["1", "-2", *([""] * 11)]
    (tmp_path / "train.txt").write_text("\t".join(["1", *numbers, "68fd1e64", *([""] * 25)]) + "\n")
    (row,) = prepare_of("criteo").read(tmp_path).to_pylist()
    assert (row["label"], row["i1"], row["i2"], row["i3"]) == (1, 1.0, 0.0, None)
    assert (row["c1"], row["c2"]) == ("68fd1e64", None)


@pytest.mark.parametrize("example", ["news", "movielens", "criteo"])
@pytest.mark.parametrize("options", [("--data", "none"), ("--generate",)])
def test_what_cannot_be_read_or_written_is_said(
    example: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    script = str(EXAMPLES / example / "prepare.py")
    command = [sys.executable, script, "none/table.parquet", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none" in done.stderr
    assert "Traceback" not in done.stderr
