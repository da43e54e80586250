"""Real servers for tests: one of a kind for the whole run, started by the first that asks."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from freshrank.dev.kafka import kafka
from freshrank.dev.redis import redis
from freshrank.dev.servers import MissingServerError, Server

# Set where nothing may be skipped, as in CI.
REQUIRED = "FRESHRANK_REQUIRE_SERVERS"


def started(
    server: Callable[[Path], AbstractContextManager[Server]], directory: Path
) -> Iterator[Server]:
    """The server for a fixture to yield; what is missing on this machine skips its tests."""
    try:
        context = server(directory)
        running = context.__enter__()
    except MissingServerError as error:
        if os.environ.get(REQUIRED):
            raise
        pytest.skip(str(error))
    try:
        yield running
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Kafka broker; tests keep apart by the prefix of their topics."""
    yield from started(kafka, tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis server; tests keep apart by the prefix of their keys."""
    yield from started(redis, tmp_path_factory.mktemp("redis"))
