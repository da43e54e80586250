"""What a page is made of: its style, tables, figures and numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

# The page is as wide as its widest table, up to the window; what is read or drawn stays at 60rem.
_STYLE: Final = """
:root { color-scheme: light dark; --ink: light-dark(#1b1f24, #e6e9ed); --dim: light-dark(#57606a,
  #9aa4af); --line: light-dark(#d0d7de, #3a424b); --paper: light-dark(#fff, #14181d);
  --band: light-dark(#dcf3e0, #16352a); }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  box-sizing: border-box; width: fit-content; min-width: min(60rem, 100%); max-width: 100%;
  margin: 2rem auto; padding: 0 1rem; }
p, figure, ul, dl, pre { max-width: 60rem } pre { overflow-x: auto }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem } h3 { font-size: 1rem }
table { border-collapse: collapse; margin: .5rem 0 1rem } .wide { overflow-x: auto }
caption { text-align: left; color: var(--dim); max-width: min(60rem, 100vw - 3rem) }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
summary { cursor: pointer; margin: .5rem 0 } dt { font-weight: 600 }
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


def html(title: str, body: Sequence[str]) -> str:
    """A whole page; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</html>\n"
    )


def figure(caption: str, plot: str) -> str:
    """A plot under its caption; nothing where there is nothing to draw."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{plot}</figure>" if plot else ""


def table(caption: str, header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
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
    whole = f"<table>{title}{head}<tbody>{body}</tbody></table>"
    # A keyboard can scroll what can be focused only.
    label = escape(caption or "Table")
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{whole}</div>'


def details(summary: str, content: str) -> str:
    """A section that opens at a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def definitions(meanings: Mapping[str, str]) -> str:
    """Words and what they mean."""
    pairs = (f"<dt>{escape(w)}</dt><dd>{escape(text)}</dd>" for w, text in meanings.items())
    return f"<dl>{''.join(pairs)}</dl>"


def note(text: str) -> str:
    """A sentence below what it is about."""
    return f'<p class="note">{escape(text)}</p>'


def with_spread(figures: Mapping[str, Any], name: str) -> str:
    """A figure of a task: over several seeds its mean and standard deviation."""
    spread = figures.get("seeds", {}).get(name)
    if spread is None or spread["min"] == spread["max"]:
        return number(figures.get(name))
    return f"{number(spread['mean'])} ± {number(spread['sd'])}"


def number(value: float | None) -> str:
    """Four decimals; a dash for what is not defined."""
    return "-" if value is None else f"{value:.4f}"
