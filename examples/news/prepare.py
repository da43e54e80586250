"""A news portal's click log -> ranking requests of five, as a table or as events.

    python examples/news/prepare.py news.parquet [--data DIR] [--clicks 400000] [--events]
    python examples/news/prepare.py news.parquet --generate

The download is "News Portal User Interactions by Globo.com" (Kaggle): its folder `clicks` of CSV
files, or one Parquet file `news_clicks_1m.parquet` of the same columns. It is looked for in --data,
else in $FRESHRANK_DATA.

The log has clicks only, so what was not clicked is made up. A click becomes one request: the
article and four others, drawn from the clicks of the hour before, thus by popularity, in random
order. A click counts where its article had a click in that hour, which has at least 500: else being
new would give the click away.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

I64 = npt.NDArray[np.int64]

WINDOW_MS: Final = 3_600_000
CLICKS_MIN: Final = 500  # of the window: fewer make poor draws
N_OTHERS: Final = 4
DEFAULT_CLICKS: Final = 400_000
# Column of the download -> feature.
CONTEXT: Final = {
    "click_environment": "environment",
    "click_deviceGroup": "device",
    "click_os": "os",
    "click_country": "country",
    "click_region": "region",
    "click_referrer_type": "referrer",
}
READ: Final = ["user_id", "click_article_id", "click_timestamp", *CONTEXT]


def read_clicks(data: Path, n_clicks: int | None) -> pa.Table:
    """The first clicks of the download, by time.

    Raises:
        FileNotFoundError: `data` holds neither form of it.
    """
    if (file := data / "news_clicks_1m.parquet").exists():
        table = pq.read_table(file, columns=READ)
    elif files := sorted((data / "clicks").glob("*.csv")):
        options = pyarrow.csv.ConvertOptions(include_columns=READ)
        table = pa.concat_tables(
            pyarrow.csv.read_csv(one, convert_options=options) for one in files
        )
    else:
        raise FileNotFoundError(f"{data} has neither news_clicks_1m.parquet nor clicks/*.csv")
    order = np.argsort(table["click_timestamp"].to_numpy(), kind="stable")
    return table.take(pa.array(order[:n_clicks]))


def generate_clicks(n_clicks: int, seed: int = 7) -> pa.Table:
    """Made-up clicks of the same form: articles that come and fade, readers with a few topics.

    They show that everything runs. What an AUC on them says is how the generator was written.
    """
    rng = np.random.default_rng(seed)
    n_topics, n_articles, n_users = 20, max(n_clicks // 100, 50), max(n_clicks // 10, 50)
    # 2,000 clicks an hour, from 2024-01-01 on.
    hours = np.sort(rng.uniform(0, n_clicks / 2_000, n_clicks))
    born = np.sort(rng.uniform(-6, hours[-1], n_articles))
    topic, appeal = rng.integers(n_topics, size=n_articles), rng.gumbel(size=n_articles)
    taste = rng.integers(n_topics, size=(n_users, 2))
    users = (n_users * rng.beta(0.5, 2.0, n_clicks)).astype(np.int64)
    articles = np.empty(n_clicks, np.int64)
    for n, (hour, user) in enumerate(zip(hours, users, strict=True)):
        n_born = int(np.searchsorted(born, hour))
        low = max(0, n_born - 300)  # older ones have faded
        liked = (topic[low:n_born, None] == taste[user]).any(axis=1)
        score = appeal[low:n_born] + 2.0 * liked - (hour - born[low:n_born]) / 3.0
        articles[n] = low + int(np.argmax(score + rng.gumbel(size=n_born - low)))
    columns = {name: rng.integers(1, 4, n_clicks)[users % n_clicks] for name in CONTEXT}
    times_ms = 1_704_067_200_000 + (hours * WINDOW_MS).astype(np.int64)
    return pa.table(
        {"user_id": users, "click_article_id": articles, "click_timestamp": times_ms, **columns}
    )


def draw_requests(articles: I64, ts_ms: I64, seed: int = 7) -> tuple[I64, I64, I64]:
    """A request per click that counts.

    Args:
        articles: `int64[c]`, clicked, by time.
        ts_ms: `int64[c]`.
        seed: Of the draws: the same requests for the same clicks.

    Returns:
        Which clicks count, `int64[r]`; the articles of each, `int64[r, 5]`; the place of the
        clicked one, `int64[r]`.
    """
    rng = np.random.default_rng(seed)
    known, numbers = np.unique(articles, return_inverse=True)
    clicked: list[int] = numbers.tolist()  # plain lists: numpy's scalars cost thrice the time
    starts: list[int] = np.searchsorted(ts_ms, ts_ms - WINDOW_MS, side="left").tolist()
    in_window = [0] * len(known)
    low = 0
    sources, shown, places = [], [], []
    for n, (article, start) in enumerate(zip(clicked, starts, strict=True)):
        for gone in clicked[low:start]:
            in_window[gone] -= 1
        low = start
        if n - low >= CLICKS_MIN and in_window[article]:
            items = [article]
            while len(items) <= N_OTHERS:
                other = clicked[low + int(rng.integers(n - low))]
                if other not in items:
                    items.append(other)
            order = rng.permutation(len(items)).tolist()
            sources.append(n)
            shown.append([items[place] for place in order])
            places.append(order.index(0))
        in_window[article] += 1
    items_of = known[np.array(shown, np.int64).reshape(-1, N_OTHERS + 1)]
    return np.array(sources, np.int64), items_of, np.array(places, np.int64)


def build_requests(clicks: pa.Table, seed: int = 7) -> pa.Table:
    """Rows in time order, the five of a request together; `ts` in ms, `hour` of the day in UTC.

    Args:
        clicks: By time, with the columns of the download.
        seed: Of the draws.
    """
    ts_ms = clicks["click_timestamp"].to_numpy().astype(np.int64)
    articles = clicks["click_article_id"].to_numpy().astype(np.int64)
    sources, shown, places = draw_requests(articles, ts_ms, seed)
    n_items = N_OTHERS + 1
    rows = np.repeat(sources, n_items)
    is_clicked = np.zeros(shown.shape, np.int8)
    is_clicked[np.arange(len(places)), places] = 1
    columns: dict[str, Any] = {
        "request": rows,
        "ts": ts_ms[rows],
        "user_id": clicks["user_id"].to_numpy()[rows],
        "item": shown.ravel(),
        "clicked": is_clicked.ravel(),
    }
    for source, name in CONTEXT.items():
        columns[name] = clicks[source].to_numpy()[rows]
    columns["hour"] = (ts_ms[rows] // WINDOW_MS % 24).astype(np.int8)
    return pa.table(columns)


def events(requests: pa.Table) -> Iterator[dict[str, Any]]:
    """The same as `POST /v1/events` takes it: per request an impression, then its click.

    The log knows when was clicked, not when was shown: both get that time.
    """
    rows = requests.to_pydict()
    n_items = N_OTHERS + 1
    for begin in range(0, requests.num_rows, n_items):
        items = [str(item) for item in rows["item"][begin : begin + n_items]]
        common = {
            "request_id": str(rows["request"][begin]),
            "ts": rows["ts"][begin] / 1_000,
            "user": str(rows["user_id"][begin]),
        }
        context = {name: rows[name][begin] for name in [*CONTEXT.values(), "hour"]}
        shown = [{"item": item} for item in items]
        yield {"kind": "impression", **common, "items": shown, "context": context}
        clicked = items[rows["clicked"].index(1, begin) - begin]
        yield {"kind": "feedback", **common, "item": clicked, "event": "click"}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="Parquet to write; JSON lines with --events")
    parser.add_argument("--data", type=Path, default=os.environ.get("FRESHRANK_DATA"))
    parser.add_argument("--clicks", type=int, default=None, help="take the first N clicks")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--events", action="store_true", help="write events instead of rows")
    parser.add_argument("--generate", action="store_true", help="make up 20,000 clicks instead")
    args = parser.parse_args()
    if args.clicks is not None and args.clicks < 1:
        parser.error(f"--clicks {args.clicks}: take at least 1")
    if not args.generate and args.data is None:
        parser.error("give --data or $FRESHRANK_DATA, or --generate for made-up clicks")
    try:
        if args.generate:
            clicks = generate_clicks(args.clicks or 20_000, args.seed)
        else:
            clicks = read_clicks(Path(args.data), args.clicks or DEFAULT_CLICKS)
        table = build_requests(clicks, args.seed)
        if args.events:
            with args.target.open("w") as file:
                file.writelines(json.dumps(event) + "\n" for event in events(table))
        else:
            pq.write_table(table, args.target, compression="zstd")
    except OSError as error:
        sys.exit(str(error))
    what = "made up" if args.generate else "built from the log"
    print(f"{args.target}: {table.num_rows} rows, {table.num_rows // 5} requests, {what}")


if __name__ == "__main__":
    main()
