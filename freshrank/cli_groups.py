"""Commands in groups: `freshrank config …`, `topics …` and `dev …`; see `freshrank.cli`."""

import os
from pathlib import Path
from typing import Annotated

import typer

config_app = typer.Typer(help="Check, show or describe the configuration.", no_args_is_help=True)
dev_app = typer.Typer(
    help="Run a real server for development, from a checkout.", no_args_is_help=True
)
topics_app = typer.Typer(
    help="Make, show and replay the topics of the event log.", no_args_is_help=True
)

ConfigPath = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="FRESHRANK_CONFIG", help="The configuration file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DevDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Keep the data here, and go on with it.")
]
DevPort = Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: any free one.")]

DEFAULT_CONFIG = Path("freshrank.yaml")


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


@topics_app.command("create")
def topics_create(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Make the topics that Kafka lacks; exit code 1 if one that is there is not as configured."""
    from freshrank.commands.topics import create

    create(config, environ=os.environ, as_json=as_json)


@topics_app.command("tail")
def topics_tail(
    topic: Annotated[str, typer.Argument(help="Such as actions, or freshrank.examples.dlq.")],
    config: ConfigPath = DEFAULT_CONFIG,
    partition: Annotated[
        int | None, typer.Option(min=0, help="This one only; all by default.")
    ] = None,
    last: Annotated[int, typer.Option("-n", min=0, help="So many last offsets of each.")] = 10,
    offset: Annotated[int | None, typer.Option(min=0, help="From this offset on instead.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    as_json: Json = False,
) -> None:
    """Print the records at the end of a topic, decoded; works beside the process that writes."""
    from freshrank.commands.topics import tail

    tail(
        config,
        topic,
        partition=partition,
        last=last,
        offset=offset,
        follow=follow,
        as_json=as_json,
        environ=os.environ,
    )


@topics_app.command("replay")
def topics_replay(
    recorded: Annotated[Path, typer.Argument(help="Directory of a local log, such as data/log.")],
    config: ConfigPath = DEFAULT_CONFIG,
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", help="Impressions, actions and entities by default; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Append what a local log recorded to the configured log, as on Kafka, byte for byte."""
    from freshrank.commands.topics import replay

    chosen = topics or ["entities", "impressions", "actions"]
    replay(recorded, config, chosen, environ=os.environ, as_json=as_json)


@dev_app.command("kafka")
def dev_kafka(data_dir: DevDir = None, port: DevPort = 0, as_json: Json = False) -> None:
    """Run a Kafka broker of one node until stopped; needs Java, and Maven the first time."""
    from freshrank.commands.dev import run

    run("kafka", data_dir=data_dir, port=port, as_json=as_json)


@dev_app.command("redis")
def dev_redis(data_dir: DevDir = None, port: DevPort = 0, as_json: Json = False) -> None:
    """Run a Redis server until stopped."""
    from freshrank.commands.dev import run

    run("redis", data_dir=data_dir, port=port, as_json=as_json)
