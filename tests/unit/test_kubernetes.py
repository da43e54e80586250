"""deploy/kubernetes runs what docker-compose.yml runs, watched, bounded and as nobody."""

from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from freshrank import config

ROOT: Final = Path(__file__).parents[2]
BASE: Final = ROOT / "deploy" / "kubernetes"
COMPOSE: Final[dict[str, Any]] = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
KUSTOMIZATION: Final[dict[str, Any]] = YAML(typ="safe").load(BASE / "kustomization.yaml")
RESOURCES: Final[list[dict[str, Any]]] = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in YAML(typ="safe").load_all(BASE / name)
]
# Of each role its kind, and what it is in the composition.
ROLES: Final = {
    "joiner": ("Deployment", "joiner"),
    "service": ("Deployment", "service-1"),
    "topics": ("Job", "topics"),
    "trainer": ("StatefulSet", "trainer"),
}
SETTINGS: Final = config.load(BASE / "freshrank.yaml", environ={})
CONFIG: Final = "/etc/freshrank"


def resource(kind: str, name: str) -> dict[str, Any]:
    [one] = [r for r in RESOURCES if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return one


def pod(role: str) -> dict[str, Any]:
    template: dict[str, Any] = resource(ROLES[role][0], role)["spec"]["template"]
    return template


def container(role: str) -> dict[str, Any]:
    [one] = pod(role)["spec"]["containers"]
    return dict(one)


def test_the_base_has_every_role_and_every_file() -> None:
    workloads = {r["metadata"]["name"] for r in RESOURCES if "template" in r.get("spec", {})}
    assert workloads == set(ROLES)
    listed = {*KUSTOMIZATION["resources"], "kustomization.yaml", "freshrank.yaml"}
    assert listed == {path.name for path in BASE.iterdir()}
    [generated] = KUSTOMIZATION["configMapGenerator"]
    assert generated == {"name": "freshrank", "files": ["freshrank.yaml"]}
    tags = {one["name"]: one["newTag"] for one in KUSTOMIZATION["images"]}
    in_compose = {COMPOSE[name]["image"] for _, name in ROLES.values()}
    assert {f"{name}:{tag}" for name, tag in tags.items()} == in_compose
    assert resource("Deployment", "service")["spec"]["replicas"] == 2
    assert resource("StatefulSet", "trainer")["spec"]["replicas"] == 2
    assert resource("Deployment", "joiner")["spec"]["replicas"] <= SETTINGS.log.partitions


@pytest.mark.parametrize("role", ROLES)
def test_a_role_does_what_the_composition_does(role: str) -> None:
    one, other = container(role), COMPOSE[ROLES[role][1]]
    assert one["args"] == other["command"]
    assert one["image"] == other["image"].partition(":")[0]
    if role != "topics":
        memory = {"1g": "1Gi", "4g": "4Gi"}[other["mem_limit"]]
        assert one["resources"]["limits"] == {"cpu": "1", "memory": memory}
        seconds = pod(role)["spec"]["terminationGracePeriodSeconds"]
        assert f"{seconds}s" == other["stop_grace_period"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_nobody_bounded_and_has_its_volumes(role: str) -> None:
    one, spec = container(role), pod(role)["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    user = f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    assert f"USER {user}" in (ROOT / "deploy" / "Dockerfile").read_text()
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(one["resources"]) == {"requests", "limits"}
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert mounts == {"config": CONFIG, "data": str(SETTINGS.service.data_dir), "tmp": "/tmp"}  # noqa: S108
    volumes = {volume.pop("name"): volume for volume in map(dict, spec["volumes"])}
    assert volumes["config"] == {"configMap": {"name": "freshrank"}}
    shared = {"persistentVolumeClaim": {"claimName": "trainer"}}
    assert volumes["data"] == (shared if role == "trainer" else {"emptyDir": {}})
    labels = pod(role)["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == role
    if role != "topics":
        kind = ROLES[role][0]
        selected = resource(kind, role)["spec"]["selector"]["matchLabels"]
        assert selected.items() <= labels.items()


@pytest.mark.parametrize("role", ["joiner", "service", "trainer"])
def test_a_role_is_watched_where_it_answers(role: str) -> None:
    one = container(role)
    [port] = one["ports"]
    own = SETTINGS.service.port if role == "service" else SETTINGS.metrics.port
    assert port["containerPort"] == own
    paths = {
        name: one[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    ready = "/health/ready" if role == "service" else "/health/live"
    assert paths == {"startup": "/health/live", "liveness": "/health/live", "readiness": ready}
    for name in paths:
        assert one[f"{name}Probe"]["httpGet"]["port"] == port["name"]


def test_services_are_reached_and_outlive_the_loss_of_one_node() -> None:
    service = resource("Service", "service")["spec"]
    assert service["selector"] == {"app.kubernetes.io/name": "service"}
    assert service["ports"][0]["port"] == SETTINGS.service.port
    assert resource("PodDisruptionBudget", "service")["spec"]["minAvailable"] == 1
    claim = resource("PersistentVolumeClaim", "trainer")["spec"]
    assert claim["accessModes"] == ["ReadWriteMany"]
    assert resource("StatefulSet", "trainer")["spec"]["serviceName"] == "trainer"


def test_only_who_is_named_comes_in_and_only_to_what_is_named_goes_out() -> None:
    policies = {r["metadata"]["name"]: r["spec"] for r in RESOURCES if r["kind"] == "NetworkPolicy"}
    [entry] = policies["service"]["ingress"]
    assert [port["port"] for port in entry["ports"]] == [SETTINGS.service.port]
    [entry] = policies["learning"]["ingress"]
    assert [port["port"] for port in entry["ports"]] == [SETTINGS.metrics.port]
    [chosen] = policies["learning"]["podSelector"]["matchExpressions"]
    assert {*chosen["values"], "service"} == set(ROLES)
    out = {port["port"] for rule in policies["freshrank-out"]["egress"] for port in rule["ports"]}
    brokers = {int(broker.rpartition(":")[2]) for broker in SETTINGS.log.brokers}
    assert out == {53, 6379} | brokers


def test_the_configuration_is_that_of_the_composition_but_for_what_is_shared() -> None:
    ours = SETTINGS.model_dump(mode="json", by_alias=True)
    theirs = config.load(ROOT / "deploy" / "freshrank.yaml", environ={}).model_dump(
        mode="json", by_alias=True
    )
    assert ours["service"].pop("name") == "kubernetes"
    theirs["service"].pop("name")
    assert ours["sync"].pop("channel")["kind"] == "redis"
    theirs["sync"].pop("channel")
    assert ours["log"].pop("replication") == 3
    theirs["log"].pop("replication")
    assert ours == theirs
