"""Fixtures of the service's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from tests.unit.service.support import TestClient, World, service_of, until_warm

MakeWorld = Callable[..., World]
MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    worlds: list[World] = []

    def make(**parts: Any) -> World:
        world = World(tmp_path / str(len(worlds)), **parts)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    clients: list[TestClient] = []

    def make(world: World, *, wait: bool = True, **options: Any) -> TestClient:
        client = TestClient(create_app(world.parts), **options)
        client.__enter__()
        clients.append(client)
        if wait:
            until_warm(service_of(client))
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world for the many requests of a module that leave no trace, or one that is counted."""
    world = World(tmp_path_factory.mktemp("shared"))
    world.base()
    yield world
    world.close()


@pytest.fixture(scope="module")
def shared_client(shared_world: World) -> Iterator[TestClient]:
    with TestClient(create_app(shared_world.parts)) as client:
        until_warm(service_of(client))
        yield client


@pytest.fixture
def client(world: World, make_client: MakeClient) -> TestClient:
    world.base()
    return make_client(world)
