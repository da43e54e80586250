"""The console script: options and exit codes; what a command does is in `freshrank.commands`.

A command is a function here, with its options, that imports `freshrank.commands.<name>` when it
runs: `--help` and completion then load neither numpy nor the web framework nor torch.

Exit codes: 0 done, 1 failed, 2 wrong configuration or options, 3 server, log or port unreachable.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from freshrank import __version__
from freshrank.cli_groups import (
    config_app,
    dev_app,
    dlq_app,
    events_app,
    snapshots_app,
    topics_app,
)
from freshrank.cli_options import DEFAULT_CONFIG, DEFAULT_URL, ConfigPath, Json, Key, Url
from freshrank.cli_roles import demo, join, serve, train
from freshrank.errors import ConfigError, Error, TransportError
from freshrank.printable import printable
from freshrank.transport.files import disk_failed, has_failed

app = typer.Typer(
    name="freshrank",
    help="A ranking service that learns from the click you just made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(topics_app, name="topics")
app.add_typer(dlq_app, name="dlq")
app.add_typer(snapshots_app, name="snapshots")
app.add_typer(events_app, name="events")
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


for role in (demo, serve, train, join):
    app.command()(role)


@app.command()
def rank(
    user: Annotated[str, typer.Option(help="Whom to rank for.")],
    items: Annotated[list[str], typer.Argument(help="The candidates.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Rank a few items for a user, as a table."""
    from freshrank.commands.rank import run

    run(url=url, key=key, user=user, items=items, as_json=as_json)


@app.command()
def top(
    url: Url = DEFAULT_URL,
    key: Key = None,
    once: Annotated[bool, typer.Option("--once", help="Print the figures once and end.")] = False,
    as_json: Json = False,
) -> None:
    """Show on one screen what the loop is doing, each second, until `q` or Ctrl-C."""
    from freshrank.commands.top import run

    run(url=url, key=key, once=once, as_json=as_json)


@app.command()
def rollback(
    to: Annotated[str, typer.Option(help="Name of a checkpoint: see `freshrank snapshots list`.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the log.")] = "",
    relearn: Annotated[
        bool, typer.Option("--relearn", help="Learn once more what was learned since.")
    ] = False,
    pause: Annotated[
        bool, typer.Option("--pause", help="Stop learning first, until it is resumed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be taken back, and do nothing.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds for it to be served.")] = 30.0,
    url: Url = DEFAULT_URL,
    service: Annotated[
        list[str] | None,
        typer.Option(help="Another replica that must serve them too; repeatable."),
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Serve the parameters of a checkpoint again, and learn on from there."""
    from freshrank.commands.rollback import run

    run(
        to,
        url=url,
        services=service or (),
        key=key,
        reason=reason,
        relearn=relearn,
        pause=pause,
        is_dry=dry_run,
        wait_s=wait,
        as_json=as_json,
    )


@app.command()
def forget(
    slot: Annotated[str, typer.Argument(help="The feature, such as user_id.")],
    name: Annotated[str, typer.Argument(metavar="KEY", help="The id, as clients send it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is known of it, and do nothing.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds for it to be forgotten.")] = 30.0,
    url: Url = DEFAULT_URL,
    service: Annotated[
        list[str] | None,
        typer.Option(help="Another replica that must have forgotten it too; repeatable."),
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Forget a user, an item or another id: its row, its state, and what old events say of it."""
    from freshrank.commands.forget import run

    run(
        slot,
        name,
        url=url,
        services=service or (),
        key=key,
        is_dry=dry_run,
        wait_s=wait,
        as_json=as_json,
    )


@app.command()
def backup(
    place: Annotated[Path, typer.Argument(help="A new directory; with --verify a backup.")],
    config: ConfigPath = DEFAULT_CONFIG,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only say whether that backup is whole.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy what a deployment must keep, while it runs or not, or verify such a copy."""
    from freshrank.commands.backup import save
    from freshrank.commands.backup import verify as check

    if verify:
        check(place, as_json=as_json)
    else:
        save(config, place, environ=os.environ, as_json=as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A backup.")],
    config: ConfigPath = DEFAULT_CONFIG,
    force: Annotated[
        bool, typer.Option("--force", help="Move aside what is in the data directory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a backup into the data directory of a deployment that is stopped."""
    from freshrank.commands.backup import load

    load(config, source, is_forced=force, environ=os.environ, as_json=as_json)


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
        _end(str(error), exit_code(error))
    except OSError as error:
        if has_failed(error):
            failed = disk_failed("end", error)
            _end(str(failed), exit_code(failed))
        if error.errno != errno.ENOSPC:
            raise
        _end(f"no space left: {error.filename or 'the output is incomplete'}", 1)


def _end(text: str, code: int) -> NoReturn:
    # What clients sent may stand in it; an error of several lines keeps them.
    typer.echo("\n".join(map(printable, text.split("\n"))), err=True)
    sys.exit(code)


def exit_code(error: Error) -> int:
    """The exit code that tells scripts what kind of error it was."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, TransportError) else 1
