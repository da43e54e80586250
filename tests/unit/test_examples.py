"""The shipped examples: their stand-ins can be replayed, and requests are built as they say."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from freshrank import config
from freshrank.features import FeatureEncoder
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
