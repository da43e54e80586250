"""A report as one HTML page: no script and nothing from elsewhere; every plot is a table too."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from freshrank.replay.svg import Bar, Series, bars, lines

Document = Mapping[str, Any]

# Hours drawn and listed: a page of years of hours would take minutes to open. JSON has them all.
HOURS_MAX: Final = 1_000
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
_HOURLY: Final = ("auc", "logloss", "huber", "calibration")
_HOURLY_NAMES: Final = {"auc": "AUC", "logloss": "Log loss", "huber": "Huber loss"} | {
    "calibration": "Calibration (predicted / observed)"
}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: light-dark(#1b1f24, #e6e9ed); --dim: light-dark(#57606a,
  #9aa4af); --line: light-dark(#d0d7de, #3a424b); --paper: light-dark(#fff, #14181d);
  --band: light-dark(#dcf3e0, #16352a); }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem } h3 { font-size: 1rem }
table { border-collapse: collapse; margin: .5rem 0 1rem } .wide { overflow-x: auto }
caption { text-align: left; color: var(--dim) }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
figure { margin: 1rem 0 } figcaption { font-weight: 600 } .note { color: var(--dim) }
svg { width: 100%; height: auto; overflow: visible } svg text { font-size: 12px; fill: var(--dim) }
.grid { stroke: var(--line) } .band { fill: var(--band) } .whisker { stroke: var(--ink);
  stroke-width: 2 }
.line { fill: none; stroke-width: 2; stroke: var(--c) } .dot, .bar { fill: var(--c) }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0 }
.legend .key { width: 28px; margin-right: .4rem; vertical-align: middle }
.s0 { --c: light-dark(#0057b8, #6cb2ff) } .s1 { --c: light-dark(#c2410c, #ff9b63);
  stroke-dasharray: 7 3 }
.s2 { --c: light-dark(#15803d, #5ed588); stroke-dasharray: 2 3 } .s3 { --c: light-dark(#7e22ce,
  #c995ff); stroke-dasharray: 9 3 2 3 }
.s4 { --c: light-dark(#a16207, #e5c04b); stroke-dasharray: 4 4 } .s5 { --c: light-dark(#be185d,
  #ff8fc0); stroke-dasharray: 12 3 }
.s6 { --c: light-dark(#0e7490, #5ad4ea); stroke-dasharray: 2 6 } .s7 { --c: light-dark(#57606a,
  #aab3bd); stroke-dasharray: 1 2 }
.stop, .notes { border-left: 4px solid #d1242f; padding: .25rem 1rem }
.notes { border-color: light-dark(#a16207, #e5c04b); padding-left: 2rem }
"""


def page(document: Document) -> str:
    """The HTML of `Report.document()`."""
    title = f"Replay of {document['source']}"
    tasks = list(document["models"][0]["tasks"]) if document["models"] else []
    body = [f"<h1>{escape(title)}</h1>", _stopped(document), _notes(document)]
    body.append(_summary(document))
    for task in tasks:
        body += _task(task, document["models"])
    body += [_tables(document), _rejected(document)]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</html>\n"
    )


def _stopped(document: Document) -> str:
    reason = document["stopped"]
    return f'<p class="stop"><b>It stopped early:</b> {escape(reason)}</p>' if reason else ""


def _notes(document: Document) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in document["notes"])
    return f'<ul class="notes">{notes}</ul>' if notes else ""


def _summary(document: Document) -> str:
    speed = document["examples_per_second"]
    facts = [
        ("configuration", document["config"]),
        ("rows read", f"{document['rows_read']:,}"),
        ("examples", f"{document['examples']:,} of {document['requests']:,} requests"),
        ("rejected", f"{sum(document['rejected'].values()):,}"),
        ("seeds", ", ".join(map(str, document["seeds"]))),
        ("examples/s", "" if speed is None else f"{speed:,.0f}"),
        ("took", f"{document['wall_s']:,.1f} s"),
        ("embedding rows", f"{document['rows']:,} in {document['bytes'] / 2**20:,.1f} MiB"),
        ("filtered, expired", f"{document['filtered']:,}, {document['expired']:,}"),
        ("most memory", f"{document['peak_rss_bytes'] / 2**20:,.0f} MiB"),
    ]
    return _table("What was replayed", None, facts)


def _task(task: str, models: Sequence[Document]) -> Iterator[str]:
    yield f"<h2>Task {escape(task)}</h2>"
    models = [model for model in models if task in model["tasks"]]  # baselines have one task
    figures = [(model["name"], model["tasks"][task]) for model in models]
    shown = [name for name in FIGURES if any(name in one for _, one in figures)]
    rows = [[name, *(_with_spread(one, figure) for figure in shown)] for name, one in figures]
    yield _table(
        "Each row was predicted before any row of its request was learned. With several seeds: "
        "mean ± standard deviation.",
        ["model", *(FIGURES[name] for name in shown)],
        rows,
    )
    yield _comparison(figures)
    yield _cadences(task, models)
    for name in _HOURLY:
        yield _over_time(name, figures)
    yield _by_age(figures)
    yield _hours(figures)


def _comparison(figures: Sequence[tuple[str, Document]]) -> str:
    found = []
    for name, one in figures:
        if (spread := one.get("seeds", {}).get("auc_second_half")) is not None:
            found.append(Bar(name, spread["mean"], spread["min"], spread["max"]))
    title = "AUC over the second half of the rows; bars begin at chance, 0.5"
    return _figure(title, bars(title, found, 0.5))


def _cadences(task: str, models: Sequence[Document]) -> str:
    aged = [model for model in models if model["sync_every_s"] is not None]
    if not aged:
        return ""
    rows = [
        [f"{model['sync_every_s'] / 60:g} min"]
        + [_with_spread(model["tasks"][task], name) for name in ("auc_second_half", "logloss")]
        for model in aged
    ]
    return _table(
        "What stale parameters cost: learning goes on, scores come from the last synchronisation.",
        ["parameters refreshed every", "AUC, second half", "log loss"],
        rows,
    )


def _over_time(name: str, figures: Sequence[tuple[str, Document]]) -> str:
    series = []
    for model, one in figures:
        hours = _thinned(one.get("by_hour", []))
        if hours and name in hours[0]:
            series.append(
                Series(model, [hour["ts_ms"] for hour in hours], [hour[name] for hour in hours])
            )
    if not series:
        return ""
    times = [x for one in series for x in one.xs]
    ends = sorted({min(times), max(times)})
    band = CALIBRATION_BAND if name == "calibration" else None
    title = f"{_HOURLY_NAMES[name]} by hour"
    return _figure(title, lines(title, series, [(x, minute_text(x)) for x in ends], band=band))


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
        [name, *(f"{_number(ages[a]['calibration'])} ({ages[a]['examples']:,})" for a in _AGES)]
        for name, ages in known
    ]
    plot = lines(title, series, list(zip(at, _AGES.values(), strict=True)), band=CALIBRATION_BAND)
    caption = "Predicted / observed, and how many examples. Shaded: 0.8 to 1.25."
    return _figure(title, plot) + _table(caption, ["model", *_AGES.values()], rows)


def _hours(figures: Sequence[tuple[str, Document]]) -> str:
    name, one = figures[0]
    hours = _thinned(one.get("by_hour", []))
    if not hours:
        return ""
    columns = [column for column in _HOURLY if column in hours[0]]
    rows = [
        [minute_text(hour["ts_ms"]), f"{hour['examples']:,}", *(_number(hour[c]) for c in columns)]
        for hour in hours
    ]
    table = _table("Times are UTC.", ["hour", "examples", *columns], rows)
    return f"<details><summary>{escape(name)} by hour</summary>{table}</details>"


def _tables(document: Document) -> str:
    columns = ("rows", "bytes", "filtered", "expired")
    rows = [
        [name, *(f"{counts[column]:,}" for column in columns)]
        for name, counts in document["tables"].items()
    ]
    return "<h2>Embedding tables</h2>" + _table("", ["table", *columns], rows) if rows else ""


def _rejected(document: Document) -> str:
    rows = [[reason, f"{n:,}"] for reason, n in sorted(document["rejected"].items())]
    if not rows:
        return ""
    place = f"Listed in {document['rejects_file']}." if document["rejects_file"] else ""
    return "<h2>Rejected rows</h2>" + _table(place, ["reason", "rows"], rows)


def _thinned(hours: Sequence[Document]) -> Sequence[Document]:
    return hours[:: -(-len(hours) // HOURS_MAX) or 1]


def _with_spread(figures: Document, name: str) -> str:
    spread = figures.get("seeds", {}).get(name)
    if spread is None or spread["min"] == spread["max"]:
        return _number(figures.get(name))
    return f"{_number(spread['mean'])} ± {_number(spread['sd'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def minute_text(ts_ms: float) -> str:
    """An event time in UTC."""
    return datetime.fromtimestamp(ts_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M")


def _figure(caption: str, plot: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{plot}</figure>" if plot else ""


def _table(caption: str, header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows."""
    head = ""
    if header:
        cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
        head = f"<thead><tr>{cells}</tr></thead>"
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f"<table>{title}{head}<tbody>{body}</tbody></table>"
    # A keyboard can scroll what can be focused only.
    label = escape(caption or "Table")
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{table}</div>'
