"""Every code that an error can have, read from where the errors are made."""

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from freshrank import errors, letters, verdicts
from freshrank.errors import Error
from freshrank.transport import kafka_cluster

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("freshrank", "service", "trainer")
BUILT_IN: Final = {
    name: one
    for name, one in vars(errors).items()
    if inspect.isclass(one) and issubclass(one, Error)
}

_CLUSTER: Final = "…: cannot … (…): "
_REDIS: Final = {
    "full": "… has no memory left (…): raise its maxmemory, or lower what is kept in it",
    "refused": "… refuses this user (…): see …, and the user's ACL on the server",
    "unreachable": "… does not answer (…): see that it runs and … is right",
}
# Where a code is no constant: file and expression -> codes and their messages.
FROM_ELSEWHERE: Final[Mapping[tuple[str, str], tuple[tuple[str, str], ...]]] = {
    ("freshrank/transport/kafka_cluster.py", "code"): (
        ("broker-error", f"{_CLUSTER}the broker's log may say more; it is tried again"),
        *((code, _CLUSTER + remedy) for _, code, remedy in kafka_cluster._MEANINGS),
    ),
    ("freshrank/transport/redis_server.py", "f'{self._code}-{_slug(error)}'"): tuple(
        (f"{part}-{slug}", text) for part in ("channel", "state") for slug, text in _REDIS.items()
    ),
    ("service/judge.py", "reason"): tuple(
        (reason, "frame … is worse than what serves (…): it stays out; see "
         "freshrank_sync_refused_total of the trainer, whose guard let it through")
        for reason in verdicts.REASONS
    ),
    # The code that another one was made with.
    ("freshrank/commands/join.py", "failure.code"): (),
    ("freshrank/commands/rollback.py", "error.code"): (),
    ("trainer/reader.py", "error.code"): (),
}  # fmt: skip


class Made(NamedTuple):
    """An error that is made somewhere.

    Attributes:
        code: Its code.
        kind: Its class; none where a row or a command is refused, or rows are judged.
        message: With … for what is filled in.
    """

    code: str
    kind: str
    message: str


def own_kinds() -> dict[str, type[Error]]:
    """The classes of errors that are defined elsewhere, by name."""
    found: dict[str, type[Error]] = {}
    for path, tree in _modules():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in BUILT_IN:
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if bases & BUILT_IN.keys():
                    found[node.name] = getattr(importlib.import_module(module), node.name)
    return found


def made(kinds: Mapping[str, type[Error]]) -> Iterator[Made]:
    """Every place where an error is made with a code, then the classes' own codes.

    Raises:
        AssertionError: nobody can tell what a code may be.
    """
    for path, tree in _modules():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name), args=args, keywords=words) if name in kinds:
                    codes = [word.value for word in words if word.arg == "code"]
                    message = _text(args[0]) if args else "…"
                case ast.Call(
                    func=ast.Attribute(attr="refuse" | "_refuse"), args=[_, code, text, *_]
                ) if path.is_relative_to(ROOT / "trainer") and isinstance(code, ast.Constant):
                    name, codes, message = "", [code], _text(text)
                case ast.Tuple(
                    elts=[code, ast.Name() | ast.UnaryOp() | ast.BinOp() | ast.Call()]
                ) if path.name == "validation.py" and isinstance(code, ast.Constant):
                    name, codes, message = "", [code], "…"
                case _:
                    continue
            for code in codes:
                for found, told in _resolved(path, tree, code):
                    yield Made(found, name, told or message)
    yield Made(letters.UNREADABLE, "", "what stands there is no dead letter")
    for name, one in sorted(kinds.items()):
        yield Made(one.code, name, (one.__doc__ or "").splitlines()[0])


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def _resolved(path: Path, tree: ast.Module, code: ast.expr) -> Iterator[tuple[str, str]]:
    """Codes that an expression may be, each with its message if it has one of its own."""
    if isinstance(code, ast.Constant) and isinstance(code.value, str):
        yield code.value, ""
    elif isinstance(code, ast.IfExp):
        yield from _resolved(path, tree, code.body)
        yield from _resolved(path, tree, code.orelse)
    elif isinstance(code, ast.Name) and (given := _constants(tree, code.id)):
        yield from ((one, "") for one in given)
    else:
        place = path.relative_to(ROOT).as_posix(), ast.unparse(code)
        assert place in FROM_ELSEWHERE, f"{place}: which codes are these? See {__name__}"
        yield from FROM_ELSEWHERE[place]


def _constants(tree: ast.Module, name: str) -> list[str]:
    """The texts that are all a name is ever given in a module."""
    found = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                return []
            found.append(value.value)
        elif any(isinstance(one, ast.Tuple) for one in targets) and name in {
            one.id for one in ast.walk(node) if isinstance(one, ast.Name)
        }:
            return []
    return found


def _text(node: ast.expr) -> str:
    """A message, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"
