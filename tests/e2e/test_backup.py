"""A deployment is backed up while it runs, loses its disk, and is there again."""

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from freshrank import config
from freshrank.backup.take import take
from freshrank.clock import SystemClock
from freshrank.dev.servers import free_ports
from freshrank.messages import Impression, decode
from freshrank.transport.base import EXAMPLES, IMPRESSIONS
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.local import LocalLog
from tests.integration.transport.log_checks import eventually
from tests.meanwhile import meanwhile
from tests.programs import as_json
from tests.roles import Api, role
from trainer import frame_parts

CONFIG = """
features:
  - {{name: user_id, type: id, scope: user, dim: 4}}
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks: [{{name: click, event: click}}]
service: {{data_dir: {directory}}}
join: {{window: 1s, max_out_of_order: 100ms}}
# The dense net goes out with every frame: what a frame has learned, it has whole.
sync: {{sparse_every: 100ms, dense_every: 1ms}}
checkpoint: {{every: 300ms}}
"""
ITEMS = [f"i{n}" for n in range(10)]


class Shop:
    """A configuration, and services that run it one after another."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.config = directory / "freshrank.yaml"
        self.config.write_text(CONFIG.format(directory=self.data))
        self._log = directory / "serve.log"

    @contextmanager
    def serving(self, *options: str) -> Iterator[Api]:
        [port] = free_ports(1)
        arguments = ("serve", "-c", str(self.config), "--port", str(port), *options)
        with ExitStack() as stack:
            process = stack.enter_context(role(*arguments, log=self._log))
            api = stack.enter_context(closing(Api(port)))
            api.until_ready(process, self._log)
            yield api


def teach(api: Api, name: str, clicked: str, *, n: int = 10) -> None:
    """Show all items to some users, each of whom clicks one."""
    for i in range(n):
        request = {"request_id": f"{name}-{i}", "user": f"u{i}"}
        shown = {**request, "candidates": [{"item": one} for one in ITEMS]}
        assert api.ask("/v1/rank", shown).status_code == 200
        click = {**request, "item": clicked, "event": "click"}
        assert api.ask("/v1/feedback", click).status_code == 202


def answer(api: Api) -> Any:
    body = {"user": "u1", "candidates": [{"item": i} for i in ITEMS], "log_impression": False}
    return api.ask("/v1/rank", body).json()


def totals(api: Api) -> dict[str, int]:
    found: dict[str, int] = api.ask("/v1/stats").json()["accounting"]
    return found


def n_shown(backup: Path) -> int:
    """Items of the impressions in a backup's log."""
    with closing(LocalLog(backup / "log", clock=SystemClock(), writable=False)) as log:
        records = log.read(IMPRESSIONS, 0, 0, n_max=100_000)
    found = [decode(one.value) for one in records]  # ticks among them
    return sum(len(one.items) for one in found if isinstance(one, Impression))


def load(api: Api, n: int) -> None:
    """Requests and clicks, always of one item: what changes by the second may be held back."""
    teach(api, f"load-{n}", ITEMS[3])


def test_a_deployment_comes_back_from_backups_taken_while_it_runs(tmp_path: Path) -> None:
    shop, busy, still = Shop(tmp_path), tmp_path / "busy", tmp_path / "still"
    settings = config.load(shop.config, environ={})
    before: Any = None
    with shop.serving() as api:
        with meanwhile(functools.partial(load, api)):
            eventually(lambda: totals(api).get("examples_learned", 0) > 100)
            as_json("backup", str(busy), "-c", str(shop.config))

        def is_at_rest() -> bool:
            """Checkpoint and newest frame have all, and that is served before and after."""
            nonlocal before
            shutil.rmtree(still, ignore_errors=True)
            before = answer(api)
            taken = take(settings, shop.config.read_bytes(), still)
            is_saved = taken.learned.get(f"{EXAMPLES}:0") == taken.log[f"{EXAMPLES}:0"][1]
            found = totals(api)
            is_over = found["examples_learned"] == n_shown(still)
            newest = frame_parts.newest(
                DirectoryChannel(still / "parameters", clock=SystemClock()), dense_version=0
            )
            is_served = (
                newest is not None
                and newest.examples == found["examples_learned"]
                and newest.seq == before["freshness"]["sparse_seq"]
            )
            is_same = bool(answer(api)["model"] == before["model"])
            return is_saved and is_over and is_served and is_same

        eventually(is_at_rest)
    shutil.rmtree(shop.data)  # and with it what the end of the process has saved

    assert as_json("restore", str(still), "-c", str(shop.config))["before"] is None
    head = DirectoryChannel(shop.data / "parameters", clock=SystemClock()).head()
    assert head is not None
    assert head.seq == before["freshness"]["sparse_seq"]
    n_rows = n_shown(still)
    with shop.serving() as api:
        # The restored frames are served at once, one after another; then the trainer's own base.
        eventually(lambda: api.ask("/v1/models/main").json()["epoch"] == head.epoch + 1)
        assert answer(api)["items"] == before["items"]
        assert totals(api)["examples_learned"] == n_rows  # none once more
        teach(api, "after", "i5")
        eventually(lambda: totals(api)["examples_learned"] == n_rows + 10 * len(ITEMS))

    as_json("backup", "--verify", str(busy))
    restored = as_json("restore", str(busy), "-c", str(shop.config), "--force")
    assert Path(restored["before"]).is_dir()
    as_json("train", "-c", str(shop.config), "--until-lag", "0")
    [*_, newest] = sorted((shop.data / "trainer").glob("checkpoint-*"))
    counts = json.loads((newest / "state.json").read_bytes())["counts"]
    assert counts["examples_learned"] == n_shown(busy) < n_rows
