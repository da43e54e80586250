"""Hook of mkdocs: folders fill their part of the menu, and links that leave docs/ are no links."""

import re
from pathlib import Path
from typing import Any

_FOLDERS = {"Runbooks": "runbooks", "Decisions": "decisions"}
# Where a page goes that the menu does not name.
_OTHERS = "How to"

_CODE = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """The menu, complete."""
    docs = Path(config["docs_dir"])
    named = set(re.findall(r"[\w-]+\.md", str(config["nav"])))
    for section in config["nav"]:
        [(name, pages)] = section.items()
        if name in _FOLDERS:
            pages += sorted(
                f"{_FOLDERS[name]}/{one.name}" for one in (docs / _FOLDERS[name]).glob("*.md")
            )
        elif name == _OTHERS:
            pages += sorted(one.name for one in docs.glob("*.md") if one.name not in named)
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with such links as their text, and links to folders leading to their first page."""
    depth = page.file.src_uri.count("/")

    def mend(match: re.Match[str]) -> str:
        text, target = match.groups()
        if target.startswith("../" * (depth + 1)):
            return text
        return f"[{text}]({target}0001-names.md)" if target.endswith("decisions/") else match[0]

    parts, end = [], 0
    for block in _CODE.finditer(markdown):
        parts += [_LINK.sub(mend, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, _LINK.sub(mend, markdown[end:])])
