"""What stops every thread of a service at once: the interpreter looking for garbage."""

import json
from contextlib import closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from freshrank.dev.servers import free_ports
from tests.roles import Api, role

N_REQUESTS, N_CANDIDATES = 200, 200


def test_a_ranking_service_hardly_looks_for_garbage(tmp_path: Path) -> None:
    """With the interpreter's own bounds it does for each ranking, now and then for 0.2 s."""
    [port] = free_ports(1)
    config = tmp_path / "freshrank.yaml"
    features = [
        {"name": f"{scope}_id", "type": "id", "scope": scope, "dim": 4}
        for scope in ("user", "item")
    ]
    config.write_text(
        json.dumps(
            {
                "features": features,
                "tasks": [{"name": "click", "event": "click", "negative": {"from": "shown"}}],
                "service": {"data_dir": str(tmp_path / "data"), "port": port},
            }
        )
    )
    body = {"user": "u", "candidates": [{"item": f"item-{i}"} for i in range(N_CANDIDATES)]}
    with (
        role("serve", "-c", str(config), log=tmp_path / "service.log") as service,
        closing(Api(port)) as api,
    ):
        api.until_ready(service, tmp_path / "service.log")
        before = n_collections(api)
        for _ in range(N_REQUESTS):
            assert api.ask("/v1/rank", body).status_code == 200
        after = n_collections(api)
    assert after - before < N_REQUESTS / 5


def n_collections(api: Api) -> float:
    """Of the youngest objects."""
    for family in text_string_to_metric_families(api.ask("/metrics").text):
        for sample in family.samples:
            if sample.name == "python_gc_collections_total" and sample.labels["generation"] == "0":
                return sample.value
    raise AssertionError("no python_gc_collections_total")
