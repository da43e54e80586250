"""Text from outside, such as an id, made safe to be shown in a line."""

import re
import struct
from typing import Final

_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_ANY: Final = re.compile(".", re.DOTALL)


def printable(text: str) -> str:
    r"""The text with everything escaped that would end its line or command a terminal.

    These are control characters, separators of lines and of text that runs the other way. They are
    escaped as JSON does, so what was JSON still is.

    Example:
        >>> printable("Zoë\n\x1b[2J\u2028")
        'Zoë\\n\\u001b[2J\\u2028'
    """
    return text if text.isprintable() else _ANY.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    character = match[0]
    if character.isprintable():
        return character
    units = struct.iter_unpack(">H", character.encode("utf-16-be", "surrogatepass"))
    return _SHORT.get(character) or "".join(rf"\u{unit:04x}" for (unit,) in units)
