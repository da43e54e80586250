"""What a replica refuses by labelled rows, what it serves meanwhile, and how it goes on."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from freshrank import canaries, frames
from freshrank.canaries import Canary
from freshrank.features import Encoded, SlotIds
from freshrank.frames import Frame, TableRows
from freshrank.metrics import Metrics
from freshrank.verdicts import DOUBT_S
from service.dense import DenseNet
from service.excerpt import Excerpt
from service.model import Bags, Model, ModelShape
from service.replica import RETRY_EVERY_S, Replica
from service.signal import Signal
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    DIM,
    World,
    linear_net,
    make_settings,
    service_of,
    table_rows,
    until,
)

WIDTH = DIM + 1
N_ROWS = 1_000
RATES = (0.08, 0.02)  # of clicks, of items 1 and 2


def logit(p: float) -> float:
    """What a row of item holds so that `linear_net` answers p: all its values are added up."""
    return float(np.log(p / (1 - p))) / WIDTH


def items(one: float, two: float) -> dict[str, TableRows]:
    """Rows by which items 1 and 2 are clicked with these probabilities."""
    return {"item_id": table_rows({1: [logit(one)] * WIDTH, 2: [logit(two)] * WIDTH})}


def labelled(world: World, mean: tuple[float, float] | None = None) -> bytes:
    """Rows of items 1 and 2 in turn, as often clicked as `RATES` say."""
    ids = np.arange(N_ROWS, dtype=np.uint64) % 2 + 1
    within = np.arange(N_ROWS) // 2 / (N_ROWS / 2)
    labels = np.zeros((N_ROWS, 2), np.float32)
    labels[:, 0] = within < np.where(ids == 1, *RATES)
    empty = SlotIds(np.empty(0, np.uint64), np.zeros(N_ROWS + 1, np.int64))
    slots = dict.fromkeys((slot.name for slot in world.encoder.slots), empty)
    slots["item_id"] = SlotIds(ids, np.arange(N_ROWS + 1))
    dense = np.zeros((N_ROWS, len(world.encoder.dense_names)), np.float32)
    scores = None if mean is None else np.where(ids == 1, *mean)[:, np.newaxis].repeat(2, axis=1)
    rows = labels, np.ones((N_ROWS, 2), np.float32), Encoded(N_ROWS, slots, dense)
    return canaries.encode(Canary(*rows, scores))


def publish(
    world: World,
    kind: str,
    tables: dict[str, TableRows],
    *,
    net: bytes | None = None,
    mean: tuple[float, float] | None = None,
) -> None:
    """A frame with a dense net and the labelled rows."""
    seq = world.seq + 1 if kind == "delta" else max(world.seq, 0)
    dense = net or linear_net(world.settings)
    info = world.info("delta" if kind == "delta" else "base", seq, dense_version=seq)
    data = frames.encode(Frame(info, tables, dense, labelled(world, mean)))
    if kind == "delta":
        world.channel.publish_delta(world.epoch, seq, data)
    else:
        world.channel.publish_base(world.epoch, seq, data)
    world.seq = seq


def opened(world: World, tables: dict[str, TableRows]) -> None:
    """A base of the next epoch."""
    world.epoch = world.channel.open_epoch()
    publish(world, "base", tables)


def make_replica(world: World) -> Replica:
    metrics = Metrics(world.registry)
    return Replica(world.settings, world.encoder, world.channel, world.clock, metrics, Signal())


def settle(replica: Replica) -> None:
    while replica.step(0.0):
        pass


def served(replica: Replica) -> tuple[int, int, list[float]]:
    """Epoch and seq, and the first value of items 1 and 2."""
    model = replica.model
    assert model is not None
    rows, _ = model.tables["item_id"].lookup(np.array([1, 2], np.uint64))
    return model.current.info.epoch, model.current.info.seq, rows[:, 0].tolist()


def huge(world: World) -> bytes:
    """A net that is finite on zeros and on nothing else."""
    n = len(world.encoder.slots) * WIDTH
    return linear_net(world.settings, np.full((n, 2), 3e38, np.float32))


POISON: list[tuple[str, dict[str, TableRows]]] = [
    ("calibration", items(0.25, 0.06)),
    ("logloss", items(0.7, 0.7)),
    ("logloss", {"item_id": table_rows({}, removed=[1, 2])}),
    ("norm", {"user_id": table_rows({9: [50.0] * WIDTH})}),
]


@pytest.mark.parametrize(("reason", "tables"), POISON)
def test_a_sick_delta_is_refused_whole_and_a_base_heals(
    make_world: MakeWorld, reason: str, tables: dict[str, TableRows]
) -> None:
    world = make_world()
    replica = make_replica(world)
    opened(world, {**items(*RATES), "user_id": table_rows({9: [0.0] * WIDTH})})
    settle(replica)
    good = served(replica)

    publish(world, "delta", tables)
    settle(replica)
    assert served(replica) == good
    assert replica.refusals == {reason: 1}
    assert replica.is_held
    assert world.channel.wanted_base()
    assert world.registry.get_sample_value(
        "freshrank_sync_batches_total", {"kind": "delta", "result": reason}
    ) == 1.0  # fmt: skip

    publish(world, "delta", items(0.09, 0.02))  # follows what was refused
    publish(world, "base", items(0.09, 0.02))
    settle(replica)
    assert served(replica)[:2] == (1, 2)
    assert served(replica)[2] == pytest.approx([logit(0.09), logit(0.02)])
    assert not replica.is_held
    assert not replica.is_behind


def test_scores_that_are_not_finite_are_refused_by_the_first_base_too(world: World) -> None:
    replica = make_replica(world)
    world.epoch = world.channel.open_epoch()
    publish(world, "base", items(*RATES), net=huge(world))
    settle(replica)
    assert replica.model is None
    assert replica.refusals == {"nonfinite": 1}
    publish(world, "delta", items(*RATES))
    publish(world, "base", items(*RATES))
    settle(replica)
    assert served(replica)[:2] == (1, 1)


def test_the_first_base_is_not_compared_and_what_gets_better_serves(world: World) -> None:
    replica = make_replica(world)
    opened(world, items(0.7, 0.7))
    publish(world, "delta", items(0.3, 0.1))
    publish(world, "delta", items(*RATES))
    world.delta(items(0.7, 0.7))  # carries no dense net, so no rows: the trainer has judged it
    settle(replica)
    assert served(replica)[:2] == (1, 3)
    assert replica.refusals == {}


def test_a_sick_base_is_read_once_a_minute_and_followed_by_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = make_replica(world)
    opened(world, items(*RATES))
    settle(replica)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(world.channel, "request_base", lambda *at: asked.append(at))
    world.seq += 1
    opened(world, items(0.7, 0.7))
    for _ in range(10):
        world.delta(items(0.7, 0.7))
        settle(replica)
    assert served(replica)[:2] == (1, 0)
    assert replica.refusals == {"logloss": 1}
    assert asked == [(2, 1)]

    world.clock.advance(ms=round(RETRY_EVERY_S * 1_000))
    settle(replica)
    assert replica.refusals == {"logloss": 2}
    assert asked == [(2, 1)] * 2
    publish(world, "base", items(*RATES))
    world.delta()
    settle(replica)
    assert served(replica)[:2] == (2, world.seq)


def test_a_base_without_rows_is_taken_as_it_is_as_after_a_roll_back(world: World) -> None:
    replica = make_replica(world)
    opened(world, items(*RATES))
    settle(replica)
    world.base(items(0.7, 0.7), seq=1)
    settle(replica)
    assert served(replica)[:2] == (2, 1)
    assert not replica.is_held


@pytest.mark.parametrize(("mean", "seq"), [(RATES, 0), ((0.26, 0.07), 1)])
def test_a_version_no_worse_than_those_before_it_were_serves_as_the_trainer_let_it(
    world: World, mean: tuple[float, float], seq: int
) -> None:
    replica = make_replica(world)
    opened(world, items(*RATES))
    publish(world, "delta", items(0.25, 0.06), mean=mean)
    settle(replica)
    assert served(replica)[1] == seq
    assert replica.refusals == ({"calibration": 1} if seq == 0 else {})


def test_after_a_long_hold_the_world_is_taken_to_have_changed(make_world: MakeWorld) -> None:
    world = make_world(settings=make_settings(guard={"hold": "10m"}))
    replica = make_replica(world)
    opened(world, items(*RATES))
    publish(world, "delta", items(0.7, 0.7))
    for _ in range(10):
        settle(replica)
        assert served(replica)[1] == 0
        world.clock.advance(ms=60_000)
    world.clock.advance(ms=60_000)  # and nothing new came
    settle(replica)
    assert served(replica)[1] == 1
    assert not replica.is_held


def test_what_is_in_doubt_is_refused_for_a_minute(world: World) -> None:
    replica = make_replica(world)
    opened(world, items(*RATES))
    settle(replica)
    publish(world, "delta", items(0.11, 0.11))  # of no use, and twice too much
    settle(replica)
    assert replica.refusals == {"calibration": 1}
    publish(world, "base", items(0.11, 0.11))
    settle(replica)
    assert served(replica)[1] == 0
    world.clock.advance(ms=round(DOUBT_S * 1_000))
    settle(replica)
    assert served(replica)[2] == pytest.approx([logit(0.11)] * 2)
    assert not replica.is_held


def test_rows_that_are_no_rows_are_refused(world: World) -> None:
    replica = make_replica(world)
    opened(world, items(*RATES))
    dense = linear_net(world.settings)
    info = world.info("delta", 1, dense_version=1)
    world.channel.publish_delta(1, 1, frames.encode(Frame(info, {}, dense, b"\x80")))
    settle(replica)
    assert replica.refusals == {"malformed": 1}
    assert served(replica)[1] == 0


def test_answers_and_readiness_tell_of_it(world: World, make_client: MakeClient) -> None:
    opened(world, items(*RATES))
    client = make_client(world)
    publish(world, "delta", items(0.7, 0.7))
    until(lambda: service_of(client).replica.is_held)
    answer = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]}).json()
    assert answer["degraded"] == ["held_back"]
    assert answer["model"]["version"] == "d0-s0"
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["degraded"] == ["held_back"]
    assert client.get("/v1/stats").json()["refused_frames"] == {"logloss": 1}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_an_excerpt_answers_as_the_model_before_and_after_a_frame(world: World, dtype: str) -> None:
    rng = np.random.default_rng(5)
    shape = ModelShape.of(world.encoder, n_tasks=2, dtype=dtype)
    net = shape.open_net(linear_net(world.settings))

    def some(n: int) -> npt.NDArray[np.uint64]:
        return np.sort(rng.choice(400, n, replace=False)).astype(np.uint64)

    def frame(kind: str, seq: int, dense: bytes | None) -> Frame:
        tables = {}
        for name in shape.tables:
            keys, gone = some(120), some(60)
            rows = rng.normal(size=(len(keys), WIDTH)).astype(np.float32)
            gone = gone[~np.isin(gone, keys)] if kind == "delta" else gone[:0]
            tables[name] = TableRows(keys, rows, gone)
        return Frame(world.info(kind, seq), tables, dense)

    model = Model(frame("base", 0, linear_net(world.settings)), shape)
    for seq in range(1, 9):
        delta = frame("delta", seq, None)
        ids = {name: some(int(rng.integers(1, 300))) for name in shape.tables}
        bags = _bags(world, ids, rng)
        trial = Excerpt(model, ids)
        _assert_reads_alike(trial, model, bags)
        trial.apply(delta.tables, net)
        assert model.apply(delta) is None
        _assert_reads_alike(trial, model, bags)


def _bags(world: World, ids: dict[str, Any], rng: np.random.Generator) -> Bags:
    bags = {}
    for slot in world.encoder.slots:
        n_ids = rng.integers(4, size=50)
        offsets = np.concatenate([[0], np.cumsum(n_ids)]).astype(np.int64)
        bags[slot.name] = (slot.table, rng.choice(ids[slot.table], offsets[-1]), offsets, "mean")
    return bags


def _assert_reads_alike(one: Excerpt, other: Model, bags: Bags) -> None:
    reading, expected = one.read(bags), other.read(bags)
    for slot in bags:
        np.testing.assert_array_equal(reading.n_found[slot], expected.n_found[slot])
        np.testing.assert_array_equal(reading.rows[slot], expected.rows[slot])


def test_judging_changes_nothing_and_sees_the_new_net(world: World) -> None:
    shape = ModelShape.of(world.encoder, n_tasks=2)
    base = Frame(world.info("base", 0), items(*RATES), linear_net(world.settings))
    model = Model(base, shape)
    seen: list[DenseNet] = []
    delta = Frame(world.info("delta", 1), items(0.5, 0.5), linear_net(world.settings))
    old = model.current.net

    def judge(asked: Model, frame: Frame, net: DenseNet) -> None:
        assert asked is model
        assert frame is delta
        assert model.current.info.seq == 0
        seen.append(net)

    assert model.apply(delta, judge) is None
    assert seen == [model.current.net]
    assert seen != [old]
