"""`freshrank doctor`: the checks of `freshrank.doctor`, printed."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import typer

from freshrank.doctor import examine
from freshrank.findings import Finding


def run(path: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Print the findings; exit code 1 when one needs mending."""
    findings = examine(path, environ=environ)
    if as_json:
        report = {
            "ok": all(one.ok for one in findings),
            "checks": [asdict(one) for one in findings],
        }
        typer.echo(json.dumps(report))
    else:
        good, bad = marks(sys.stdout.encoding or "ascii")
        for finding in findings:
            typer.echo(_line(finding, good, bad))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def marks(encoding: str) -> tuple[str, str]:
    """The signs for good and bad that the terminal can show."""
    try:
        "✔✘".encode(encoding)
    except UnicodeEncodeError:
        return "ok  ", "FAIL"
    return "✔", "✘"


def _line(finding: Finding, good: str, bad: str) -> str:
    sign = typer.style(good, fg="green") if finding.ok else typer.style(bad, fg="red")
    mend = f"\n    mend: {finding.mend}" if finding.mend and not finding.ok else ""
    detail = finding.text.replace("\n", "\n    ")
    return f"{sign} {finding.name}: {detail}{mend}"
