"""A ring of bots pushes one item: it rises, a metric tells, and one command takes it back.

To the guard it looks like any item that is suddenly liked: what was learned before is foreseen as
well as ever. So it passes, and it is an operator who goes back, on all replicas at once.
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from freshrank.dev.servers import Server, free_ports
from tests.programs import as_json
from tests.roles import Api, role
from tests.unit.service.support import until

# Clicks that a busy machine sends behind their window are learned all the same.
CONFIG: Final = """
features:
  - {{name: user_id, type: id, scope: user, dim: 4}}
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks: [{{name: click, event: click}}]
service: {{data_dir: {directory}}}
join: {{window: 3s, allowed_lateness: 60s}}
sync:
  sparse_every: 100ms
  dense_every: 200ms
  channel: {{kind: redis, url: 'redis://{address}/0', prefix: {prefix}}}
checkpoint: {{every: 500ms}}
"""
STILL_S: Final = 5.0  # longer than a window, whose end brings negatives
WAIT_S: Final = 60.0
ITEMS: Final = [f"i{n}" for n in range(20)]
LIKED, PUSHED = "i1", "i7"
N_USERS, N_BOTS, N_WAVES = 10, 40, 5
# The alert QualityDrops: so much below the mean of a day.
AUC_DROP: Final = 0.05


@dataclass(frozen=True)
class Replicas:
    """Two services that share a Redis; the first one learns, and takes events."""

    apis: list[Api]
    urls: list[str]
    config: Path

    def request(self, name: str, users: int, clicked: str) -> None:
        """As many users are shown all items; then each clicks that one."""
        requests = [(f"{name}-{n}", f"{name}-user-{n}") for n in range(users)]
        candidates = [{"item": item} for item in ITEMS]
        for request_id, user in requests:
            body = {"request_id": request_id, "user": user, "candidates": candidates}
            assert self.apis[0].ask("/v1/rank", body).status_code == 200
        clicks = [
            {"kind": "feedback", "request_id": one, "user": user, "item": clicked, "event": "click"}
            for one, user in requests
        ]
        taken = self.apis[0].ask("/v1/events", {"events": clicks}).json()
        path = f"/v1/events/{taken['receipt']}?wait=5s"
        # Longer than a version that is only in doubt is held back.
        until(lambda: self.apis[0].ask(path).json()["state"] == "servable", timeout_s=2 * WAIT_S)

    def scores(self) -> list[dict[str, float]]:
        """What each says of the items to someone who has clicked none."""
        candidates = [{"item": item} for item in ITEMS]
        body = {"user": "somebody", "candidates": candidates, "log_impression": False}
        answers = [api.ask("/v1/rank", body).json()["items"] for api in self.apis]
        return [{one["item"]: one["score"] for one in items} for items in answers]

    def versions(self) -> list[str]:
        return [str(api.ask("/v1/models/main").json()["version"]) for api in self.apis]

    def settle(self) -> None:
        """Until all is learned and both serve it."""
        since_s, before = time.monotonic(), [""]

        def is_still() -> bool:
            nonlocal since_s, before
            if (now := self.versions()) != before:
                since_s, before = time.monotonic(), now
            return len(set(now)) == 1 and time.monotonic() > since_s + STILL_S

        until(is_still, timeout_s=WAIT_S, every_s=0.05)

    def n_learned(self) -> int:
        learned: int = self.apis[0].ask("/v1/stats").json()["accounting"]["rows_learned"]
        return learned

    def auc(self) -> float:
        """Progressive, of the scores that were served."""
        metrics = self.apis[0].ask("/metrics").text
        pattern = r'^freshrank_trainer_progressive_auc\{source="served",.*\} (\S+)$'
        [value] = re.findall(pattern, metrics, re.MULTILINE)
        return float(value)


@pytest.fixture
def replicas(redis_server: Server, tmp_path: Path) -> Iterator[Replicas]:
    with ExitStack() as stack:
        apis: list[Api] = []
        paths, ports = [], free_ports(2)
        for name, port in zip(("learning", "ranking"), ports, strict=True):
            path, log = tmp_path / f"{name}.yaml", tmp_path / f"{name}.log"
            address, prefix = redis_server.address, tmp_path.name[-40:]
            directory = tmp_path / name
            path.write_text(CONFIG.format(directory=directory, address=address, prefix=prefix))
            options = ["--no-learn"] if apis else []
            command = ("serve", "-c", str(path), "--port", str(port), *options)
            process = stack.enter_context(role(*command, log=log))
            apis.append(stack.enter_context(closing(Api(port))))
            apis[-1].until_ready(process, log)
            paths.append(path)
        yield Replicas(apis, [f"http://127.0.0.1:{port}" for port in ports], paths[0])


@pytest.mark.timeout(600)
def test_an_item_that_a_ring_of_bots_pushes_is_taken_back_everywhere_by_one_command(
    replicas: Replicas,
) -> None:
    for n in range(6):
        replicas.request(f"honest-{n}", N_USERS, LIKED)
    replicas.settle()
    good, auc, n_learned = replicas.scores(), replicas.auc(), replicas.n_learned()
    assert good[0] == good[1]
    assert max(good[0], key=good[0].__getitem__) == LIKED
    listed = ("snapshots", "list", "-c", str(replicas.config))
    until(lambda: as_json(*listed)[-1]["rows_learned"] == n_learned, timeout_s=WAIT_S)
    kept = as_json("snapshots", "keep", "before-the-ring", "-c", str(replicas.config))["name"]

    replicas.request("bots", N_BOTS, PUSHED)
    until(lambda: replicas.auc() < auc - AUC_DROP, timeout_s=WAIT_S)
    for n in range(N_WAVES):
        replicas.request(f"bots-{n}", N_BOTS, PUSHED)
    replicas.settle()
    pushed = replicas.scores()
    for before, after in zip(good, pushed, strict=True):
        assert before[PUSHED] < before[LIKED]
        assert max(after, key=after.__getitem__) == PUSHED

    rollback = ("rollback", "--to", kept, "--pause", "--reason", "a ring of bots")
    learning, ranking = replicas.urls
    done = as_json(*rollback, "--wait", str(WAIT_S), "--url", learning, "--service", ranking)
    assert set(replicas.versions()) == {one["version"] for one in done["services"].values()}
    assert replicas.scores() == good
