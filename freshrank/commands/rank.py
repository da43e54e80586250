"""`freshrank rank`: one rank request, shown as a table."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from freshrank.client import call


def run(*, url: str, key: str | None, user: str, items: list[str], as_json: bool) -> None:
    """Ask, and print items by rank with the freshness of the answer."""
    # A look at the ranking is nobody's impression: the model must not learn from it.
    candidates = [{"item": item} for item in items]
    body = {"user": user, "candidates": candidates, "log_impression": False}
    answer = call(url, "/v1/rank", body, key=key)
    if as_json:
        json.dump(answer, sys.stdout)
        print()
        return
    show(answer, Console())


def show(answer: dict[str, Any], console: Console) -> None:
    """The table and the freshness line."""
    # What the deadline left without a score stands last and has none.
    tasks = list(answer["items"][0]["task_scores"]) if answer["items"] else []
    table = Table("rank", "item", "score", *tasks, "known", box=None)
    for item in answer["items"]:
        scores = [_shown(item["task_scores"].get(task)) for task in tasks]
        known = "yes" if item["known"] else "no"
        table.add_row(
            str(item["rank"]), escape(item["item"]), _shown(item["score"]), *scores, known
        )
    console.print(table)
    freshness = answer["freshness"]
    degraded = ", ".join(answer["degraded"]) or "nothing"
    console.print(
        f"version {answer['model']['version']}, parameters {freshness['sparse_age_seconds']:.1f} s "
        f"old, degraded: {degraded}, took {answer['took_ms']:.1f} ms"
    )


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
