"""Which fields a body may have at a place: for messages about those it may not have."""

from collections.abc import Sequence
from typing import Any

from msgspec import inspect


def names_at(body: Any, raw: Any, steps: Sequence[str]) -> list[str]:
    """Names of the fields that an object may have, sorted; none where it is no struct.

    Args:
        body: Type of the whole body.
        raw: The body as sent: it says which of several structs was meant.
        steps: Where in it.
    """
    kind = _meant(inspect.type_info(body), raw)
    for step in steps:
        raw = enter(raw, step)
        kind = _meant(_inner(kind, step), raw)
    if not isinstance(kind, inspect.StructType):
        return []
    names = {field.encode_name for field in kind.fields}
    return sorted(names | {kind.tag_field} if kind.tag_field else names)


def enter(place: Any, step: str) -> Any:
    """What stands at a step of a JSON value; None where there is no such place."""
    try:
        return place[int(step)] if isinstance(place, list) else place[step]
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _inner(kind: inspect.Type | None, step: str) -> inspect.Type | None:
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    if isinstance(kind, inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == step), None)
    return None


def _meant(kind: inspect.Type | None, raw: Any) -> inspect.Type | None:
    """Of several structs, the one that the tag names."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
    return next((one for one in structs if enter(raw, str(one.tag_field)) == one.tag), None)
