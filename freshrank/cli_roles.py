"""Commands that are a process of a deployment, or all of it at once; see `freshrank.cli`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from freshrank.cli_options import DEFAULT_CONFIG, ConfigPath, Json


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


def serve(
    config: ConfigPath = DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Instead of service.host.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Instead of service.port; 0: any free one."),
    ] = None,
    learn: Annotated[
        bool | None,
        typer.Option(
            "--learn/--no-learn",
            help="Train too; by default when torch is installed and the log is not on Kafka.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without API keys.")
    ] = False,
) -> None:
    """Rank over HTTP and learn from what comes back, until stopped."""
    from freshrank.commands.serve import run

    run(config, host=host, port=port, environ=os.environ, insecure=insecure, learn=learn)


def train(
    config: ConfigPath = DEFAULT_CONFIG,
    history: Annotated[
        Path | None, typer.Option(help="Learn this archive first, as far as it is not learned.")
    ] = None,
    until_lag: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="End once no more than so many records are to be learned; on Kafka of examples.",
        ),
    ] = None,
    allow_gaps: Annotated[
        bool,
        typer.Option(
            "--allow-gaps", help="Learn on where records are gone, of the archive or the log."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Learn without serving, an archive first if you have one, until stopped.

    A local log is joined as well. On Kafka `freshrank join` does that, and one trainer learns while
    the others wait to take its place.
    """
    from freshrank.commands.train import run

    run(
        config,
        history=history,
        allow_gaps=allow_gaps,
        until_lag=until_lag,
        as_json=as_json,
        environ=os.environ,
    )


def join(
    config: ConfigPath = DEFAULT_CONFIG,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Join on where records of the log are gone.")
    ] = False,
) -> None:
    """Join a log on Kafka into examples, until stopped; several processes share its partitions."""
    from freshrank.commands.join import run

    run(config, environ=os.environ, allow_gaps=allow_gaps)
