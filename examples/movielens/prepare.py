"""MovieLens 100K -> a table of ratings in time order, with the films' year and genres.

    python examples/movielens/prepare.py ml.parquet [--data DIR]
    python examples/movielens/prepare.py ml.parquet --generate

The download is GroupLens' `ml-100k` (`u.data`, `u.item`), or the same as RecBole's atomic files
(`ml-100k.inter`, `ml-100k.item`). The folder is looked for in --data, else in $FRESHRANK_DATA.
GroupLens does not allow passing the data on: the table is for your own use.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Of u.item, whose last columns are a 0 or 1 per genre, in this order.
GENRES: Final = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
)

Ratings = list[tuple[int, int, float, int]]  # user, item, rating, seconds
Films = dict[int, tuple[int | None, list[str]]]  # item -> year, genres


def read(folder: Path) -> tuple[Ratings, Films]:
    """Either form of the download.

    Raises:
        FileNotFoundError: `folder` holds neither.
    """
    if (file := folder / "ml-100k.inter").exists():
        ratings = [line.split("\t") for line in _lines(file)[1:]]
        rows = [line.split("\t") for line in _lines(folder / "ml-100k.item")[1:]]
        films = {int(row[0]): (_year(row[2]), row[3].split()) for row in rows}
    elif (file := folder / "u.data").exists():
        genres = GENRES.split()
        ratings = [line.split("\t") for line in _lines(file)]
        rows = [line.split("|") for line in _lines(folder / "u.item", "latin-1")]
        films = {
            int(row[0]): (_year(row[2]), [genres[n] for n, has in enumerate(row[5:]) if has == "1"])
            for row in rows
        }
    else:
        raise FileNotFoundError(f"{folder} has neither ml-100k.inter nor u.data")
    return [(int(u), int(i), float(r), int(float(t))) for u, i, r, t in ratings], films


def generate(n_ratings: int = 10_000, seed: int = 7) -> tuple[Ratings, Films]:
    """Made-up ratings: users with a mood and a favourite genre. They show that everything runs."""
    rng = np.random.default_rng(seed)
    n_users, n_films = n_ratings // 100, n_ratings // 50
    names = GENRES.split()
    genre, year = rng.integers(1, len(names), n_films), rng.integers(1930, 1999, n_films)
    films: Films = {i: (int(year[i]), [names[genre[i]]]) for i in range(n_films)}
    users, items = rng.integers(n_users, size=n_ratings), rng.integers(n_films, size=n_ratings)
    mood, quality = rng.normal(0, 0.5, n_users), rng.normal(0, 0.5, n_films)
    likes = rng.integers(1, len(names), n_users)[users] == genre[items]
    score = 3.3 + mood[users] + quality[items] + likes + rng.normal(0, 0.7, n_ratings)
    stars = np.clip(np.round(score), 1, 5)
    ratings = [
        (int(u), int(i), float(r), 880_000_000 + 60 * n)
        for n, (u, i, r) in enumerate(zip(users, items, stars, strict=True))
    ]
    return ratings, films


def build(ratings: Ratings, films: Films) -> pa.Table:
    """A row per rating by time; ratings of one second stay in the order of the file."""
    ordered = sorted(ratings, key=lambda rating: rating[3])
    users, items, stars, ts = zip(*ordered, strict=True)
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "rating": stars,
            "ts": ts,
            "year": [films[item][0] for item in items],
            "genres": [films[item][1] for item in items],
        }
    )


def _lines(file: Path, encoding: str = "utf-8") -> list[str]:
    return file.read_text(encoding).splitlines()


def _year(text: str) -> int | None:
    """Of `1995` or `01-Jan-1995`; one film has none."""
    found = re.search(r"\d{4}$", text)
    return int(found[0]) if found else None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="Parquet to write")
    parser.add_argument("--data", type=Path, default=os.environ.get("FRESHRANK_DATA"))
    parser.add_argument("--generate", action="store_true", help="make up ratings instead")
    args = parser.parse_args()
    if not args.generate and args.data is None:
        parser.error("give --data or $FRESHRANK_DATA, or --generate for made-up ratings")
    try:
        table = build(*(generate() if args.generate else read(Path(args.data) / "ml-100k")))
        pq.write_table(table, args.target, compression="zstd")
    except OSError as error:
        sys.exit(str(error))
    what = "made up" if args.generate else "of MovieLens 100K"
    print(f"{args.target}: {table.num_rows} ratings, {what}")


if __name__ == "__main__":
    main()
