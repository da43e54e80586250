"""`freshrank.yaml` -> `Settings`, or every mistake at once with file, line and column.

Environment variables override: `FRESHRANK__SYNC__SPARSE_EVERY=5s` is `sync.sparse_every: 5s`, and
`FRESHRANK__FEATURES__0__DIM=8` reaches into a list. Relative paths mean the current directory.
"""

import hashlib
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from ruamel.yaml import YAML

from freshrank.diagnostics import Diagnostic, InvalidConfigError, Position
from freshrank.pydantic_text import explain
from freshrank.references import Location, Mistake, mistakes, path_text
from freshrank.settings import Settings
from freshrank.yaml_source import Source, parse

PREFIX: Final = "FRESHRANK__"


def load(path: Path, *, environ: Mapping[str, str]) -> Settings:
    """Read and check the whole configuration.

    Args:
        path: The file.
        environ: Environment variables, for overrides and `${NAME}`.

    Raises:
        InvalidConfigError: a ConfigError with every mistake, in file order.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        at = Position(str(path), line, 1)
        raise InvalidConfigError([Diagnostic(at, "", "not UTF-8 text")]) from None
    except OSError as error:
        hint = "; `freshrank config show --demo > freshrank.yaml` writes one to start from"
        detail = f"cannot read it: {error.strerror}{hint if not path.exists() else ''}"
        raise InvalidConfigError([Diagnostic(Position(str(path)), "", detail)]) from None
    return loads(text, name=str(path), environ=environ)


def demo_text() -> str:
    """The commented configuration that `freshrank demo` runs with."""
    return resources.files("freshrank").joinpath("demo.yaml").read_text("utf-8")


def digest(settings: Settings) -> str:
    """16 hex digits that tell configurations apart; keys do not count."""
    content = settings.model_dump_json(by_alias=True, exclude={"auth"})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def masked(settings: Settings) -> dict[str, Any]:
    """Every setting with its value as JSON has it, key hashes masked."""
    document = settings.model_dump(mode="json", by_alias=True)
    for key in document["auth"]["keys"]:
        if key["sha256"] is not None:
            key["sha256"] = "***"
    return document


def resolved(settings: Settings) -> str:
    """The same as YAML, which `load` reads back where nothing is masked."""
    stream = io.StringIO()
    YAML(pure=True).dump(masked(settings), stream)  # round-trip mode: block style, order kept
    return stream.getvalue()


def loads(text: str, *, name: str, environ: Mapping[str, str]) -> Settings:
    """The same for a text; `name` stands for the file in messages."""
    source = parse(name, text, environ)
    if source.value is None and not source.diagnostics:
        source.diagnostics.append(Diagnostic(Position(name), "", "the file is empty"))
    document = _Document(source)
    document.override(environ)
    diagnostics = list(document.diagnostics)
    settings = None
    if isinstance(source.value, dict):
        settings, found = _validate(document)
        unread = {one.path for one in diagnostics}  # what could not be read has no type either
        diagnostics += [one for one in found if one.path not in unread]
    elif source.value is not None:
        mistake = Mistake((), "expected a mapping of sections at the top")
        diagnostics.append(document.diagnostic(mistake))
    if diagnostics or settings is None:
        diagnostics.sort(key=document.order)
        raise InvalidConfigError(diagnostics)
    return settings


def _validate(document: "_Document") -> tuple[Settings | None, list[Diagnostic]]:
    """Types and references in one pass over the raw document, so that all are listed together."""
    found = [document.diagnostic(mistake) for mistake in mistakes(document.value)]
    try:
        return Settings.model_validate(document.value), found
    except ValidationError as error:
        explained = explain(error, document.value)
        return None, found + [document.diagnostic(mistake) for mistake in explained]


class _Document:
    """The file's values with the environment laid over them, and where each stands."""

    def __init__(self, source: Source) -> None:
        self.value: Any = source.value
        self.diagnostics = source.diagnostics
        self.sources = [source.name]
        self._values = dict(source.values)
        self._keys = dict(source.keys)

    def override(self, environ: Mapping[str, str]) -> None:
        """Lay every `FRESHRANK__…` variable over the file, in alphabetical order."""
        if not isinstance(self.value, dict):
            return
        for name in sorted(name for name in environ if name.startswith(PREFIX)):
            source = parse(f"${name}", environ[name], environ)
            self.sources.append(source.name)
            self.diagnostics.extend(source.diagnostics)
            if not source.diagnostics:
                self._set(name, source)

    def _set(self, name: str, source: Source) -> None:
        at = source.values.get((), Position(source.name, 1, 1))
        steps = name.removeprefix(PREFIX).lower().split("__")
        container: Any = {"": self.value}
        key: str | int = ""
        location: Location = ()
        for step in steps:
            container = container[key]
            found = _key(container, step)
            if found is None:
                text = f"there is no {'.'.join(steps)!r} to override"
                self.diagnostics.append(Diagnostic(at, "", text))
                return
            key = found
            location = (*location, key)
            if isinstance(container, dict) and key not in container:
                container[key] = {}
                self._keys[location] = self._values[location] = at
        container[key] = source.value
        self._keys[location] = self._values[location] = at
        self._values |= {(*location, *below): place for below, place in source.values.items()}
        self._keys |= {(*location, *below): place for below, place in source.keys.items()}

    def diagnostic(self, mistake: Mistake) -> Diagnostic:
        """The mistake at its place, or at the nearest thing around it that is written down."""
        around = mistake.location
        path = path_text(around)
        if mistake.is_key and around in self._keys:
            return Diagnostic(self._keys[around], path, mistake.text)
        is_secret = around[:2] == ("auth", "keys") and not mistake.is_key
        # A url may have a password in it.
        is_secret |= around[:1] == ("state",) or around[:2] == ("sync", "channel")
        while around not in self._values:
            around = around[:-1]
        return Diagnostic(self._values[around], path, mistake.text, is_secret=is_secret)

    def order(self, one: Diagnostic) -> tuple[int, int, int]:
        """Sorts as the file is written, then the variables by name."""
        at = one.position
        return self.sources.index(at.source), at.line, at.column


def _key(container: object, step: str) -> str | int | None:
    """The step as a key of the container; None where nothing can stand."""
    if isinstance(container, dict):
        return step
    if isinstance(container, list) and step.isdecimal() and int(step) < len(container):
        return int(step)
    return None
