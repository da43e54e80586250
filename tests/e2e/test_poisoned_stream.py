"""Poison through the whole loop: it is held back, metrics tell, and scores stay as they were."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshrank import examples
from freshrank.clock import ManualClock
from freshrank.config import loads
from freshrank.embedded import Embedded
from freshrank.transport.base import EXAMPLES, NewRecord
from tests.unit.service.support import TestClient, service_of, until

NOW_MS = 1_800_000_000_000
CONFIG = """
features:
  - {name: user_id, type: id, scope: user, dim: 4}
  - {name: item_id, type: id, scope: item, dim: 4}
tasks: [{name: click, event: click}]
join: {window: 4s, max_out_of_order: 0s}
sync: {sparse_every: 1s, dense_every: 1s}
trainer: {batching: adaptive}
model: {hidden: [8]}
log: {partitions: 1, fsync: never}
"""
EXPLODING = """
optimizer: {sparse: {kind: adagrad, lr: 1000.0}, dense: {lr: 1000.0}}
"""
ITEMS = [f"i{n}" for n in range(20)]
PROBE = {"user": "u1", "candidates": [{"item": i} for i in ITEMS], "log_impression": False}
N_REQUESTS = 10  # a second, of all items: 200 examples


class Shop:
    """The embedded loop, its time and its steps in the test's hands; its audience too."""

    def __init__(self, directory: Path, clock: ManualClock, more: str = "") -> None:
        environ = {"FRESHRANK__SERVICE__DATA_DIR": str(directory)}
        settings = loads(CONFIG + more, name="test.yaml", environ=environ)
        self.clock = clock
        self.rng = np.random.default_rng(3)
        self._stack = ExitStack()
        self.loop = Embedded(settings, learn=True, clock=clock)
        self._stack.callback(self.loop.close)
        assert self.loop.trainer is not None
        self.trainer = self.loop.trainer
        self.trainer.start()
        self.client = self._stack.enter_context(TestClient(self.loop.app))
        self.follow()

    def close(self) -> None:
        self._stack.close()

    def second(self, *, flipped: bool = False) -> None:
        """Items with an odd number are clicked four times as often, or as seldom as others are."""
        self.clock.advance(ms=1_000)
        clicks = []
        for _ in range(N_REQUESTS):
            user = f"u{self.rng.integers(20)}"
            body = {"user": user, "candidates": PROBE["candidates"], "top_k": len(ITEMS)}
            answer = self.client.post("/v1/rank", json=body).json()
            for item in ITEMS:
                rate = 0.16 if int(item[1:]) % 2 else 0.04
                if (self.rng.random() < rate) != flipped:
                    identity = {"request_id": answer["request_id"], "user": user}
                    clicks.append({"kind": "feedback", "event": "click", "item": item, **identity})
        taken = self.client.post("/v1/events", json={"events": clicks})
        assert taken.status_code == 202, taken.text
        self.learn()

    def learn(self) -> None:
        """What stands in the log goes through joiner, trainer, channel and replica."""
        for joiner in self.loop.joiners:
            while joiner.step(0.0):
                pass
        while self.trainer.step(0.0):
            pass
        self.follow()

    def follow(self) -> None:
        """Until the replica has taken or refused the newest frame."""
        replica, head = service_of(self.client).replica, self.loop.channel.head()
        assert head is not None

        def is_there() -> bool:
            info = replica.model.current.info if replica.model else None
            is_at = (info and (info.epoch, info.seq)) == (head.epoch, head.seq)
            return is_at or replica._stuck_at == head

        until(is_there, timeout_s=30.0)

    def scores(self) -> tuple[str, dict[str, float]]:
        """The version that answers, and what it says of each item."""
        answer = self.client.post("/v1/rank", json=PROBE).json()
        return answer["model"]["version"], {one["item"]: one["score"] for one in answer["items"]}

    def series(self, name: str) -> dict[str, float]:
        """Values of a metric by labels, as text."""
        text = self.client.get("/metrics").text
        found = re.findall(rf"^freshrank_{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert found, name
        return {labels: float(value) for labels, value in found}

    def metric(self, name: str) -> float:
        """The sum over a metric's series."""
        return sum(self.series(name).values())

    def refused(self) -> float:
        """Versions that the trainer held back, and frames that the replica refused."""
        return self.metric("sync_refused_total") + sum(
            n for name, n in self.series("sync_batches_total").items() if "applied" not in name
        )

    def degraded(self) -> list[str]:
        answer: dict[str, Any] = self.client.get("/health/ready").json()
        return list(answer["degraded"])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The data of a loop that has learned for forty seconds, and when it ended."""
    directory, clock = tmp_path_factory.mktemp("learned") / "data", ManualClock(now_ms=NOW_MS)
    shop = Shop(directory, clock)
    for _ in range(40):
        shop.second()
    assert shop.metric("sync_refused_total") == 0
    assert shop.degraded() == []
    shop.close()
    return directory, clock.now_ms()


MakeShop = Callable[..., Shop]


@pytest.fixture
def make_shop(tmp_path: Path, learned: tuple[Path, int]) -> Iterator[MakeShop]:
    """Goes on from there."""
    shutil.copytree(learned[0], tmp_path / "data")
    made: list[Shop] = []

    def make(more: str = "") -> Shop:
        made.append(Shop(tmp_path / "data", ManualClock(now_ms=learned[1]), more))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


def assert_held(shop: Shop, served: tuple[str, dict[str, float]]) -> None:
    assert shop.scores() == served
    assert shop.degraded() == ["held_back"]


def test_flipped_labels_are_held_back(make_shop: MakeShop) -> None:
    shop = make_shop()
    _, good = shop.scores()
    for _ in range(12):
        shop.second(flipped=True)
        if shop.degraded():
            break
    served = shop.scores()
    # What got through before the labels were told to be wrong has spoiled no score.
    assert max(served[1][item] / good[item] for item in ITEMS) < 3
    n_refused = shop.refused()
    assert n_refused >= 1
    for _ in range(5):
        shop.second(flipped=True)
        assert_held(shop, served)
    assert shop.refused() >= n_refused + 5


def test_an_exploding_learning_rate_is_held_back(make_shop: MakeShop) -> None:
    mad = make_shop(EXPLODING)
    served = mad.scores()  # what was saved: nothing was learned since
    n_learned = mad.metric("trainer_examples_total")
    for _ in range(5):
        mad.second()
        assert_held(mad, served)
    assert mad.metric("trainer_examples_total") > n_learned
    assert mad.metric("sync_held_back") == 1
    assert mad.metric("sync_refused_total") >= 5


def test_labels_that_are_no_numbers_are_not_learned_and_the_rest_is(make_shop: MakeShop) -> None:
    shop = make_shop()
    _, good = shop.scores()
    slots = [slot.name for slot in shop.loop.encoder.slots]
    batches = (
        examples.decode(record.value, ["click"], slots)
        for record in shop.loop.log.read(EXAMPLES, 0, 0)
    )
    batch = next(batch for batch in batches if batch.n_rows)
    poison = replace(batch, labels=np.full_like(batch.labels, np.nan))
    shop.loop.log.append(
        EXAMPLES, [NewRecord(b"", examples.encode(poison, ["click"]))], partition=0
    )
    n_letters = shop.metric("dead_letters_total")
    for _ in range(3):
        shop.second()
    assert shop.metric("dead_letters_total") == n_letters + poison.n_rows
    assert shop.metric("sync_held_back") == 0
    assert shop.degraded() == []
    _, later = shop.scores()
    assert np.isfinite(list(later.values())).all()
    assert max(later[item] / good[item] for item in ITEMS) < 2
    assert later != good
