"""Routes, commands and error codes: a heading each, written from the code."""

import inspect
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
from typer.core import TyperGroup

from freshrank.cli import app, exit_code
from freshrank.worker import FATAL_CODES
from service.problems import SLUGS
from tests.docs import error_codes
from tests.docs.pages import check_below, check_page

ROOT: Final = Path(__file__).parents[2]
GENERATED: Final = '<!-- Generated: make test ARGS="tests/docs --update-golden" -->\n'
PACKAGES: Final = error_codes.PACKAGES

HTTP: Final = f"""# HTTP API

Every route, and what it takes and answers: JSON in UTF-8, times as RFC 3339 or in seconds since
1970. An unknown field is a mistake. Each answer carries `X-Request-Id`, that of the request or one
made for it. A running service has the same as `/openapi.json`, and `/docs` to try it. What a route
needs and refuses: [problems](problems.md).

{GENERATED}
"""
CODES: Final = f"""# Error codes

Every error that freshrank raises on purpose says what happened, with which value, and what to do;
its code stays the same, in log lines (`code`), [dead letters](kafka.md#dead-letters) (`reason`),
counters and reports. A … stands for a value. What the HTTP service answers has codes of its own:
[problems](problems.md).

{GENERATED}
"""


def cell(text: str) -> str:
    """Text for a table."""
    return text.replace("|", "\\|")


def table(*rows: tuple[str, ...]) -> list[str]:
    """Of rows, the first of which names the columns."""
    head, *rest = (f"| {' | '.join(map(cell, row))} |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *rest, ""]


# --- Routes


def kind(schema: dict[str, Any]) -> str:
    """A type, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind, schema["anyOf"])))
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}"
    if "additionalProperties" in schema:
        return f"mapping to {kind(schema['additionalProperties'])}"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    names = {"boolean": "true or false", "string": "text", "object": "mapping"}
    return str(names.get(schema.get("type", ""), schema.get("type", "any")))


def route(title: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"## {title}", "", str(operation.get("description") or operation["summary"]), ""]
    rows = [
        (f"`{one['name']}`", one["in"], kind(one["schema"]), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    lines += table(("parameter", "in", "is", ""), *rows) if rows else []
    bodies = operation.get("requestBody", {}).get("content", {})
    for media, body in bodies.items():
        lines += [f"Takes `{media}`: {kind(body['schema'])}.", ""]
    answers = defaultdict(list)
    for status, answer in operation["responses"].items():
        kinds = [kind(one["schema"]) for one in answer.get("content", {}).values() if one["schema"]]
        answers[kinds[0] if kinds else ""].append(status)
    told = [", ".join(codes) + (f": {what}" if what else "") for what, codes in answers.items()]
    return [*lines, f"Answers {'; '.join(told)}.", ""]


def body(name: str, schema: dict[str, Any]) -> list[str]:
    """One of what routes take and answer, each field with what its struct says of it."""
    text = inspect.cleandoc(schema.get("description", ""))
    summary, _, rest = text.partition("\n\nAttributes:\n")
    said = {
        field: " ".join(words.split())
        for field, words in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", rest, re.MULTILINE)
    }
    needed = schema.get("required", ())
    rows = [
        (f"`{field}`", kind(one), "yes" if field in needed else "", said.get(field, ""))
        for field, one in schema["properties"].items()
    ]
    return [f"### {name}", "", summary, "", *table(("field", "is", "always", ""), *rows)]


def test_every_route_has_its_heading(request: pytest.FixtureRequest) -> None:
    document = json.loads((ROOT / "tests" / "golden" / "openapi.json").read_text("utf-8"))
    lines = [HTTP]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += route(f"{method.upper()} {path}", operation)
    lines += ["## Bodies", "", "What routes take and answer, in alphabetical order.", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += body(name, schema)
    check_page("http.md", "\n".join(lines), request)


# --- Commands


def command(name: str, one: Any) -> list[str]:
    lines = [f"### {name}", "", " ".join(inspect.cleandoc(one.help).split()), ""]
    rows = []
    for parameter in one.params:
        is_option = parameter.param_type_name == "option"
        names = [*parameter.opts, *parameter.secondary_opts] if is_option else [argument(parameter)]
        shown = "" if parameter.default in (None, False, ()) else f"`{parameter.default}`"
        variable = f" (`{parameter.envvar}`)" if parameter.envvar else ""
        rows.append((", ".join(f"`{n}`" for n in names), shown, (parameter.help or "") + variable))
    return [*lines, *(table(("option", "default", ""), *rows) if rows else [])]


def argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def test_every_command_has_its_heading(request: pytest.FixtureRequest) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    lines = ["", "## All commands", ""]
    for name, one in sorted(root.commands.items()):
        inner = one.commands if isinstance(one, TyperGroup) else {"": one}
        for below, leaf in sorted(inner.items()):
            lines += command(f"freshrank {name} {below}".strip(), leaf)
    check_below("commands.md", "\n".join(lines), request)


# --- Error codes


def test_every_error_code_has_its_heading(request: pytest.FixtureRequest) -> None:
    kinds = {**error_codes.BUILT_IN, **error_codes.own_kinds()}
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for code, name, message in error_codes.made(kinds):
        if (name, message) not in found[code]:
            found[code].append((name, message))
    lines = [CODES]
    for code, made in sorted(found.items()):
        names = sorted({name for name, _ in made if name})
        exits = sorted({exit_code(kinds[name]("")) for name in names})
        told = f"{', '.join(f'`{one}`' for one in names)}; a command exits with "
        letter = "A [dead letter](semantics.md#learning)."
        lines += [f"## {code}", "", f"{told}{min(exits)}." if names else letter, ""]
        said = [f"- {message}" for _, message in made if message != "…"]
        lines += [*said, ""] if said else []
    assert len(found) > 100
    check_page("codes.md", "\n".join(lines), request)


def test_every_code_that_the_program_goes_by_has_its_heading() -> None:
    """Whoever asks for a code knows of one that can come, however it is made."""
    page = (ROOT / "docs" / "codes.md").read_text("utf-8")
    asked = {*FATAL_CODES}
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            text = path.read_text("utf-8")
            for one in re.findall(r"\berror\.code (?:==|!=|in|not in) ([^:]+):", text):
                asked |= set(re.findall(r'"([a-z-]+)"', one))
    assert len(asked) > 10
    assert {code for code in asked if f"\n## {code}\n" not in page} == set()


def test_every_problem_names_the_routes_that_may_answer_it() -> None:
    rows = (ROOT / "docs" / "problems.md").read_text("utf-8")
    assert [slug for slug in SLUGS if f"[{slug}](#{slug})" not in rows] == []
