"""Commands in groups: `freshrank config …`, `topics …` and `dev …`; see `freshrank.cli`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from freshrank.cli_options import DEFAULT_CONFIG, ConfigPath, Json

config_app = typer.Typer(help="Check, show or describe the configuration.", no_args_is_help=True)
dev_app = typer.Typer(
    help="Run a real server for development, from a checkout.", no_args_is_help=True
)
topics_app = typer.Typer(
    help="Make, show and replay the topics of the event log.", no_args_is_help=True
)
dlq_app = typer.Typer(
    help="Show dead letters, and put them back into the stream.", no_args_is_help=True
)
snapshots_app = typer.Typer(
    help="Show and keep the checkpoints that one can go back to.", no_args_is_help=True
)
events_app = typer.Typer(help="Check events before they are sent.", no_args_is_help=True)

DlqTopics = Annotated[
    list[str] | None, typer.Option("--topic", help="Such as actions; all by default, repeatable.")
]
DlqPartition = Annotated[int | None, typer.Option("--partition", min=0, help="This one only.")]
DlqOffset = Annotated[
    int | None, typer.Option("--offset", min=0, help="The letter at this offset only.")
]
DlqReason = Annotated[
    str | None, typer.Option("--reason", help="Refused for this only, e.g. newer-version.")
]
DevDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Keep the data here, and go on with it.")
]
DevPort = Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: any free one.")]


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


@dlq_app.command("list")
def dlq_list(
    config: ConfigPath = DEFAULT_CONFIG,
    topic: DlqTopics = None,
    partition: DlqPartition = None,
    offset: DlqOffset = None,
    reason: DlqReason = None,
    last: Annotated[int, typer.Option("-n", min=1, help="So many last ones.")] = 100,
    as_json: Json = False,
) -> None:
    """Print what was refused, with its reason; as JSON an object per line."""
    from freshrank.commands.dlq import Choice, show

    choice = Choice(tuple(topic or ()), partition, offset, reason)
    show(config, choice, last=last, as_json=as_json, environ=os.environ)


@dlq_app.command("replay")
def dlq_replay(
    config: ConfigPath = DEFAULT_CONFIG,
    topic: DlqTopics = None,
    partition: DlqPartition = None,
    offset: DlqOffset = None,
    reason: DlqReason = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 1_000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be put back, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put refused records back where they stood, once; what fails again is attempt 2."""
    from freshrank.commands.dlq import Choice, replay

    choice = Choice(tuple(topic or ()), partition, offset, reason)
    replay(config, choice, limit=limit, is_dry=dry_run, as_json=as_json, environ=os.environ)


@snapshots_app.command("list")
def snapshots_list(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Print the checkpoints below the data directory of the trainer, oldest first."""
    from freshrank.commands.snapshots import show

    show(config, environ=os.environ, as_json=as_json)


@snapshots_app.command("keep")
def snapshots_keep(
    name: Annotated[str, typer.Argument(help="Letters, digits, - and _: it becomes kept-NAME.")],
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Keep the newest checkpoint until you remove it; works beside the trainer."""
    from freshrank.commands.snapshots import keep

    keep(config, name, environ=os.environ, as_json=as_json)


@events_app.command("check")
def events_check(
    file: Annotated[Path, typer.Argument(help="Events as JSON lines; also gzip.")],
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Check a file of events as the service would; exit code 1 if one would be refused."""
    from freshrank.commands.events import check

    check(file, config, environ=os.environ, as_json=as_json)


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
