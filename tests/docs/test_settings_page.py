"""docs/settings.md says of every setting what the models say."""

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from freshrank.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Every setting of `freshrank.yaml`, by section. Each can be set from the environment too, which
wins: `sync.sparse_every` is `FRESHRANK__SYNC__SPARSE_EVERY`. `freshrank config check` names every
mistake, `freshrank config show` prints every value. Durations are written `500ms`, `10s`, `5m`,
`12h`, `30d`, sizes `64MiB`. What features mean: [features](features.md).

<!-- Generated: make test ARGS="tests/docs/test_settings_page.py --update-golden" -->
"""


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from models(one)


def kind(annotation: Any) -> str:
    """What is written there, in a word or by its choices."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kind(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        kinds = [kind(one) for one in get_args(annotation) if one is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin in (list, dict):
        return "list" if origin is list else "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if isinstance(annotation, typing.TypeVar):
        return "value"
    names = {"int": "integer", "float": "number", "bool": "true or false", "str": "text"}
    names |= {"timedelta": "duration", "Path": "path"}
    return str(names.get(annotation.__name__, annotation.__name__))


def default(owner: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "below"
    if value is None or value is PydanticUndefined:
        return "none"
    shown = owner.model_construct(**{name: value}).model_dump(mode="json", include={name})[name]
    return f"`{shown}`"


def sections(
    model: type[BaseModel], path: str, title: str
) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those below it, each once, in the order of the file."""
    yield title, model
    for name, field in model.model_fields.items():
        name = field.alias or name
        below = list(dict.fromkeys(models(field.annotation)))
        for one in below:
            inner = f"{path}.{name}" if path else name
            many = get_origin(field.annotation) is list or len(below) > 1
            told = f"{inner}, {one.__name__}" if len(below) > 1 else inner
            yield from sections(one, f"{inner}.N" if many else inner, told)


def written() -> str:
    lines = [HEAD]
    found = dict.fromkeys(sections(Settings, "", "The file"))
    titles = {title for title, _ in found}
    for title, model in found:
        summary = (model.__doc__ or "").strip().splitlines()[0]
        lines += [f"## {title}", "", summary, ""]
        said, inner = remarks(model), []
        for name, field in model.model_fields.items():
            value = default(model, name, field)
            at = heading(title, field.alias or name)
            if at in titles:
                inner.append(f"`{name}`" + ("" if value == "below" else f" ({value})"))
                continue
            told = value if value in ("required", "below", "none") else f"{value} by default"
            words = f"{kind(field.annotation)}; {told}. {said.get(name, '')}".strip()
            lines += [f"### {at}", "", words[0].upper() + words[1:], ""]
        if inner:
            lines += [f"Sections with headings of their own: {', '.join(inner)}.", ""]
    return "\n".join(lines)


def heading(title: str, name: str) -> str:
    """A setting's: where it stands in the file."""
    if title == "The file":
        return name
    return f"{title}: {name}" if ", " in title else f"{title}.{name}"


def remarks(model: type[BaseModel]) -> dict[str, str]:
    """What the source says of each setting: the comment above it, or behind it."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        above: list[str] = []
        for line in inspect.getsource(owner).splitlines():
            text = line.strip()
            if text.startswith("# "):
                above.append(text[2:])
                continue
            if field := re.match(r" {4}(\w+): ", line):
                behind = re.findall(r"  # (?!noqa|type:)(.+)$", line)
                words = " ".join(above) or "".join(one[0].upper() + one[1:] for one in behind)
                if words:
                    found[field[1]] = words.rstrip(".") + "."
            above = []
    return found


def test_the_page_lists_every_setting(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        PAGE.write_text(written(), "utf-8")
    else:
        assert PAGE.read_text("utf-8") == written()


def test_every_section_of_the_file_has_its_heading() -> None:
    text = written()
    for name, field in Settings.model_fields.items():
        assert re.search(rf"^##+ {name}\b", text, re.MULTILINE)
        if any(True for _ in models(field.annotation)):
            assert f"\n## {name}" in text
