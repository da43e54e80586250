"""The console script: options and exit codes; what a command does is in `freshrank.commands`.

A command is a function here, with its options, that imports `freshrank.commands.<name>` when it
runs: `--help` and completion then load neither numpy nor the web framework nor torch.

Exit codes: 0 done, 1 failed, 2 wrong configuration or options, 3 server, log or port unreachable.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from freshrank import __version__
from freshrank.errors import ConfigError, Error, TransportError

app = typer.Typer(
    name="freshrank",
    help="A ranking service that learns from the click you just made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check, show or describe the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigPath = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="FRESHRANK_CONFIG", help="The configuration file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

DEFAULT_CONFIG = Path("freshrank.yaml")


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"freshrank {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@config_app.command("check")
def config_check(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """List every mistake of the configuration as file:line:column; exit code 2 if there is one."""
    from freshrank.commands.config import check

    check(config, environ=os.environ, as_json=as_json)


@config_app.command("show")
def config_show(
    config: ConfigPath = DEFAULT_CONFIG,
    demo: Annotated[
        bool, typer.Option("--demo", help="The commented configuration of the demo instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print every setting with its value, overrides applied, secrets masked."""
    from freshrank.commands.config import show, show_demo

    if demo:
        show_demo()
    else:
        show(config, environ=os.environ, as_json=as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from freshrank.commands.config import schema

    schema()


@app.command()
def doctor(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Check this machine and the configuration; exit code 1 if something must be mended."""
    from freshrank.commands.doctor import run

    run(config, environ=os.environ, as_json=as_json)


def main() -> None:
    """Run the command line of this process."""
    try:
        app(prog_name="freshrank")
    except Error as error:
        typer.echo(str(error), err=True)
        sys.exit(exit_code(error))


def exit_code(error: Error) -> int:
    """The exit code that tells scripts what kind of error it was."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, TransportError) else 1
