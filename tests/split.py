"""A deployment whose roles are processes of their own, on Kafka: service, joiner, trainer."""

import re
import subprocess
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from freshrank import config, examples
from freshrank.clock import SystemClock
from freshrank.dev.servers import Server, free_ports
from freshrank.logs import cluster, open_log
from freshrank.transport.base import EXAMPLES, NewRecord, TopicPartition
from freshrank.transport.kafka_transactions import Transactions
from tests.integration.transport.log_checks import read_all
from tests.programs import FRESHRANK, ended
from tests.roles import Api, role
from tests.unit.service.support import until

# A trainer that starts on two busy cores.
_LEARNED_TIMEOUT_S: Final = 90.0
# Asked every few milliseconds the service takes the core that the trainer starts on.
_LOOK_S: Final = 0.05
_CONFIG: Final = """
service: {{data_dir: {directory}/data}}
features:
  - {{name: user_id, type: id, scope: user, dim: 4}}
  - {{name: item_id, type: id, scope: item, dim: 4}}
tasks: [{{name: click, event: click}}]
join: {{window: 1s, max_out_of_order: 100ms}}
log: {{kind: kafka, brokers: ['{broker}'], prefix: '{prefix}.', partitions: 1, replication: 1}}
sync: {{sparse_every: 100ms, dense_every: 100ms}}
checkpoint: {{every: 300ms}}
metrics: {{port: 0}}
"""


class Split:
    """The three processes, and visits to them.

    Attributes:
        api: Of the service.
        config: The file that all of them read.
        trainer: Its process.
        n_shown: Items that were shown; each becomes one example.
        statuses: Of every request of a visit.
    """

    ITEMS: Final = [f"i{n}" for n in range(10)]

    def __init__(self, directory: Path, broker: Server, stack: ExitStack) -> None:
        self.config = directory / "freshrank.yaml"
        self.n_shown = 0
        self.statuses: list[int] = []
        self._directory = directory
        self._trainers = stack.enter_context(ExitStack())
        prefix = directory.name[-40:]
        self.config.write_text(
            _CONFIG.format(directory=directory, broker=broker.address, prefix=prefix)
        )
        ended(FRESHRANK, "topics", "create", "-c", self.config)
        self.start_trainer()
        stack.enter_context(self._role("join"))
        [port] = free_ports(1)
        service = stack.enter_context(self._role("serve", "--port", str(port)))
        self.api = stack.enter_context(closing(Api(port)))
        self.api.until_ready(service, self._log("serve"))

    def start_trainer(self) -> None:
        """Start one, which goes on where the last one was."""
        self._log("train").unlink(missing_ok=True)  # it names a port that was the last one's
        self.trainer = self._trainers.enter_context(self._role("train"))

    def visit(self) -> str:
        """Somebody sees ten items and clicks one; the receipt."""
        one = {"request_id": f"r{self.n_shown}", "user": f"u{self.n_shown % 7}"}
        shown = self.api.ask("/v1/rank", {**one, "candidates": [{"item": i} for i in self.ITEMS]})
        click = self.api.ask("/v1/feedback", {**one, "item": self.ITEMS[0], "event": "click"})
        self.statuses += [shown.status_code, click.status_code]
        self.n_shown += len(self.ITEMS)
        return str(click.json()["receipt"])

    def scores(self) -> dict[str, float]:
        """What the service says of each item now."""
        items = [{"item": one} for one in self.ITEMS]
        body = {"user": "u0", "candidates": items, "log_impression": False}
        answer = self.api.ask("/v1/rank", body).json()
        return {one["item"]: one["score"] for one in answer["items"]}

    def n_served(self) -> int:
        """Examples that the parameters served were learned from."""
        return int(self.api.ask("/v1/models/main").json()["examples"])

    def until_served(self, n_examples: int) -> None:
        """Return once so many examples are in the parameters served."""
        try:
            until(
                lambda: self.n_served() >= n_examples,
                timeout_s=_LEARNED_TIMEOUT_S,
                every_s=_LOOK_S,
            )
        except AssertionError:
            raise AssertionError(f"{self.n_served()} of {n_examples}\n{self._said()}") from None

    def until_refused(self, n_rows: float) -> None:
        """Return once just so many rows are dead letters of the trainer."""
        until(
            lambda: self.trainer_metric("dead_letters_total") == n_rows,
            timeout_s=_LEARNED_TIMEOUT_S,
            every_s=_LOOK_S,
        )

    def poison(self) -> int:
        """Write examples that nothing can be learned from into the log; how many.

        Finite, but exploding, weights; labels that are no numbers.
        """
        settings = config.load(self.config, environ={})
        with closing(open_log(settings, SystemClock(), writable=False)) as log:
            values = [one.value for one in read_all(log, EXAMPLES, 0)]
        batches = (examples.decode(one, ["click"], ["user_id", "item_id"]) for one in values)
        batch = next(batch for batch in batches if batch.n_rows)
        spoiled = (
            replace(batch, weights=np.full_like(batch.weights, 1e30)),
            replace(batch, labels=np.full_like(batch.labels, np.nan)),
        )
        records = [NewRecord(b"", examples.encode(one, ["click"])) for one in spoiled]
        with closing(Transactions(cluster(settings.log), "somebody-else")) as writer:
            writer.commit({TopicPartition(EXAMPLES, 0): records}, group="nobody", offsets={})
        return len(spoiled) * batch.n_rows

    def trainer_metric(self, name: str) -> float:
        """The sum over a metric's series; 0 while the trainer does not tell it."""
        told = re.search(r'metrics on ([^\s"]+)', self._log("train").read_text())
        text = httpx.get(told[1], timeout=30.0).raise_for_status().text if told else ""
        found = re.findall(rf"^freshrank_{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def _said(self) -> str:
        paths = sorted(self._directory.glob("*.log"))
        return "\n".join(f"{p.name}: {p.read_text('utf-8', 'replace')[-2_000:]}" for p in paths)

    def _role(self, name: str, *options: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return role(name, "-c", str(self.config), *options, log=self._log(name))

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"
