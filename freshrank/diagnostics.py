"""What a wrong configuration prints: one line per mistake, the line of the file, and a caret."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from freshrank.errors import ConfigError

# Longer lines are shown around the mistake, so that the caret stays under it in a terminal.
_LINE_CHARACTERS_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file or an environment variable.

    Attributes:
        source: File name as given, or `$NAME` for a variable.
        line: From 1; 0 where the whole source is meant.
        column: From 1, in characters.
        text: The source's line.
    """

    source: str
    line: int = 0
    column: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake.

    Attributes:
        position: Where it stands.
        path: Which setting, e.g. `features.1.expire`; empty for the file as a whole.
        text: What is wrong, and a suggestion where there is one.
        is_secret: True when the value must not be printed.
    """

    position: Position
    path: str
    text: str
    is_secret: bool = False

    def __str__(self) -> str:
        """The line `file:line:column: error: path: text`."""
        at = self.position
        place = f"{at.source}:{at.line}:{at.column}" if at.line else at.source
        return (
            f"{place}: error: {self.path}: {self.text}"
            if self.path
            else f"{place}: error: {self.text}"
        )

    def render(self) -> str:
        """That line, the source's line and a caret under the mistake."""
        at = self.position
        if not at.text.strip():
            return str(self)
        is_long = len(at.text) > _LINE_CHARACTERS_MAX
        start = max(0, at.column - _LINE_CHARACTERS_MAX // 2) if is_long else 0
        text = at.text.replace("\t", " ")[start : start + _LINE_CHARACTERS_MAX]
        indent = at.column - 1 - start
        shown = f"{text[:indent]}***" if self.is_secret else text
        return f"{self}\n{at.line:5} | {shown}\n      | {' ' * indent}^"


class InvalidConfigError(ConfigError):
    """The configuration has mistakes; its text shows all of them.

    Attributes:
        diagnostics: Every mistake, in file order; those of environment variables last.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(diagnostic.render() for diagnostic in diagnostics))
        self.diagnostics = tuple(diagnostics)
