"""YAML text -> plain values and where each of them stands.

YAML 1.2 by ruamel: `no` and `on` are strings, `1e-3` is a number, `012` is 12. Beyond it: `${NAME}`
in a value becomes that environment variable, before an unquoted value is read as a number or word:
`port: ${PORT}` is a number and `name: "${PORT}"` a string.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from freshrank.diagnostics import Diagnostic, Position
from freshrank.references import Location, path_text

# Aliases multiply: nine lines of them can stand for a billion values.
_VALUES_MAX: Final = 20_000
_CHARACTERS_MAX: Final = 1 << 20

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed text.

    Attributes:
        name: File name, or `$NAME` of a variable.
        value: Mappings, lists, strings, numbers, booleans and None.
        values: Position of every value.
        keys: Position of every mapping's keys.
        diagnostics: Mistakes of the text itself: syntax, repeated keys, unknown variables.
    """

    name: str
    value: object = None
    values: dict[Location, Position] = field(default_factory=dict)
    keys: dict[Location, Position] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)


def parse(name: str, text: str, environ: Mapping[str, str]) -> Source:
    """Read one document; mistakes are collected, not raised."""
    reader = _Reader(name, text, environ)
    source = Source(name, None, reader.values, reader.keys, reader.diagnostics)
    if len(text) > _CHARACTERS_MAX:
        reader.mistake(Position(name), (), f"larger than {_CHARACTERS_MAX} characters")
        return source
    try:
        node = reader.yaml.compose(text)
        value = None if node is None else reader.read(node, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(name) if mark is None else reader.position(mark.line, mark.column)
        problem = error.problem or error.context or "not YAML"
        reader.mistake(at, (), f"not YAML: {problem}")
        return source
    except (YAMLError, RecursionError, _TooManyError) as error:
        detail = str(error).splitlines()[0] if not isinstance(error, RecursionError) else "too deep"
        reader.mistake(Position(name), (), f"not YAML: {detail}")
        return source
    return Source(name, value, reader.values, reader.keys, reader.diagnostics)


class _TooManyError(Exception):
    """The document stands for more values than any configuration has."""


class _Reader:
    """Walks the node tree once."""

    def __init__(self, name: str, text: str, environ: Mapping[str, str]) -> None:
        self.yaml = YAML(typ="safe", pure=True)
        self.values: dict[Location, Position] = {}
        self.keys: dict[Location, Position] = {}
        self.diagnostics: list[Diagnostic] = []
        self._name = name
        self._lines = text.splitlines()
        self._environ = environ
        self._n_values = 0

    def position(self, line: int, column: int) -> Position:
        text = self._lines[line] if line < len(self._lines) else ""
        return Position(self._name, line + 1, column + 1, text)

    def mistake(self, at: Position, location: Location, text: str) -> None:
        self.diagnostics.append(Diagnostic(at, path_text(location), text))

    def read(self, node: Node, location: Location) -> object:
        """The node's plain value; records where it and its keys stand."""
        self._n_values += 1
        if self._n_values > _VALUES_MAX:
            raise _TooManyError(f"more than {_VALUES_MAX} values")
        self.values[location] = self.position(node.start_mark.line, node.start_mark.column)
        if isinstance(node, MappingNode):
            return dict(self._entries(node, location))
        if isinstance(node, SequenceNode):
            return [self.read(child, (*location, i)) for i, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)  # noqa: S101 -- the third kind of node
        return self._scalar(node, location)

    def _entries(self, node: MappingNode, location: Location) -> Iterator[tuple[str, object]]:
        for key_node, value_node in node.value:
            at = self.position(key_node.start_mark.line, key_node.start_mark.column)
            if not isinstance(key_node, ScalarNode):
                self.mistake(at, location, "a key must be a word")
                continue
            key = key_node.value
            place = (*location, key)
            if place in self.keys:
                first = self.keys[place].line
                self.mistake(
                    at, place, f"key {reprlib.repr(key)} stands twice, first in line {first}"
                )
                continue
            self.keys[place] = at
            value = self.read(value_node, place)
            if value is None and not value_node.value:  # `key:` has its value on a later line
                self.values[place] = at
            yield key, value

    def _scalar(self, node: ScalarNode, location: Location) -> object:
        text = _VARIABLE.sub(lambda match: self._variable(match[1], location), node.value)
        tag = node.tag
        if text != node.value and node.style is None:
            tag = self.yaml.resolver.resolve(ScalarNode, text, (True, False))
        if tag in (f"{_TAG}str", f"{_TAG}timestamp"):
            return text
        if tag not in (f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float"):
            self.mistake(self.values[location], location, f"tag {str(tag)!r} is not supported")
            return None
        try:
            return self.yaml.constructor.construct_object(ScalarNode(tag, text, node.start_mark))
        except ValueError as error:
            self.mistake(self.values[location], location, f"not a value: {error}")
            return None

    def _variable(self, name: str, location: Location) -> str:
        if name not in self._environ:
            self.mistake(
                self.values[location], location, f"environment variable {name!r} is not set"
            )
        return self._environ.get(name, "")
