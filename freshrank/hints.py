"""`did you mean …?`: the nearest known name, for error messages."""

import difflib
from collections.abc import Iterable

# Longer than any name we know: comparing megabytes of a client's text would cost seconds.
_CHARACTERS_MAX = 64


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'item_id'?`, or nothing where no known name is near.

    Example:
        >>> did_you_mean("item_idd", ["user_id", "item_id"])
        "; did you mean 'item_id'?"
        >>> did_you_mean("price", ["user_id", "item_id"])
        ''
    """
    if not isinstance(name, str) or len(name) > _CHARACTERS_MAX:
        return ""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
