"""The table of what clients may send by way of Kafka, and what becomes of it.

Numbers are those of `docs/faults.md`. Windows are of 2 s and lateness of 4 s, half of the negatives
of clicks are kept (`joined_on_kafka.RAW`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from freshrank import messages
from freshrank.messages import Message
from tests.unit.joiner.world import action, impression

NOW_MS = 1_800_000_000_000
TEN_YEARS_MS = 10 * 365 * 24 * 3_600_000
# A request that is clicked and one that is not, in windows that the end closes.
SOUND = (
    impression("clicked", ["1", "2"], NOW_MS),
    impression("left", ["3"], NOW_MS + 10),
    action("clicked", "1", NOW_MS + 500, event_id="click"),
)
END_MS = NOW_MS + 60_000
WIDE = ["0", str(2**63 - 1), str(2**63), str(2**64 - 1)]
ODD_ID = "\u202e\U0001f600\0\n\x1b[2J"  # to the left, an emoji, no character, commands


def newer(message: Message) -> Message:
    """The message as of a newer program."""
    return msgspec.structs.replace(message, v=messages.VERSION + 1)


def bare(message: Message, *without: str, **fields: object) -> bytes:
    """The message as another program may write it."""
    told = msgspec.msgpack.decode(messages.encode(message)) | fields
    return msgspec.msgpack.encode({name: told[name] for name in told if name not in without})


# Request, item, labels and weights of clicks and purchases, and whether it is of a pair that takes
# a negative back.
Learned = tuple[str, str, tuple[float, float], tuple[float, float], bool]


def clicked(request: str, item: str) -> Learned:
    """A row of a click."""
    return request, item, (1, 0), (1, 0), False


def not_bought(request: str, item: str) -> Learned:
    """A row of a purchase that was not: of clicks it is a positive, or not kept."""
    return request, item, (0, 0), (0, 1), False


def neither(request: str, item: str) -> Learned:
    """A row of both tasks."""
    return request, item, (0, 0), (1, 1), False


def taken_back(request: str, item: str) -> tuple[Learned, Learned]:
    """The rows of a click on an item that was a negative."""
    return (request, item, (1, 0), (1, 0), True), (request, item, (0, 0), (-1, 0), True)


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent after sound records, while their windows are open, and what becomes of it.

    Attributes:
        name: Number and name of the fault.
        sent: Messages, bytes of actions, and times until which nothing is sent.
        outcomes: By how much totals exceed those of the sound records.
        letters: Codes of dead letters.
        learned: Rows beside those of the sound records.
    """

    name: str
    sent: Sequence[Message | bytes | int]
    outcomes: dict[str, int] = field(default_factory=dict)
    letters: tuple[str, ...] = ()
    learned: tuple[Learned, ...] = ()


CASES = [
    Case(
        "24-the-same-event-a-thousand-times",
        [action("clicked", "1", NOW_MS + 500, event_id="click")] * 1_000,
        {"duplicate": 1_000},
    ),
    Case(
        "25-an-action-before-its-impression",
        [action("early", "4", NOW_MS + 100), impression("early", ["4"], NOW_MS + 200)],
        {"matched": 1, "impressions_joined": 1, "examples_written": 2},
        learned=(clicked("early", "4"), not_bought("early", "4")),
    ),
    Case(
        "26-a-positive-after-its-window",
        [
            impression("slow", ["4", "5", "6", "7"], NOW_MS + 100),
            NOW_MS + 4_000,
            *(action("slow", item, NOW_MS + 3_000) for item in ("4", "5", "6", "7")),
        ],
        {"matched": 4, "impressions_joined": 1, "examples_written": 8},
        learned=(
            not_bought("slow", "4"),
            neither("slow", "5"),
            neither("slow", "6"),
            not_bought("slow", "7"),
            clicked("slow", "4"),  # its negative was sampled out: nothing is taken back
            *taken_back("slow", "5"),
            *taken_back("slow", "6"),
            clicked("slow", "7"),
        ),
    ),
    Case(
        "27-an-action-when-lateness-is-over",
        [
            impression("gone", ["4"], NOW_MS + 100),
            NOW_MS + 20_000,
            action("gone", "4", NOW_MS + 19_000),
        ],
        {"late": 1, "impressions_joined": 1, "examples_written": 1},
        learned=(neither("gone", "4"),),
    ),
    Case(
        "28-labels-of-two-tasks",
        [
            impression("both", ["4"], NOW_MS + 100),
            action("both", "4", NOW_MS + 200),
            action("both", "4", NOW_MS + 300, event="buy"),
        ],
        {"matched": 2, "impressions_joined": 1, "examples_written": 2},
        learned=(clicked("both", "4"), ("both", "4", (0, 1), (0, 1), False)),
    ),
    Case(
        "29-a-clock-ten-years-ahead",
        [
            action("clicked", "2", NOW_MS + TEN_YEARS_MS, received=NOW_MS + 100),
            impression("ahead", ["4"], NOW_MS + TEN_YEARS_MS, received=NOW_MS + 100),
        ],
        {"dead_letter": 1, "impressions_dead_letter": 1},
        ("future", "future"),
    ),
    Case(
        "29-a-clock-four-minutes-ahead-counts-as-now",
        [action("clicked", "1", NOW_MS + 240_000, received=NOW_MS + 600, event_id="click")],
        {"duplicate": 1},
    ),
    Case(
        "29-a-clock-ten-years-behind",
        [
            action("behind", "4", NOW_MS - TEN_YEARS_MS, received=NOW_MS + 100),
            impression("behind", ["4"], NOW_MS - TEN_YEARS_MS, received=NOW_MS + 100),
        ],
        {"unmatched": 1, "impressions_dead_letter": 1},
        ("late",),
    ),
    Case(
        "29-a-clock-at-zero",
        [
            action("zero", "4", 0, received=NOW_MS + 100),
            impression("zero", ["4"], 0, received=NOW_MS + 100),
        ],
        {"unmatched": 1, "impressions_dead_letter": 1},
        ("late",),
    ),
    Case(
        "29-a-time-before-1970",
        [action("clicked", "2", -1, received=NOW_MS + 100)],
        {"dead_letter": 1},
        ("bad-time",),
    ),
    Case(
        "32-numbers-that-are-none",
        [
            action("clicked", "2", NOW_MS + 100, value=math.nan),
            impression("nan", ["4"], NOW_MS + 100, columns={"price": [math.inf]}),
        ],
        {"dead_letter": 1, "impressions_dead_letter": 1},
        ("non-finite-value", "bad-value"),
    ),
    Case(
        "39-a-field-that-nobody-knows",
        [impression("odd", ["4"], NOW_MS), bare(action("odd", "4", NOW_MS + 100), colour="red")],
        {"matched": 1, "impressions_joined": 1, "examples_written": 2},
        learned=(clicked("odd", "4"), not_bought("odd", "4")),
    ),
    Case(
        "40-fields-of-the-wrong-type-or-missing",
        [
            bare(action("clicked", "2", NOW_MS + 100), value="much"),
            bare(action("clicked", "2", NOW_MS + 101), item=2),
            bare(action("clicked", "2", NOW_MS + 102), ts=True),
            bare(action("clicked", "2", NOW_MS + 103), "request_id"),
        ],
        {"dead_letter": 4},
        ("malformed",) * 4,
    ),
    Case(
        "41-ids-in-any-script",
        [
            impression(ODD_ID, ["4"], NOW_MS + 100, user="\u00c5"),
            action(ODD_ID, "4", NOW_MS + 200, user="A\u030a"),
            bare(action("clicked", "2", NOW_MS + 100), event_id=b"\xed\xa0\x80"),
        ],
        {"matched": 1, "dead_letter": 1, "impressions_joined": 1, "examples_written": 2},
        ("malformed",),
        (clicked(ODD_ID, "4"), not_bought(ODD_ID, "4")),
    ),
    Case(
        "42-every-number-of-64-bits",
        [
            impression("wide", WIDE, NOW_MS + 100),
            *(action("wide", item, NOW_MS + 200) for item in WIDE),
        ],
        {"matched": 4, "impressions_joined": 1, "examples_written": 8},
        learned=(
            *(clicked("wide", item) for item in WIDE),
            *(not_bought("wide", item) for item in WIDE),
        ),
    ),
    Case(
        "43-numbers-beyond-64-bits",
        [
            impression("beyond", ["4", str(2**64)], NOW_MS + 100),
            action("clicked", "1e30", NOW_MS + 200),
        ],
        {"unmatched": 1, "impressions_dead_letter": 1},
        ("bad-value",),
    ),
    Case(
        "54-a-label-flood-of-one-user",
        [action("clicked", "1", NOW_MS + 500, event_id=f"flood-{n}") for n in range(500)],
        {"duplicate": 500},
    ),
    Case(
        "56-an-event-for-a-request-that-was-never-served",
        [action(f"forged-{n}", "1", NOW_MS + 100) for n in range(20)],
        {"unmatched": 20},
    ),
    Case(
        "56-an-event-for-an-item-that-was-not-shown",
        [action("clicked", "99", NOW_MS + 100)],
        {"unmatched": 1},
    ),
    Case(
        "59-a-message-of-a-newer-program",
        [
            newer(action("clicked", "2", NOW_MS + 100)),
            newer(impression("newer", ["4"], NOW_MS + 100)),
        ],
        {"dead_letter": 1, "impressions_dead_letter": 1},
        ("newer-version", "newer-version"),
    ),
]
