"""Debian's Prometheus over processes that run, with the rules as they are or faster."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Any, Final

import httpx

from freshrank.dev.servers import HOST, free_ports, program, running
from freshrank.metrics_alerts import ALERTS
from freshrank.metrics_rules import OBJECTIVES, alerting, as_yaml, recording
from tests.audience import SLOW_S

# Of a ranking that is slow: many take 25 ms where all of this runs on two busy cores.
_BOUND: Final = ('le="0.025"', f'le="{SLOW_S}"')
assert _BOUND[0] in OBJECTIVES["RankLatency"].bad
_READY: Final = b"GET /-/ready HTTP/1.0\r\n\r\n"


class Prometheus:
    """Asks it; an alert goes by its name, with its window behind a slash where it has one."""

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=f"http://{address}/api/v1", timeout=30.0)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that PromQL gives now."""
        answer = self._client.get("/query", params={"query": expr})
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """The alerts that are told now."""
        series = [one["metric"] for one in self.query('ALERTS{alertstate="firing"}')]
        return {"/".join(filter(None, (s["alertname"], s.get("window")))) for s in series}

    def broken_rules(self) -> list[tuple[str, str]]:
        """Rules that cannot be computed, and why."""
        groups = self._client.get("/rules").raise_for_status().json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) >= len(ALERTS)
        return [(one["name"], one.get("lastError", "")) for one in rules if one["health"] == "err"]

    def close(self) -> None:
        """End the connections."""
        self._client.close()


@contextmanager
def prometheus(
    directory: Path, targets: Mapping[str, list[str]], *, scale: float
) -> Iterator[Prometheus]:
    """A server that looks each second, while the context lasts.

    Args:
        directory: Of its own.
        targets: Job -> `host:port` of its processes.
        scale: Of all times in the rules, but for that of a slow ranking, which is SLOW_S.

    Raises:
        MissingServerError: it is not installed.
    """
    command = program("prometheus", "prometheus")
    directory.mkdir()
    rules = {"recording.yml": recording(scale), "alerts.yml": alerting(ALERTS, scale)}
    for name, document in rules.items():
        (directory / name).write_text(as_yaml(document).replace(*_BOUND))
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": list(rules),
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": addresses}]}
            for job, addresses in targets.items()
        ],
    }
    path = directory / "prometheus.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    [port] = free_ports(1)
    options = [
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with (
        running(
            "Prometheus",
            [command, *options],
            port=port,
            log=directory / "prometheus.log",
            answers=_is_ready,
        ) as server,
        closing(Prometheus(server.address)) as asked,
    ):
        yield asked


def _is_ready(connection: socket) -> bool:
    connection.sendall(_READY)
    return b" 200 " in connection.recv(64)
