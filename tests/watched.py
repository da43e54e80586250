"""A small deployment on real Kafka and Redis, under a steady load, and what can befall it."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import httpx

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.dev.redis import redis
from freshrank.dev.servers import HOST, Server, free_ports
from freshrank.logs import open_log
from freshrank.transport.base import ACTIONS, NewRecord
from tests.audience import Audience
from tests.fault.disks import FaultyDisk
from tests.programs import FRESHRANK, ended
from tests.proxy import Proxy
from tests.roles import Api, role

_BODY_BYTES: Final = 1 << 18
_IN_FLIGHT: Final = 8
# Six processes that start together, until the trainer among them has published a base.
_START_TIMEOUT_S: Final = 180.0
# Short times, so that a minute holds what elsewhere an hour holds, and a table that is soon full.
CONFIG: Final = """
service: {{data_dir: {data_dir}}}
features:
  - {{name: user_id, type: id, scope: user, dim: 128}}
  - {{name: item_id, type: id, scope: item, dim: 128}}
  - {{name: tags, type: id_list, scope: item, dim: 128, max_len: 256, max_bytes: 3MiB}}
  - {{name: recent_items, type: recent, event: click, max_len: 5}}
tasks: [{{name: click, event: click}}]
store: {{initial_rows: 1000}}
optimizer: {{sparse: {{lr: 0.3}}}}
join: {{window: 5s, max_out_of_order: 200ms, allowed_lateness: 1s}}
log: {{kind: kafka, brokers: ['{broker}'], prefix: '{prefix}.', partitions: 1, replication: 1}}
state: {{kind: redis, url: 'redis://{redis}/0', prefix: '{prefix}'}}
sync:
  sparse_every: 200ms
  dense_every: 1s
  channel: {{kind: redis, url: 'redis://{redis}/0', prefix: '{prefix}', retention: 64MiB}}
checkpoint: {{every: 1s}}
archive: {{dir: {archive}}}
guard: {{rows_min: 30}}
limits: {{body: {body_bytes}, in_flight: {in_flight}}}
"""


class Watched:
    """Trainer, joiner and two services, of which the second one hears of parameters by a proxy.

    Args:
        directory: Of everything.
        broker: Kafka.
        stack: Ends what is started.

    Attributes:
        targets: Job -> addresses of its processes, as Prometheus scrapes them.
        audience: The load on the first service.
    """

    def __init__(self, directory: Path, broker: Server, stack: ExitStack) -> None:
        self._directory = directory
        self._disk = FaultyDisk(directory / "data", directory)
        redis_port, *ports = free_ports(5)
        self._redis_port = redis_port
        self._redis = stack.enter_context(ExitStack())
        self._start_redis()
        self._way = stack.enter_context(closing(Proxy(f"{HOST}:{redis_port}")))
        self._path = directory / "freshrank.yaml"
        self._path.write_text(
            CONFIG.format(
                data_dir=directory / "data",
                archive=directory / "archive",
                broker=broker.address,
                redis=f"{HOST}:{redis_port}",
                prefix=directory.name[-40:],
                body_bytes=_BODY_BYTES,
                in_flight=_IN_FLIGHT,
            )
        )
        ended(FRESHRANK, "topics", "create", "-c", self._path)
        self._ports = dict(zip(("train", "join", "serve", "serve-2"), ports, strict=True))
        self._stacks = {name: stack.enter_context(ExitStack()) for name in self._ports}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in self._ports:
            self._start(name)
        for name in ("serve", "serve-2"):
            with closing(Api(self._ports[name])) as api:
                api.until_ready(self._processes[name], self._log(name), within_s=_START_TIMEOUT_S)
        self._api = stack.enter_context(closing(Api(self._ports["serve"])))
        self.targets: dict[str, list[str]] = {}
        for name, port in self._ports.items():
            job = f"freshrank-{name.partition('-')[0]}"
            self.targets.setdefault(job, []).append(f"{HOST}:{port}")
        self.audience = Audience(self._ports["serve"], body_bytes=_BODY_BYTES, in_flight=_IN_FLIGHT)
        stack.callback(self.audience.close)

    def logs(self) -> str:
        """The end of what each process said."""
        return "\n".join(
            f"{path.name}: {path.read_text('utf-8', 'replace')[-2_000:]}"
            for path in sorted(self._directory.glob("*.log"))
        )

    def figures(self) -> list[str]:
        """`/metrics` of every process."""
        return [
            httpx.get(f"http://{address}/metrics", timeout=30.0).raise_for_status().text
            for addresses in self.targets.values()
            for address in addresses
        ]

    @contextmanager
    def trainer_killed(self) -> Iterator[None]:
        """Nobody learns; started again at the end."""
        self._processes["train"].kill()
        self._stacks["train"].close()
        yield
        self._start("train")

    @contextmanager
    def service_cut_off(self) -> Iterator[None]:
        """The second service does not hear of a trainer that starts."""
        self._way.is_silent = True
        with self.trainer_killed():
            pass
        yield
        self._way.is_silent = False

    @contextmanager
    def redis_stopped(self) -> Iterator[None]:
        """It ends as servers do that are told to, and comes back with what it held."""
        self._redis.close()
        yield
        self._start_redis()

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """Joiner and trainer cannot write, while there is much to join."""
        self._disk.fail(errno.ENOSPC)
        with self.audience.doing("repeating"):
            yield
        self._disk.mend()

    @contextmanager
    def trainer_paused(self) -> Iterator[None]:
        """An operator has paused learning."""
        assert self._api.ask("/v1/admin/trainer/pause", {}).status_code == 202
        yield
        assert self._api.ask("/v1/admin/trainer/resume", {}).status_code == 202

    @contextmanager
    def damaged_record(self) -> Iterator[None]:
        """Something that is no message stands among the actions."""
        with closing(open_log(config.load(self._path, environ={}), SystemClock())) as log:
            log.append(ACTIONS, [NewRecord(b"", b"no message")])
        yield

    def _start_redis(self) -> None:
        self._redis.enter_context(redis(self._directory / "redis", port=self._redis_port))

    def _start(self, name: str) -> None:
        command, port = name.partition("-")[0], str(self._ports[name])
        environ = {"FRESHRANK__METRICS__PORT": port, **self._disk.environment}
        options = []
        if command == "serve":
            environ, options = {}, ["--port", port]
        if name == "serve-2":
            environ = {"FRESHRANK__SYNC__CHANNEL__URL": f"redis://{self._way.address}/0"}
        arguments = (command, "-c", str(self._path), *options)
        self._processes[name] = self._stacks[name].enter_context(
            role(*arguments, log=self._log(name), environ=environ)
        )

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"
