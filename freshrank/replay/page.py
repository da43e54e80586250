"""A report as one HTML page: no script and nothing from elsewhere; every plot is a table too."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from freshrank.replay.measures import STRETCH_CLASS_MIN, STRETCH_ROWS_MIN, STRETCHES_MAX
from freshrank.replay.page_parts import (
    definitions,
    details,
    figure,
    html,
    note,
    number,
    table,
    with_spread,
)
from freshrank.replay.svg import Bar, Series, bars, lines

Document = Mapping[str, Any]

CALIBRATION_BAND: Final = (0.8, 1.25)
_AGES: Final = {
    "age_1m": "< 1 min",
    "age_10m": "< 10 min",
    "age_1h": "< 1 h",
    "age_older": "older",
}
FIGURES: Final = {
    "auc_all": "AUC",
    "auc_second_half": "AUC, second half",
    "request_auc": "AUC per request",
    "mrr": "MRR",
    "logloss": "log loss",
    "mean_error": "mean error",
    "huber": "Huber loss",
    "calibration": "calibration",
}
_MEANINGS: Final = {
    "auc_all": "The chance that a positive scores above a negative: 0.5 is guessing, 1 is perfect. "
    "Over all rows, also those from before the model had learned anything.",
    "auc_second_half": "The same from the middle of the log on, when the model knows something: "
    "the figure to compare models by.",
    "request_auc": "AUC among the rows of a request, as a mean over the requests that have both "
    "positives and negatives: what a ranking is judged by.",
    "mrr": "Mean over the same requests of 1 / rank of the best positive: 1 where it always comes "
    "first.",
    "logloss": "Mean of -ln of the probability given to what then happened: less is better. It "
    "depends on the share of positives, so compare it on the same rows only.",
    "mean_error": "Mean distance of prediction and value, in the value's unit.",
    "huber": "Mean loss: half the square of an error up to 1, linear beyond.",
    "calibration": "Predicted / observed: 1.1 promises a tenth more than came.",
}
_TABLE_MEANINGS: Final = {
    "filtered": "Occurrences of ids that had no embedding row yet, as admission asks for more.",
    "expired": "Embedding rows dropped as their id had not been seen for as long as expire says.",
    "reserved": "Memory that embedding tables hold, also for rows to come: of a small table it is "
    "mostly empty.",
}
_OVER_TIME: Final = {"auc": "AUC", "logloss": "Log loss", "huber": "Huber loss"} | {
    "calibration": "Calibration (predicted / observed)"
}
_STRETCHES: Final = (
    "Here and below, a point stands where the hours begin that it is of: neighbouring hours are "
    f"joined until they have {STRETCH_ROWS_MIN} rows (of a long log 1 / {STRETCHES_MAX:,} of them) "
    f"and, where there are classes, {STRETCH_CLASS_MIN} of each."
)


def page(document: Document, settings: str = "") -> str:
    """The HTML of `Report.document()`; `settings` are the configuration's, as a text."""
    title = f"Replay of {document['source']}"
    tasks = list(document["models"][0]["tasks"]) if document["models"] else []
    body = [f"<h1>{escape(title)}</h1>", _stopped(document), _notes(document)]
    body.append(_summary(document))
    for task in tasks:
        body += _task(task, document["models"])
    body += [_tables(document), _rejected(document), _meanings(document)]
    if settings:
        body.append(details("Configuration", f"<pre>{escape(settings)}</pre>"))
    return html(title, body)


def _stopped(document: Document) -> str:
    reason = document["stopped"]
    return f'<p class="stop"><b>It stopped early:</b> {escape(reason)}</p>' if reason else ""


def _notes(document: Document) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in document["notes"])
    return f'<ul class="notes">{notes}</ul>' if notes else ""


def _meanings(document: Document) -> str:
    tasks = [task for model in document["models"] for task in model["tasks"].values()]
    meanings = {
        FIGURES[name]: text
        for name, text in _MEANINGS.items()
        if any(task.get(name) is not None for task in tasks)
    }
    return details("What the figures mean", definitions(meanings | _TABLE_MEANINGS))


def _summary(document: Document) -> str:
    speed = document["examples_per_second"]
    facts = [
        ("configuration", document["config"]),
        *batching(document).items(),
        ("rows read", f"{document['rows_read']:,}"),
        ("examples", f"{document['examples']:,} of {document['requests']:,} requests"),
        ("rejected", f"{sum(document['rejected'].values()):,}"),
        ("seeds", ", ".join(map(str, document["seeds"]))),
        ("examples/s", "" if speed is None else f"{speed:,.0f}"),
        ("took", f"{document['wall_s']:,.1f} s"),
        (
            "embedding rows",
            f"{document['rows']:,}; {document['bytes'] / 2**20:,.1f} MiB reserved",
        ),
        ("filtered, expired", f"{document['filtered']:,}, {document['expired']:,}"),
        ("most memory", f"{document['peak_rss_bytes'] / 2**20:,.0f} MiB"),
    ]
    return table("What was replayed", None, facts)


def _task(task: str, models: Sequence[Document]) -> Iterator[str]:
    yield f"<h2>Task {escape(task)}</h2>"
    models = [model for model in models if task in model["tasks"]]  # baselines have one task
    figures = [(model["name"], model["tasks"][task]) for model in models]
    yield f"<p>{rows_text(figures[0][1])}</p>"
    shown = [name for name in FIGURES if any(one.get(name) is not None for _, one in figures)]
    rows = [[name, *(with_spread(one, figure) for figure in shown)] for name, one in figures]
    yield table(
        "Each row was predicted before any row of its request was learned. With several seeds: "
        "mean ± standard deviation.",
        ["model", *(FIGURES[name] for name in shown)],
        rows,
    )
    yield _comparison(figures)
    yield _cadences(task, models)
    plots = [plot for name in _OVER_TIME if (plot := _over_time(name, figures))]
    if plots:
        plots.insert(1, note(_STRETCHES))
    yield from plots
    yield _by_age(figures)
    yield _listed(figures)


def _comparison(figures: Sequence[tuple[str, Document]]) -> str:
    found = []
    for name, one in figures:
        if (spread := one.get("seeds", {}).get("auc_second_half")) is not None:
            found.append(Bar(name, spread["mean"], spread["min"], spread["max"]))
    title = "AUC over the second half of the rows; bars begin at chance, 0.5"
    return figure(title, bars(title, found, 0.5))


def _cadences(task: str, models: Sequence[Document]) -> str:
    aged = [model for model in models if model["sync_every_s"] is not None]
    if not aged:
        return ""
    rows = [
        [f"{model['sync_every_s'] / 60:g} min"]
        + [with_spread(model["tasks"][task], name) for name in ("auc_second_half", "logloss")]
        for model in aged
    ]
    return table(
        "What stale parameters cost: learning goes on, scores come from the last synchronisation.",
        ["parameters refreshed every", "AUC, second half", "log loss"],
        rows,
    )


def _over_time(name: str, figures: Sequence[tuple[str, Document]]) -> str:
    series = []
    for model, one in figures:
        stretches = one.get("over_time", [])
        if stretches and name in stretches[0]:
            begins = [stretch["ts_ms"] for stretch in stretches]
            series.append(Series(model, begins, [stretch[name] for stretch in stretches]))
    if not series:
        return ""
    times = [x for one in series for x in one.xs]
    ends = sorted({min(times), max(times)})
    band = CALIBRATION_BAND if name == "calibration" else None
    title = f"{_OVER_TIME[name]} over time"
    return figure(title, lines(title, series, [(x, minute_text(x)) for x in ends], band=band))


def _by_age(figures: Sequence[tuple[str, Document]]) -> str:
    known = [
        (name, one["calibration_by_age"])
        for name, one in figures
        if any(band["examples"] for band in one.get("calibration_by_age", {}).values())
    ]
    if not known:
        return ""
    at = range(len(_AGES))
    series = [Series(name, at, [ages[age]["calibration"] for age in _AGES]) for name, ages in known]
    title = "Calibration by age of the item"
    rows = [
        [name, *(f"{number(ages[a]['calibration'])} ({ages[a]['examples']:,})" for a in _AGES)]
        for name, ages in known
    ]
    plot = lines(title, series, list(zip(at, _AGES.values(), strict=True)), band=CALIBRATION_BAND)
    caption = "Predicted / observed, and how many examples. Shaded: 0.8 to 1.25."
    return figure(title, plot) + table(caption, ["model", *_AGES.values()], rows)


def _listed(figures: Sequence[tuple[str, Document]]) -> str:
    name, one = figures[0]
    stretches = one.get("over_time", [])
    if not stretches:
        return ""
    counts = [column for column in ("examples", "positives") if column in stretches[0]]
    columns = [column for column in _OVER_TIME if column in stretches[0]]
    rows = [
        [minute_text(stretch["ts_ms"]), minute_text(stretch["end_ms"])]
        + [f"{stretch[column]:,}" for column in counts]
        + [number(stretch[column]) for column in columns]
        for stretch in stretches
    ]
    listed = table("Times are UTC.", ["from", "to", *counts, *columns], rows)
    return details(f"{name} over time", listed)


def _tables(document: Document) -> str:
    columns = ("rows", "bytes", "filtered", "expired")
    names = ["rows", "bytes reserved", "filtered", "expired"]
    rows = [
        [name, *(f"{counts[column]:,}" for column in columns)]
        for name, counts in document["tables"].items()
    ]
    return "<h2>Embedding tables</h2>" + table("", ["table", *names], rows) if rows else ""


def _rejected(document: Document) -> str:
    rows = [[reason, f"{n:,}"] for reason, n in sorted(document["rejected"].items())]
    if not rows:
        return ""
    place = f"Listed in {document['rejects_file']}." if document["rejects_file"] else ""
    return "<h2>Rejected rows</h2>" + table(place, ["reason", "rows"], rows)


def batching(document: Document) -> dict[str, str]:
    """How many rows were learned at once, by the settings that say so."""
    if document["settings"] is None:
        return {}
    trainer = document["settings"]["trainer"]
    return {"batching": trainer["batching"], "batch_max": f"{trainer['batch_max']:,}"}


def rows_text(figures: Document) -> str:
    """How many rows a task has, and how many of them are positive."""
    n, positives = figures["examples"], figures.get("positives")
    if positives is None:
        return f"{n:,} rows"
    return f"{n:,} rows, {positives:,} of them positive ({positives / max(n, 1):.2%})"


def minute_text(ts_ms: float) -> str:
    """An event time in UTC."""
    return datetime.fromtimestamp(ts_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M")
