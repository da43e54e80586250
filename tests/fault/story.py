"""What is recorded for joiners: everything that can become of an impression and an action."""

import random
from collections.abc import Iterator

from freshrank import messages
from freshrank.messages import Action, Impression
from freshrank.transport.base import ACTIONS
from tests.unit.joiner.world import action, impression, topic_of

END_MS = 10_000_000
# Of even items, and of odd ones: a trainer can learn who is looked at and seldom taken.
EVENTS = [["click", "buy", "view"], ["click", "view", "view", "view", "view", "buy"]]


def shown(i: int, ts: int) -> list[Impression]:
    """The impression of a request, in one part or two."""
    if i % 5:
        return [impression(f"r{i}", [str(i % 50), "77"], ts)]
    return [
        impression(f"r{i}", [item], ts, part=part, parts=2)
        for part, item in enumerate([str(i % 50), "77"])
    ]


def story(n_requests: int) -> Iterator[tuple[str, str, bytes]]:
    """Topic, request and value of records: positives, late ones, duplicates, orphans, unreadable.

    Some impressions come in two parts, and some parts once more, late. Windows are of
    seconds, and are closed long before `END_MS`.
    """
    rng = random.Random(4)
    for i in range(n_requests):
        ts = 1_000 + 25 * i
        told: list[Impression | Action] = [*shown(i, ts + rng.randrange(300))]
        if i % 7 == 0:
            told.append(shown(max(0, i - rng.choice([5, 300])), ts)[-1])
        for _ in range(rng.randrange(3)):
            other = max(0, i - rng.choice([0, 0, 1, 5, 150, 400]))
            item = rng.choice([str(other % 50), "77", "88"])
            event = rng.choice(EVENTS[int(item) % 2])
            event_id = str(rng.randrange(3 * n_requests // 2))
            told.append(action(f"r{other}", item, ts, event=event, event_id=event_id))
        if i % 100 == 0:
            told.append(action(f"nobody-{i}", "1", ts))
        for one in told:
            yield topic_of(one), one.request_id, messages.encode(one)
        if i % 100 == 0:
            yield ACTIONS, f"bad-{i}", b"bad"
