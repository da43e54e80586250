"""`freshrank top`: one screen of what `GET /v1/stats` says, renewed each second."""

import contextlib
import json
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from typing import Any, Final

from freshrank.client import call
from freshrank.errors import TransportError

_EVERY_S: Final = 1.0
# The alternate screen without a cursor, and back; home; clear to the end of a line, of the screen.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _LINE_END, _SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"
_NONE: Final = "-"


def run(*, url: str, key: str | None, once: bool, as_json: bool) -> None:
    """Show the figures; the options are those of `freshrank.cli`.

    Where standard output is no terminal, or with one of the options, once.

    Raises:
        TransportError: nobody answers at the first time; later the screen says so and goes on.
        DataError: the service refused.
    """
    stats = call(url, "/v1/stats", key=key)
    if as_json:
        print(json.dumps(stats))
    elif once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        print("\n".join(screen(stats, url)))
    else:
        _follow(stats, url, key)


def screen(stats: Mapping[str, Any], url: str, trouble: str = "") -> list[str]:
    """Lines of text, without colours.

    Args:
        stats: What `GET /v1/stats` answered.
        url: Where.
        trouble: Why it is not of now, if it is not.
    """
    model, freshness = stats["model"] or {}, stats["freshness"]
    trainer, ingest, ours = stats["trainer"], stats["ingest"], stats["statistics"]
    lag = stats.get("lag") or {}
    state = {None: "unknown", True: "paused", False: "on"}[trainer["paused"]]
    where = "" if trainer["present"] else " (a process of its own)"
    return [
        f"{stats['name']} at {url}, up {_seconds(stats['uptime_seconds'], 0)}"
        + (f"  NOT OF NOW: {trouble}" if trouble else ""),
        "",
        f"version     {model.get('version', _NONE)}, epoch {model.get('epoch', _NONE)}, "
        f"sparse {model.get('sparse_seq', _NONE)}, dense {model.get('dense_version', _NONE)}, "
        f"{_seconds(freshness['sparse_age_seconds'])} old",
        f"freshness   actions p50 {_seconds(freshness['p50_seconds'])} "
        f"p99 {_seconds(freshness['p99_seconds'])}   "
        f"negatives p50 {_seconds(freshness['negatives']['p50_seconds'])} "
        f"p99 {_seconds(freshness['negatives']['p99_seconds'])}",
        f"quality     AUC {_number(stats['auc'], 4)}",
        f"events      {_number(ingest['received'])} received, {_number(ingest['accepted'])} "
        f"accepted, {_number(ingest['rejected'])} rejected",
        f"learning    {state}{where}, {_number(ours.get('examples_per_second'))} examples/s",
        "lag         " + (", ".join(f"{k} {_number(n)}" for k, n in lag.items()) or _NONE),
        f"refused     {_refused(stats['refused_frames'])}",
        f"degraded    {', '.join(stats['degraded']) or 'no'}",
        "",
        *_tables(stats["tables"]),
    ]


def _tables(tables: list[Mapping[str, Any]]) -> list[str]:
    """Occupancy by slot: of the replica, then of the trainer where it is known."""
    counts = ("admitted", "filtered", "expired", "evicted")
    head = f"{'slot':20}{'rows':>11}{'MiB':>8}{'of budget':>11}"
    lines = [head + "".join(f"{name:>12}" for name in counts)]
    for one in tables:
        there = one["trainer"] or {}
        budget = there.get("budget_bytes")
        share = f"{there['bytes'] / budget:.0%}" if budget else _NONE
        lines.append(
            f"{one['name'][:19]:20}{_number(one['rows']):>11}{one['bytes'] / (1 << 20):>8.1f}"
            + f"{share:>11}"
            + "".join(f"{_number(there.get(name)):>12}" for name in counts)
        )
    return lines


def _refused(frames: Any) -> str:
    if isinstance(frames, Mapping):
        return ", ".join(f"{name} {n}" for name, n in frames.items()) or "none"
    return _number(frames)


def _number(value: float | None, n_decimals: int = 0) -> str:
    return _NONE if value is None else f"{value:,.{n_decimals}f}"


def _seconds(value: float | None, n_decimals: int = 2) -> str:
    return _NONE if value is None else f"{value:,.{n_decimals}f} s"


def _follow(stats: Mapping[str, Any], url: str, key: str | None) -> None:
    """Until `q` or Ctrl-C."""
    trouble = ""
    with _terminal() as terminal, contextlib.suppress(KeyboardInterrupt):
        while True:
            width, height = shutil.get_terminal_size()
            lines = [*screen(stats, url, trouble)[: height - 2], "", "q leaves"]
            shown = f"{_LINE_END}\r\n".join(line[:width] for line in lines)
            print(f"{_HOME}{shown}{_SCREEN_END}", end="", flush=True)
            if _is_left(terminal):
                return
            try:
                stats, trouble = call(url, "/v1/stats", key=key), ""
            except TransportError:
                trouble = "no answer"


def _is_left(terminal: int) -> bool:
    """Wait until it is time to look again; True as soon as `q` is pressed."""
    until_s = time.monotonic() + _EVERY_S
    while (left_s := until_s - time.monotonic()) > 0:
        if select.select([terminal], [], [], left_s)[0] and os.read(terminal, 1) in (b"q", b""):
            return True
    return False


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    """The keyboard key by key, and the screen that was there back again at the end."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        print(_ENTER, end="", flush=True)
        yield keyboard
    finally:
        print(_LEAVE, end="", flush=True)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
