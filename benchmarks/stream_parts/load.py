"""What an audience does to the loop, at times set beforehand: an open loop, each in a process.

A loop that falls behind is not spared: whoever asks late waits from the time it was due.
"""

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import Final

import confluent_kafka
import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.joiner import CONTEXT, GRADES, KINDS, N_ITEMS, N_USERS, events, number_of
from freshrank import messages
from freshrank.messages import Action, Impression, Value
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from freshrank.transport.kafka_cluster import Cluster

# How often records are appended: as a service does that takes events from many.
_APPEND_EVERY_S: Final = 0.02
_CONNECTIONS: Final = 8
# From one playing to the next; ids so far apart are of one kind, and of one grade (`appeal`).
_NEXT_USERS: Final = KINDS * 1_009
_NEXT_ITEMS: Final = KINDS * len(GRADES) * 37
_NEXT_CONTEXT: Final = 7  # all values of each come by turns
N_CANDIDATES, TOP_K, N_BODIES = 200, 5, 400

F64 = npt.NDArray[np.float64]
Due = tuple[float, str, Impression | Action, int]  # seconds, topic, what, cycle


def produce(cluster: Cluster, per_second: float, seconds: float, first_cycle: int = 0) -> float:
    """Append impressions and as many actions, `per_second` of both together.

    An impression is of five items, an action comes 6 s after it on average; before the first ones
    come there are fewer records. They are played again and again, each time with other users, items
    and contexts of the same tastes: what came again word for word would be learned by heart, and
    the guard would hold that model back, which foresees other rows worse than their share does.
    librdkafka sends them, for less CPU than kafka-python takes: what is left is the loop's.

    Args:
        cluster: Where to.
        per_second: Records.
        seconds: For how long.
        first_cycle: No load before had this cycle or a later one: ids that come again are dropped.

    Returns:
        The most seconds that a record was sent after its time.
    """
    schedule = _schedule(2 / per_second)
    sender = confluent_kafka.Producer(
        {
            "bootstrap.servers": ",".join(cluster.brokers),
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
        }
    )
    names = {topic: cluster.name(topic) for topic in (IMPRESSIONS, ACTIONS)}
    due_s, topic, one, cycle = next(schedule)
    began_s, latest_s = time.time(), 0.0
    while (now_s := time.time() - began_s) < seconds:
        latest_s = max(latest_s, now_s - due_s)
        while due_s <= now_s:
            record = _record(began_s, due_s, one, first_cycle + cycle)
            sender.produce(names[topic], record.value, record.key, 0, on_delivery=_delivered)
            due_s, topic, one, cycle = next(schedule)
        sender.poll(0)
        while len(sender) > per_second:  # a second of load is not acknowledged: that is late
            sender.poll(_APPEND_EVERY_S)
        time.sleep(max(0.0, began_s + now_s + _APPEND_EVERY_S - time.time()))
    sender.flush()
    return latest_s


def _delivered(error: object, _message: object) -> None:
    if error is not None:
        raise SystemExit(f"a record of the load is lost: {error}")


def _schedule(request_every_s: float) -> Iterator[Due]:
    shown, acted = events()
    asked = {one.request_id: (i * request_every_s, one.ts_ms) for i, one in enumerate(shown)}
    told: list[tuple[float, str, Impression | Action]] = []
    for topic, some in ((IMPRESSIONS, shown), (ACTIONS, acted)):
        for one in some:
            asked_s, asked_ms = asked[one.request_id]
            told.append((asked_s + (one.ts_ms - asked_ms) / 1_000, topic, one))
    # What comes after the last impression comes among those of the next cycle.
    lasts_s = len(shown) * request_every_s
    order = sorted(
        (due_s % lasts_s, int(due_s // lasts_s), i) for i, (due_s, *_) in enumerate(told)
    )
    for cycle in count():
        for due_s, n_later, i in order:
            if cycle >= n_later:
                yield due_s + cycle * lasts_s, *told[i][1:], cycle - n_later


def _record(began_s: float, due_s: float, one: Impression | Action, cycle: int) -> NewRecord:
    ts_ms = round((began_s + due_s) * 1_000)
    request_id = f"{one.request_id}-{cycle}"
    user = (number_of(one.user) + cycle * _NEXT_USERS) % N_USERS
    now = msgspec.structs.replace(
        one,
        event_id=f"{one.event_id}-{cycle}",
        request_id=request_id,
        ts_ms=ts_ms,
        received_at_ms=ts_ms,
        user=f"user-{user}",
        **(
            {"items": [_item(item, cycle) for item in one.items], "shared": _shared(one, cycle)}
            if isinstance(one, Impression)
            else {"item": _item(one.item, cycle)}
        ),
    )
    return NewRecord(request_id.encode(), messages.encode(now))


def _item(item: str, cycle: int) -> str:
    return str((int(item) + cycle * _NEXT_ITEMS) % N_ITEMS)


def _shared(one: Impression, cycle: int) -> dict[str, Value]:
    def moved(name: str, value: Value) -> Value:
        if isinstance(value, list):
            return [_item(str(item), cycle) for item in value]
        number = int(str(value).removeprefix(f"{name}-"))
        return f"{name}-{(number + cycle * _NEXT_CONTEXT) % CONTEXT[name]}"

    return {name: moved(name, value) for name, value in one.shared.items()}


def ask(port: int, per_second: float, warm_s: float, seconds: float) -> F64:
    """Have items ranked, so many times a second.

    Returns:
        `float64[n]`: milliseconds from when each request was due to its answer, without the first
        `warm_s` seconds.
    """
    bodies = _bodies()
    began_s, numbers = time.perf_counter(), iter(range(round((warm_s + seconds) * per_second)))
    lock, took_ms = threading.Lock(), np.zeros(round((warm_s + seconds) * per_second))

    def work() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
            while True:
                with lock:
                    n = next(numbers, None)
                if n is None:
                    return
                due_s = began_s + n / per_second
                time.sleep(max(0.0, due_s - time.perf_counter()))
                headers = {"Content-Type": "application/json"}
                client.request("POST", "/v1/rank", bodies[n % N_BODIES], headers)
                answer = client.getresponse()
                answer.read()
                if answer.status != 200:
                    raise SystemExit(f"rank: status {answer.status}")
                took_ms[n] = (time.perf_counter() - due_s) * 1_000

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for one in [pool.submit(work) for _ in range(_CONNECTIONS)]:
            one.result()
    return took_ms[round(warm_s * per_second) :]


def _bodies() -> list[bytes]:
    rng = np.random.default_rng(3)
    return [
        msgspec.json.encode(
            {
                "user": f"user-{rng.integers(N_USERS)}",
                "context": {name: f"{name}-{rng.integers(n)}" for name, n in CONTEXT.items()},
                "candidates": [{"item": str(i)} for i in rng.choice(N_ITEMS, N_CANDIDATES, False)],
                "top_k": TOP_K,
            }
        )
        for _ in range(N_BODIES)
    ]
