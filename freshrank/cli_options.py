"""Options that many commands have; see `freshrank.cli`."""

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="FRESHRANK_CONFIG", help="The configuration file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Url = Annotated[str, typer.Option(help="Address of the service.")]
Key = Annotated[
    str | None, typer.Option(envvar="FRESHRANK_KEY", help="API key, if the service needs one.")
]

DEFAULT_CONFIG = Path("freshrank.yaml")
DEFAULT_URL = "http://127.0.0.1:8000"
