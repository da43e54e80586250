"""What one part of the configuration says of another: names that must exist, sizes that must agree.

The rules read the raw document, so that `freshrank.config` lists their mistakes together with wrong
types: each takes what is well-formed and leaves the rest to the types.
"""

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from freshrank.hints import did_you_mean

# Ids a cross of two lists may make of one row: 32 x 32, both lists at their default length. With
# 1,000 candidates that is 8 MB of ids in a request; two lists of 256 would be 500 MB.
CROSS_IDS_MAX: Final = 1_024

_LIST_LENGTH = {"id_list": 32, "recent": 5}  # default max_len by type
_DIM = 16  # default dim
_LIVE = ("rate", "count", "seen")
_RESERVED = {"user_id": "user", "item_id": "item"}

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong at a place of the configuration.

    Attributes:
        location: Keys and indexes from the top; may end in a key that is missing there.
        text: What is wrong, with the value and a suggestion.
        is_key: The key itself is the mistake, not its value.
    """

    location: Location
    text: str
    is_key: bool = False


def path_text(location: Location) -> str:
    r"""`features.1.expire`, on one short line whatever a key contains.

    Example:
        >>> path_text(("features", 1, "expire")), path_text(("a\nb",))
        ('features.1.expire', 'a\\nb')
    """
    return ".".join(reprlib.repr(str(step))[1:-1] for step in location)


def mistakes(document: object) -> Iterator[Mistake]:
    """Every broken reference of the document, in no particular order."""
    features = list(_entries(document, "features"))
    by_name = {feature["name"]: feature for _, feature in reversed(features)}
    tasks = list(_entries(document, "tasks"))
    yield from chain(_repeated(features, "feature"), _repeated(tasks, "task"))
    for location, feature in features:
        yield from _reserved(location, feature)
        if feature.get("type") == "cross":
            yield from _cross(location, feature, by_name)
        elif feature.get("type") == "recent":
            yield from _recent(location, feature, by_name)
        elif feature.get("type") in _LIVE:
            yield from _live(location, feature, by_name)
    if features and all(feature.get("type") in (*_LIVE, "dense") for _, feature in features):
        text = "none of them has ids to embed: add one of type id, id_list or bucket"
        yield Mistake(("features",), text)
    model = document.get("model") if isinstance(document, Mapping) else None
    if not isinstance(model, Mapping) or model.get("kind", "deepfm") == "deepfm":
        yield from _dims(features)
    yield from _state(document, features)
    yield from _replay(document, [name for name in by_name if name not in _RESERVED], tasks)


Entry = tuple[Location, Mapping[str, Any]]


def _entries(document: object, section: str) -> Iterator[Entry]:
    """The section's named mappings; everything else is a mistake of type."""
    entries = document.get(section) if isinstance(document, Mapping) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            yield (section, index), entry


def _state(document: object, features: Sequence[Entry]) -> Iterator[Mistake]:
    """What a joiner remembers is read by services: on Kafka these are other processes."""
    needing = [f["name"] for _, f in features if f.get("type") in ("recent", *_LIVE)]
    if needing and _kind(document, "log") == "kafka" and _kind(document, "state") != "redis":
        text = (
            f"on kafka joiners and services are processes of their own, and {', '.join(needing)} "
            "need state that these share: set state: {kind: redis, url: redis://host:6379/0}"
        )
        yield Mistake(("log", "kind"), text)


def _kind(document: object, section: str) -> object:
    part = document.get(section) if isinstance(document, Mapping) else None
    return part.get("kind") if isinstance(part, Mapping) else None


def _replay(document: object, features: Sequence[str], tasks: Sequence[Entry]) -> Iterator[Mistake]:
    """Columns are of tasks and features that there are."""
    columns = document
    for step in ("replay", "columns"):
        columns = columns.get(step) if isinstance(columns, Mapping) else None
    known = {"labels": [task["name"] for _, task in tasks], "features": features}
    for section, names in known.items():
        mapped = columns.get(section) if isinstance(columns, Mapping) else None
        for name in mapped if isinstance(mapped, Mapping) else ():
            if isinstance(name, str) and name not in names:
                text = f"there is no {section.removesuffix('s')} {name!r}"
                text = text.replace("label", "task") + did_you_mean(name, names)
                yield Mistake(("replay", "columns", section, name), text, is_key=True)


def _repeated(entries: list[Entry], noun: str) -> Iterator[Mistake]:
    first: dict[str, Location] = {}
    for location, entry in entries:
        name = entry["name"]
        if name in first:
            text = f"{noun} {name!r} is already declared at {path_text(first[name])}"
            yield Mistake((*location, "name"), text)
        first.setdefault(name, location)


def _is_well_formed(feature: Mapping[str, Any]) -> bool:
    """Whether type and scope are words we know; if not, that is the mistake to report."""
    if feature.get("type") in ("cross", "recent", *_LIVE):
        return True
    types, scopes = ("id", "id_list", "bucket", "dense"), ("user", "item", "candidate", "context")
    return feature.get("type") in types and feature.get("scope") in scopes


def _reserved(location: Location, feature: Mapping[str, Any]) -> Iterator[Mistake]:
    scope = _RESERVED.get(feature["name"])
    if scope is None or not _is_well_formed(feature):
        return
    if (feature["type"], feature.get("scope")) != ("id", scope):
        yield Mistake(
            (*location, "name"),
            f"{feature['name']!r} takes the request's {scope}: make it type id, scope {scope}, "
            "or choose another name",
        )


def _cross(
    location: Location, cross: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mistake]:
    names = cross.get("of")
    if not isinstance(names, list) or len(names) != 2:
        return
    for index, name in enumerate(names):
        place = (*location, "of", index)
        if not isinstance(name, str):
            continue
        if name not in by_name:
            yield Mistake(place, f"unknown feature {name!r}{did_you_mean(name, by_name)}")
        elif by_name[name].get("type") in ("dense", "cross", *_LIVE):
            yield Mistake(
                place, f"{name!r} is of type {by_name[name]['type']}: it has no ids to cross"
            )
    if names[0] == names[1]:
        yield Mistake((*location, "of", 1), f"{names[1]!r} is crossed with itself")
    elif all(isinstance(name, str) and name in by_name for name in names):
        n_ids = _length(by_name[names[0]]) * _length(by_name[names[1]])
        if n_ids > CROSS_IDS_MAX:
            yield Mistake(
                (*location, "of"),
                f"makes up to {n_ids} ids of one row, {CROSS_IDS_MAX} are allowed: lower max_len",
            )


def _length(feature: Mapping[str, Any]) -> int:
    kind = feature.get("type")
    if not isinstance(kind, str) or kind not in _LIST_LENGTH:
        return 1
    length = feature.get("max_len", _LIST_LENGTH[kind])
    return length if isinstance(length, int) else 1


def _recent(
    location: Location, recent: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mistake]:
    name = recent.get("table", "item_id")
    place = (*location, "table") if "table" in recent else location
    if not isinstance(name, str):
        return
    if name not in by_name:
        yield Mistake(place, f"unknown feature {name!r}{did_you_mean(name, by_name)}")
        return
    table = by_name[name]
    if not _is_well_formed(table):
        return
    if (table["type"], table.get("scope")) != ("id", "item"):
        yield Mistake(place, f"{name!r} must be of type id and scope item to hold recent items")
    elif table.get("key", "string") != by_name.get("item_id", {}).get("key", "string"):
        yield Mistake(place, f"{name!r} must have the key type of 'item_id' to hold recent items")


def _live(
    location: Location, live: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mistake]:
    """A key is made of features with one id per row."""
    if live["type"] == "seen":
        needed = ("item_id",) if live.get("value") == "age" else ("user_id", "item_id")
        for name in needed:
            if name not in by_name:
                yield Mistake((*location, "type"), f"'seen' needs the feature {name!r}")
        return
    names: tuple[tuple[str, Any], ...] = (("of", live.get("of", "item_id")), ("by", live.get("by")))
    for field, name in names:
        place = (*location, field) if field in live else location
        if not isinstance(name, str):
            continue
        if name not in by_name:
            yield Mistake(place, f"unknown feature {name!r}{did_you_mean(name, by_name)}")
        elif _is_well_formed(by_name[name]) and by_name[name]["type"] not in ("id", "bucket"):
            text = f"{name!r} is of type {by_name[name]['type']}: a key needs type id or bucket"
            yield Mistake(place, text)
    if live.get("by") is not None and live.get("by") == live.get("of", "item_id"):
        yield Mistake((*location, "by"), f"{live['by']!r} is combined with itself")


def _dims(features: list[Entry]) -> Iterator[Mistake]:
    dims = [
        (location, feature, feature.get("dim", _DIM))
        for location, feature in features
        if feature.get("type") in ("id", "id_list", "bucket", "cross")
        and isinstance(feature.get("dim", _DIM), int)
    ]
    if not dims:
        return
    usual, n_usual = Counter(dim for _, _, dim in dims).most_common(1)[0]
    for location, feature, dim in dims:
        if dim != usual:
            yield Mistake(
                (*location, "dim") if "dim" in feature else location,
                f"deepfm needs one dim for all features: {dim} here, {usual} for {n_usual} of "
                f"{len(dims)}",
            )
