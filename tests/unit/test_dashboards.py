"""The dashboards: as committed, in PromQL, and with the alerts they read every metric."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from freshrank.metrics_alerts import ALERTS
from freshrank.metrics_catalogue import CATALOGUE, full_name
from freshrank.metrics_dashboards import DASHBOARDS, as_json, dashboard
from freshrank.metrics_rules import as_yaml, recording
from tests.promtool import promtool

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"


def panels() -> list[str]:
    return [expr for name in DASHBOARDS for panel in DASHBOARDS[name] for expr in panel.lines]


def rules() -> dict[str, str]:
    """What is computed ahead, by name."""
    return {one["record"]: one["expr"] for one in recording()["groups"][0]["rules"]}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_dashboards_are_those_of_the_code(
    name: str, request: pytest.FixtureRequest
) -> None:
    path = GRAFANA / "dashboards" / f"{name}.json"
    if request.config.getoption("--update-golden"):
        path.write_text(as_json(dashboard(name)), "utf-8")
    assert path.read_text("utf-8") == as_json(dashboard(name))


def test_grafana_finds_them_and_their_data() -> None:
    yaml = YAML(typ="safe")
    [source] = yaml.load(GRAFANA / "datasource.yaml")["datasources"]
    [provider] = yaml.load(GRAFANA / "dashboards.yaml")["providers"]
    mounts = yaml.load(ROOT / "docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    used = {
        panel["datasource"]["uid"] for name in DASHBOARDS for panel in dashboard(name)["panels"]
    }
    assert used == {source["uid"]}


def test_panels_are_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, expr in enumerate(panels())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(as_yaml({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_every_metric_is_read_by_a_panel_or_an_alert() -> None:
    read = "\n".join([*panels(), *(one.expr for one in ALERTS), *rules().values()])
    unread = [
        name
        for name in map(full_name, CATALOGUE)
        if not re.search(rf"\b{name}(_bucket|_count)?\b", read)
    ]
    assert unread == []


def test_nothing_is_read_that_nobody_tells() -> None:
    names = {*map(full_name, CATALOGUE)}
    for expr in (*panels(), *(one.expr for one in ALERTS), *rules().values()):
        for name in re.findall(r"\bfreshrank_\w+", expr):
            assert re.sub(r"_(bucket|count)$", "", name) in names, expr
        for name in re.findall(r"\bfreshrank:\w+(?::\w+)*", expr):
            assert name in rules(), expr


def test_what_is_computed_ahead_is_read() -> None:
    read = "\n".join([*panels(), *(one.expr for one in ALERTS)])
    assert [name for name in rules() if not re.search(rf"{name}\b", read)] == []
