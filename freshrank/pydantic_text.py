"""Pydantic's errors in the words of the file: where, what was expected, what stands there."""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from freshrank.hints import did_you_mean
from freshrank.references import Location, Mistake
from freshrank.settings import Settings

_PATTERNS: Final = {
    r"^[a-z][a-z0-9_]{0,63}$": "a name of a-z, 0-9 and _ that begins with a letter",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits, the output of sha256sum",
}
_EXPECTED: Final = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_type": "a string",
}


def explain(error: ValidationError, document: Mapping[str, Any]) -> Iterator[Mistake]:
    """Every error of the validation, without pydantic's discriminator tags."""
    schema = Settings.model_json_schema()
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if location[:1] == ("features",) and len(location) > 2:
            location = (*location[:2], *location[3:])  # the tag of the union follows the index
        yield _explanation(detail, location, document, schema)


def _explanation(
    detail: ErrorDetails, location: Location, document: Mapping[str, Any], schema: dict[str, Any]
) -> Mistake:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(schema, location[:-1], document)
            hint = did_you_mean(location[-1], known)
            return Mistake(location, f"unknown key {_shown(location[-1])}{hint}", is_key=True)
        case "missing":
            return Mistake(location, "is required")
        case "union_tag_not_found":
            return Mistake((*location, "type"), f"is required, one of {_types(schema)}")
        case "union_tag_invalid":
            types = _types(schema)
            return Mistake((*location, "type"), _expected(types, detail["input"]["type"]))
        case "value_error":
            return Mistake(location, str(context["error"]))
        case "literal_error":
            return Mistake(location, _expected(str(context["expected"]), detail["input"]))
    expected = _EXPECTED.get(detail["type"])
    if expected is None:
        expected = detail["msg"].removeprefix("Input should be ").removeprefix("List should have ")
    if detail["type"] == "string_pattern_mismatch":
        expected = _PATTERNS.get(context["pattern"], expected)
    got = "" if location[0] == "auth" else f", got {_shown(detail['input'])}"
    return Mistake(location, f"expected {expected}{got}")


def _expected(choices: str, value: object) -> str:
    hint = did_you_mean(value, choices.split("'")[1::2])
    return f"expected {choices}, got {_shown(value)}{hint}"


def _shown(value: object) -> str:
    """The value in the words of YAML, short."""
    words = {None: "nothing", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else reprlib.repr(value)


def _types(schema: dict[str, Any]) -> str:
    mapping = schema["properties"]["features"]["items"]["discriminator"]["mapping"]
    return ", ".join(map(repr, sorted(mapping)))


def _known_keys(schema: dict[str, Any], location: Location, document: Any) -> list[str]:
    """Keys that the mapping at the location may have, by the JSON Schema."""
    part, value = schema, document
    for step in location:
        value = value[step]
        part = part["items"] if isinstance(step, int) else part["properties"][step]
        for branch in part.get("anyOf", ()):  # a section or nothing
            part = branch if "$ref" in branch else part
        if "discriminator" in part:
            part = {"$ref": part["discriminator"]["mapping"][value["type"]]}
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return list(part["properties"])
