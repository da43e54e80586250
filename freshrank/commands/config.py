"""`freshrank config`: check, show, schema."""

import json
from collections.abc import Mapping
from pathlib import Path

import typer

from freshrank.config import demo_text, load, masked, resolved
from freshrank.diagnostics import InvalidConfigError
from freshrank.settings import Settings


def check(path: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Say that the configuration is right, or raise with every mistake.

    Raises:
        InvalidConfigError: it is wrong; with `as_json` printed instead, exit code 2.
    """
    try:
        settings = load(path, environ=environ)
    except InvalidConfigError as error:
        if not as_json:
            raise
        mistakes = [
            {
                "file": one.position.source,
                "line": one.position.line,
                "column": one.position.column,
                "path": one.path,
                "text": one.text,
            }
            for one in error.diagnostics
        ]
        typer.echo(json.dumps({"ok": False, "mistakes": mistakes}))
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps({"ok": True, "mistakes": []}))
    else:
        typer.echo(
            f"{path}: {len(settings.features)} feature(s), {len(settings.tasks)} task(s): ok"
        )


def show(path: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Print every setting with its value."""
    settings = load(path, environ=environ)
    typer.echo(
        json.dumps(masked(settings), indent=2) if as_json else resolved(settings), nl=as_json
    )


def show_demo() -> None:
    """Print the commented configuration that the demo runs with."""
    typer.echo(demo_text(), nl=False)


def schema() -> None:
    """Print the JSON Schema."""
    typer.echo(json.dumps(Settings.model_json_schema(), indent=2))
