"""The console script: options and exit codes; what a command does is in `freshrank.commands`.

A command is a function here, with its options, that imports `freshrank.commands.<name>` when it
runs: `--help` and completion then load neither numpy nor the web framework nor torch.

Exit codes: 0 done, 1 failed, 2 wrong configuration or options, 3 server, log or port unreachable.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from freshrank import __version__
from freshrank.cli_groups import (
    DEFAULT_CONFIG,
    ConfigPath,
    Json,
    config_app,
    dev_app,
    topics_app,
)
from freshrank.errors import ConfigError, Error, TransportError

app = typer.Typer(
    name="freshrank",
    help="A ranking service that learns from the click you just made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(topics_app, name="topics")
app.add_typer(dev_app, name="dev")


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


@app.command()
def doctor(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Check this machine and the configuration; exit code 1 if something must be mended."""
    from freshrank.commands.doctor import run

    run(config, environ=os.environ, as_json=as_json)


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(min=1.0, help="Seconds of audience at full speed; 15 by default."),
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="End by itself and print the result.")
    ] = False,
    as_json: Json = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port; 8000, or any free one if headless.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the data here instead of a temporary directory.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated audience.")] = 1,
) -> None:
    """Run the whole loop with a simulated audience and open it to your browser and curl."""
    from freshrank.commands.demo import run

    run(
        host=host,
        port=port,
        seconds=seconds,
        headless=headless,
        as_json=as_json,
        data_dir=data_dir,
        seed=seed,
    )


@app.command()
def serve(
    config: ConfigPath = DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Instead of service.host.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Instead of service.port; 0: any free one."),
    ] = None,
    learn: Annotated[
        bool | None,
        typer.Option("--learn/--no-learn", help="Train too; by default when torch is installed."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without API keys.")
    ] = False,
) -> None:
    """Rank over HTTP and learn from what comes back, until stopped."""
    from freshrank.commands.serve import run

    run(config, host=host, port=port, environ=os.environ, insecure=insecure, learn=learn)


@app.command()
def train(
    config: ConfigPath = DEFAULT_CONFIG,
    history: Annotated[
        Path | None, typer.Option(help="Learn this archive first, as far as it is not learned.")
    ] = None,
    until_lag: Annotated[
        int | None,
        typer.Option(min=0, help="End once no more than so many records are to be learned."),
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Learn on where records of the archive are gone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Join and learn without serving, an archive first if you have one, until stopped."""
    from freshrank.commands.train import run

    run(
        config,
        history=history,
        allow_gaps=allow_gaps,
        until_lag=until_lag,
        as_json=as_json,
        environ=os.environ,
    )


@app.command()
def rank(
    user: Annotated[str, typer.Option(help="Whom to rank for.")],
    items: Annotated[list[str], typer.Argument(help="The candidates.")],
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="FRESHRANK_KEY", help="API key, if the service needs one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank a few items for a user, as a table."""
    from freshrank.commands.rank import run

    run(url=url, key=key, user=user, items=items, as_json=as_json)


@app.command()
def replay(
    file: Annotated[
        Path,
        typer.Argument(
            help="Events as JSON lines, a table (Parquet, CSV, TSV; also gzip), or an archive."
        ),
    ],
    config: ConfigPath = DEFAULT_CONFIG,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs, each with its own seed.")] = 1,
    sync_every: Annotated[
        list[str] | None,
        typer.Option(help="Score with parameters as old as this too, e.g. 10m,60m,360m."),
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="Other models to compare with: vw,rate,trees.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Read so many rows only.")] = None,
    speed: Annotated[
        str | None, typer.Option(help="As fast as it goes, or e.g. 10x as fast as it happened.")
    ] = None,
    sort: Annotated[
        bool, typer.Option("--sort", help="Bring requests into event time first, in memory.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write report.json and report.html into this directory.")
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="List unfit rows here; by default beside the report.")
    ] = None,
    max_rejects: Annotated[str, typer.Option(help="Stop when more rows than that are unfit.")] = (
        "1%"
    ),
    first_hour: Annotated[
        str | None, typer.Option("--from", help="First hour of an archive: 2026-11-21T10.")
    ] = None,
    last_hour: Annotated[
        str | None, typer.Option("--until", help="Last hour of an archive.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Learn the rest of an archive from this checkpoint.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the checkpoint reached into this directory.")
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Learn on where files of an archive are gone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Learn from your own log in event time and report how well each row was predicted before."""
    from freshrank.commands.replay import Options, run
    from freshrank.replay.archive import ArchiveOptions

    options = Options(
        seeds=seeds,
        sync_every=tuple(sync_every or ()),
        baselines=tuple(filter(None, baselines.split(","))),
        limit=limit,
        speed=speed,
        sort=sort,
        report=report,
        rejects=rejects,
        max_rejects=max_rejects,
        as_json=as_json,
        archive=ArchiveOptions(first_hour, last_hour, checkpoint, save, allow_gaps),
    )
    run(file, config, options, environ=os.environ)


def main() -> None:
    """Run the command line of this process."""
    try:
        app(prog_name="freshrank")
    except Error as error:
        typer.echo(str(error), err=True)
        sys.exit(exit_code(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo(f"no space left: {error.filename or 'the output is incomplete'}", err=True)
        sys.exit(1)


def exit_code(error: Error) -> int:
    """The exit code that tells scripts what kind of error it was."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, TransportError) else 1
