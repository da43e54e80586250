"""Criteo's display ads -> a table with named columns.

    python examples/criteo/prepare.py criteo.parquet [--data DIR]
    python examples/criteo/prepare.py criteo.parquet --generate

The download is Criteo's click log in the form of its Kaggle challenge (label, 13 numbers, 26
categories, tabs between them, no header): `criteo.tsv.gz` or `train.txt`, looked for in --data,
else in $FRESHRANK_DATA, there also in `criteo-8k`. Its rows have no times: their order is taken.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

NUMBERS: Final = [f"i{n}" for n in range(1, 14)]
CATEGORIES: Final = [f"c{n}" for n in range(1, 27)]
FILES: Final = ("criteo-8k/criteo.tsv.gz", "criteo.tsv.gz", "train.txt")


def read(data: Path) -> pa.Table:
    """The download with names for its columns; a missing value is null.

    Raises:
        FileNotFoundError: `data` holds none of its forms.
    """
    file = next((data / name for name in FILES if (data / name).exists()), None)
    if file is None:
        raise FileNotFoundError(f"{data} has none of {', '.join(FILES)}")
    types = dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(CATEGORIES, pa.string())
    table = pyarrow.csv.read_csv(
        file,
        pyarrow.csv.ReadOptions(column_names=["label", *NUMBERS, *CATEGORIES]),
        pyarrow.csv.ParseOptions(delimiter="\t"),
        pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )
    return without_negatives(table)


def without_negatives(table: pa.Table) -> pa.Table:
    """With 0 for numbers below 0: `i2` has a few, and a logarithm of 1 + x wants none."""
    for name in NUMBERS:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pc.max_element_wise(table[name], 0.0, skip_nulls=False))
    return table


def generate(n_rows: int = 4_000, seed: int = 7) -> pa.Table:
    """Made-up rows of the same form: some categories and numbers matter, a fifth is missing."""
    rng = np.random.default_rng(seed)
    z = np.full(n_rows, -1.5)
    columns = {}
    for name in NUMBERS:
        values = np.floor(rng.lognormal(1, 1, n_rows))
        z += rng.normal(0, 0.2) * np.log1p(values)
        columns[name] = pa.array(values, mask=rng.random(n_rows) < 0.2)
    for name in CATEGORIES:
        ids = (rng.pareto(1, n_rows) * 3).astype(np.int64) % 1_000
        z += rng.normal(0, 0.3, 1_000)[ids]
        texts = np.array([f"{name}-{n}" for n in ids])
        columns[name] = pa.array(texts, mask=rng.random(n_rows) < 0.2)
    label = (rng.random(n_rows) < 1 / (1 + np.exp(-z))).astype(np.int8)
    return pa.table({"label": label, **columns})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="Parquet to write")
    parser.add_argument("--data", type=Path, default=os.environ.get("FRESHRANK_DATA"))
    parser.add_argument("--generate", action="store_true", help="make up rows instead")
    args = parser.parse_args()
    if not args.generate and args.data is None:
        parser.error("give --data or $FRESHRANK_DATA, or --generate for made-up rows")
    try:
        table = generate() if args.generate else read(Path(args.data))
        pq.write_table(table, args.target, compression="zstd")
    except OSError as error:
        sys.exit(str(error))
    what = "made up" if args.generate else "of Criteo's log"
    print(f"{args.target}: {table.num_rows} rows, {what}")


if __name__ == "__main__":
    main()
