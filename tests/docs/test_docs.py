"""The documentation names what there is, and its links lead somewhere."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer.main
from typer.core import TyperGroup

from freshrank.cli import app
from service.app import create_app
from service.problems import SLUGS
from tests.unit.service.support import TestClient, World

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])

# Not every `](…)` is a link: code is cut out first.
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def read(path: Path) -> str:
    return path.read_text("utf-8")


@cache
def everything() -> str:
    return "\n".join(read(page) for page in PAGES)


def headings(page: Path) -> list[str]:
    return _HEADING.findall(re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)
    }


def commands() -> Iterator[str]:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    for name, command in root.commands.items():
        if isinstance(command, TyperGroup):
            yield from (f"freshrank {name} {inner}" for inner in command.commands)
        else:
            yield f"freshrank {name}"


def test_every_problem_has_its_heading() -> None:
    known = headings(DOCS / "problems.md")
    assert [one for one in known if one in SLUGS] == sorted(SLUGS)
    assert {one for one in known if one not in SLUGS} == {"Problems"}


@pytest.mark.parametrize("slug", sorted(SLUGS))
def test_a_problem_begins_with_its_status(slug: str) -> None:
    section = read(DOCS / "problems.md").split(f"\n## {slug}\n\n")[1]
    assert section.startswith(str(SLUGS[slug][0]))


def test_every_command_is_named() -> None:
    found = sorted(commands())
    assert len(found) >= 7
    assert [one for one in found if f"`{one}" not in everything()] == []


def test_every_route_is_named(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        paths = TestClient(create_app(world.parts)).get("/openapi.json").json()["paths"]
    finally:
        world.close()
    routes = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert len(routes) >= 13
    assert [route for route in routes if f"`{route}`" not in everything()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", read(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        is_there = target.exists() and (target == ROOT or ROOT in target.parents)
        if not is_there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_test_that_the_rules_name_is_there() -> None:
    """`tests/…` in full, or a file name that stands below one of the folders named."""
    text = read(DOCS / "semantics.md")
    paths = re.findall(r"`(tests/[\w/.]+)`", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = re.findall(r"`(test_\w+\.py)`", text)
    assert [name for name in names if not list((ROOT / "tests").rglob(name))] == []
