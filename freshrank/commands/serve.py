"""`freshrank serve`: the loop of a configuration, answering over HTTP until told to stop."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from freshrank import config, log_lines
from freshrank.commands.serving import DRAIN_S, address, listen, served, stopped_by_signal
from freshrank.embedded import Embedded, can_learn
from freshrank.errors import ConfigError, Error
from service.auth import check_listen

logger = logging.getLogger(__name__)


def run(
    path: Path,
    *,
    host: str | None,
    port: int | None,
    environ: Mapping[str, str],
    insecure: bool,
    learn: bool | None,
) -> None:
    """Serve; the options are those of `freshrank.cli_roles`.

    Raises:
        ConfigError: the configuration is wrong, refuses to listen, or cannot learn.
        TransportError: port taken, data directory in use.
        Error: joiner or trainer had stopped; the log lines before say why.
    """
    overrides = {"FRESHRANK__SERVICE__HOST": host, "FRESHRANK__SERVICE__PORT": port}
    # JSON is YAML: a host such as `::1` or `1e3` stays the text it is.
    given = {name: json.dumps(value) for name, value in overrides.items() if value is not None}
    settings = config.load(path, environ={**environ, **given})
    log_lines.configure(settings.logging, role="serve")
    check_listen(settings, insecure=insecure)
    if settings.log.kind == "kafka":
        if learn:
            raise ConfigError(
                "--learn: on Kafka each role is a process of its own; beside `freshrank serve` "
                "start `freshrank join` and `freshrank train`"
            )
        learn = False
    if learn is None:
        learn = can_learn()
        if not learn:
            logger.warning("torch is not installed: ranking only, not learning")
    listener = listen(settings.service.host, settings.service.port)
    with contextlib.closing(listener), stopped_by_signal() as stop:
        loop = Embedded(settings, learn=learn)
        loop.start()
        try:
            with served(loop.app, listener):
                doing = "learning" if learn else "not learning"
                said = (
                    f"freshrank serves on {address(listener)}\n"
                    f"{doing}, data in {settings.service.data_dir}; Ctrl-C stops\n"
                )
                print(said, end="", flush=True)  # whole: a line of the log may come between writes
                stop.wait()
                began_s = time.monotonic()
                loop.service.health.drain(DRAIN_S)
        finally:
            loop.close()
    if loop.failures:
        raise Error(
            f"a part of the loop had stopped: {loop.failures[0]}. The next start goes on from the "
            "last checkpoint"
        )
    saved = "saved a checkpoint and " if learn else ""
    logger.info("%sstopped in %.1f s", saved, time.monotonic() - began_s)
