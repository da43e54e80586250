"""The twelve scenarios of a new user, from the first command to the day when something breaks.

Ten are here. Two are elsewhere in full, see `ELSEWHERE`:

10. What docker-compose.yml runs, without Docker: two services agree, every panel has data.
12. A roll-back under load flips the version once; what is backed up and restored answers the same.

Left out, as what they ask for is postponed until somebody needs it:

- 1, the fresh environment: minutes of installing, which the README states;
- 9, an alert of its own for a trainer that meets no numbers: such rows never reach a step. What is
  told is `DeadLetters`, and `VersionHeldBack` where parameters would be spoiled;
- 11, rate limits per key (429), a proxy's work: too much at once is refused with 503 instead;
- 12, an audit log (a log line has the reason), `inspect store`, `export` and `import`:
  `snapshots list`, `backup` and `restore` are there.

Times are recorded, and bounded only against standing still: the machine may be busy.
"""

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, expect

from freshrank.dev.servers import Server, free_ports
from tests.audience import places_taken
from tests.e2e.browsing import attribute, visiting
from tests.e2e.shop import CONFIG, IN_FLIGHT, Shop, open_shop
from tests.e2e.test_commands import run
from tests.e2e.test_learning import CURLS, paste
from tests.meanwhile import meanwhile
from tests.programs import FRESHRANK, ended
from tests.proofs import record, scale
from tests.roles import Api
from tests.split import Split
from tests.unit.service.support import until

ROOT: Final = Path(__file__).parents[2]
ELSEWHERE: Final = {
    10: (
        "tests/e2e/test_topology.py::test_a_click_at_one_service_changes_the_scores_of_both",
        "tests/e2e/test_alerts_live.py::"
        "test_each_fault_is_told_until_it_is_mended_and_every_panel_shows",
    ),
    12: (
        "tests/e2e/test_rollback.py::test_rolled_back_under_load_every_request_is_answered",
        "tests/e2e/test_backup.py::test_a_deployment_comes_back_from_backups_taken_while_it_runs",
    ),
}
# Four are enough as a rule; how far ahead the others start depends on what the audience did.
CLICKS_MAX: Final = 25
N_POINTS: Final = 10  # of the chart, one a second since the demo began
FULL_S: Final = 20
AUDIENCE_S: Final = scale("scenarios", 8)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture(scope="module")
def split(kafka_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Split]:
    with ExitStack() as stack:
        yield Split(tmp_path_factory.mktemp("split"), kafka_server, stack)


def test_1_the_demo_learns_from_its_audience_and_ends(tmp_path: Path) -> None:
    began_s = time.monotonic()
    shown = run(
        *("demo", "--headless", "--seconds", str(AUDIENCE_S), "--json", "--seed", "3"),
        directory=tmp_path,
    )
    seconds = round(time.monotonic() - began_s, 1)
    assert (shown.returncode, shown.stderr) == (0, "")
    result = json.loads(shown.stdout)
    assert result["events"] > (5_000 if AUDIENCE_S >= FULL_S else 500)
    assert result["auc_last"] > (0.65 if AUDIENCE_S >= FULL_S else 0.5)
    assert 0 < result["freshness_p50_seconds"] <= result["freshness_p99_seconds"]
    assert result["rows"] > 500
    assert result["filtered"] > 0
    # Everything received is accounted for, actions and their absence.
    assert result["accounting_problems"] == []
    accounting = result["accounting"]
    assert accounting["click.positive"] > 50
    assert accounting["click.negative"] > 500
    assert accounting["dwell.positive"] > 10
    assert accounting["duplicate"] > 0
    assert accounting["examples_learned"] > 1_000
    assert accounting["click.pending"] == 0
    names = ("events", "auc_last", "freshness_p99_seconds")
    figures = {name: round(result[name], 3) for name in names}
    record(f"1: {AUDIENCE_S} s of an audience", **figures, seconds=seconds)


def test_2_the_three_curls_of_the_readme_show_learning(demo: str, tmp_path: Path) -> None:
    assert CURLS in (ROOT / "README.md").read_text()
    verbatim = CURLS.replace("http://127.0.0.1:8000", demo)
    told = 'curl() { command curl -w "%{stderr}%{http_code}\\n" "$@" 2>>statuses; }\n'

    before, events, after = paste(told + verbatim, tmp_path)

    assert (tmp_path / "statuses").read_text().split() == ["200", "202", "200"]
    assert events["accepted"] == 6
    assert events["rejected"] == []
    assert after["freshness"]["after_satisfied"] is True
    assert after["freshness"]["sparse_seq"] > before["freshness"]["sparse_seq"]
    old, new = (of_item(answer, "my-first-item") for answer in (before, after))
    assert new["score"] > old["score"] + 1e-4
    # Nobody passes it but whom the demo's audience has clicked meanwhile.
    for then in before["items"]:
        now = of_item(after, then["item"])
        if then["rank"] >= old["rank"] and now["rank"] < new["rank"]:
            assert now["score"] > then["score"]


def of_item(answer: dict[str, Any], item: str) -> dict[str, Any]:
    [found] = [one for one in answer["items"] if one["item"] == item]
    return dict(found)


def test_3_a_click_is_servable_and_changes_the_score(shop: Shop) -> None:
    before = shop.rank("jazz")
    click = {"request_id": before["request_id"], "item": "jazz", "event": "click"}
    receipt = shop.api.ask("/v1/feedback", click).json()["receipt"]
    status = shop.until_servable(receipt)
    after = shop.rank("jazz")

    assert [one["outcome"] for one in status["outcomes"]] == ["trained"]
    assert after["freshness"]["sparse_seq"] > before["freshness"]["sparse_seq"]
    assert after["items"][0]["score"] > before["items"][0]["score"] + 1e-4
    record("3: a click, event to servable", seconds=status["event_to_servable_seconds"])


def test_4_clicks_in_a_browser_lift_a_card_into_the_first_three(
    browser: Browser, demo: str
) -> None:
    with visiting(browser, demo) as visit:  # which sees to it that nothing fails
        page, clicks_s = visit.page, list[float]()
        loaded_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        visit.choose("scenario-4")
        chart = page.locator("#auc-chart")
        expect(chart).not_to_have_attribute("data-points", "0", timeout=15_000)
        newest_s = attribute(chart, "data-newest")
        before = visit.lead_of(item := visit.item_at(8))
        while visit.rank_of(item) > 3 and len(clicks_s) < CLICKS_MAX:
            began_s = time.monotonic()
            visit.click(item)
            clicks_s.append(time.monotonic() - began_s)
        assert visit.rank_of(item) <= 3
        assert visit.lead_of(item) > before
        page.wait_for_function(
            "([n, s]) => { const one = document.getElementById('auc-chart').dataset;"
            " return one.points >= n && one.newest > s; }",
            arg=[N_POINTS, float(newest_s)],
        )
    record(
        "4: the page in Chromium",
        loaded_seconds=round(loaded_ms / 1_000, 2),
        clicks=len(clicks_s),
        click_to_reorder_seconds=round(statistics.median(clicks_s), 2),
        slowest=round(max(clicks_s), 2),
    )


def test_5_every_mistake_of_a_configuration_is_named_and_nothing_starts(tmp_path: Path) -> None:
    path, [port] = tmp_path / "freshrank.yaml", free_ports(1)
    mistakes = {
        "scope: user, dim: 4": "scope: user, dim: four",
        "type: dense": "type: dence",
        "window: 1s": "window: soon",
        "sparse_every": "sparse_evry",
    }
    text = CONFIG
    for right, wrong in mistakes.items():
        text = text.replace(right, wrong)
    path.write_text(text)

    checked = run("config", "check", directory=tmp_path)
    started = run("serve", "--port", str(port), directory=tmp_path)

    assert (checked.returncode, started.returncode) == (2, 2)
    places = re.findall(r"^freshrank\.yaml:(\d+):\d+: error: ", checked.stderr, re.MULTILINE)
    assert [int(line) for line in places] == [3, 5, 7, 8]
    assert started.stderr == checked.stderr
    assert (checked.stdout, started.stdout) == ("", "")
    assert list(tmp_path.iterdir()) == [path]


def test_6_what_nobody_knows_is_ranked_and_said_to_be_missing(shop: Shop) -> None:
    items = [f"unheard-of-{n}" for n in range(20)]
    answers = [shop.rank(*items, user="stranger", log_impression=False) for _ in range(100)]

    for answer in answers:
        assert {one["known"] for one in answer["items"]} == {False}
        missing = answer["missing"]
        assert missing["user"] is True
        assert sorted(missing["items"]) == sorted(items)
        assert missing["features"] == ["price"]
    orders = {tuple(one["item"] for one in answer["items"]) for answer in answers}
    assert orders == {tuple(sorted(items))}  # equal scores: by the id


def test_7_events_that_are_sent_twice_are_learned_once(shop: Shop) -> None:
    def counted(name: str) -> int:
        return int(shop.api.ask("/v1/stats").json()["accounting"].get(name, 0))

    until(lambda: not counted("click.pending"), timeout_s=30.0)  # windows that others left open
    before = counted("examples_learned")
    impression = {"kind": "impression", "event_id": "e1", "request_id": "twice", "user": "ann"}
    click = {"kind": "feedback", "event_id": "e2", "request_id": "twice", "item": "chess"}
    batch = {"events": [{**impression, "items": [{"item": "chess"}]}, {**click, "event": "click"}]}

    first, second = (shop.api.ask("/v1/events", batch) for _ in range(2))
    statuses = [shop.until_servable(one.json()["receipt"]) for one in (first, second)]

    assert (first.status_code, second.status_code) == (202, 202)
    assert (first.json()["duplicates"], second.json()["duplicates"]) == (0, 2)
    outcomes = [{one["outcome"] for one in status["outcomes"]} for status in statuses]
    assert outcomes == [{"trained"}, {"duplicate"}]
    assert counted("examples_learned") == before + 1


def test_8_a_killed_trainer_goes_on_where_it_was_and_no_request_fails(split: Split) -> None:
    def visit(_: int) -> None:
        split.visit()
        pause.wait(0.05)  # the processes share two cores with this one

    began_at, pause = split.n_shown, threading.Event()
    with meanwhile(visit):
        split.until_served(began_at + 100)
        split.trainer.kill()
        split.trainer.wait()
        began_s, n_before = time.monotonic(), len(split.statuses)
        split.start_trainer()
        until(lambda: len(split.statuses) > n_before + 50, timeout_s=60.0)  # nobody learns yet
        split.until_served(split.n_shown)
        seconds = time.monotonic() - began_s

    split.until_served(split.n_shown)
    assert set(split.statuses) <= {200, 202}
    assert split.n_served() == split.n_shown  # each once
    told = "8: a trainer killed and started again, until it has caught up"
    record(told, seconds=round(seconds, 1), requests=len(split.statuses), failed=0)


def test_9_poisoned_examples_are_dead_letters_and_spoil_no_score(split: Split) -> None:
    split.visit()
    split.until_served(split.n_shown)
    before, n_letters = split.scores(), split.trainer_metric("dead_letters_total")
    n_bad = split.poison()
    split.until_refused(n_letters + n_bad)
    listed = ended(FRESHRANK, "dlq", "list", "--topic", "examples", "--json", "-c", split.config)
    letters = map(json.loads, listed.stdout.splitlines())
    assert {one["reason"] for one in letters} == {"bad-weight", "bad-label"}
    # The dense net of what was learned before may come later than its rows: by a thousandth.
    assert split.scores() == pytest.approx(before, abs=0.02)
    assert split.n_served() == split.n_shown
    split.visit()
    split.until_served(split.n_shown)  # what is sound is learned
    assert split.n_served() == split.n_shown


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_11_nobody_listens_beyond_loopback_without_keys(tmp_path: Path, command: str) -> None:
    (tmp_path / "freshrank.yaml").write_text(CONFIG)
    refused = run(command, "--host", "0.0.0.0", "--port", "0", directory=tmp_path)  # noqa: S104
    assert refused.returncode == 2
    told = "refusing to listen on 0.0.0.0 without auth.keys (add a key or --insecure)"
    assert told in refused.stderr


def test_11_a_key_opens_what_it_is_for_and_health_is_always_told(shop: Shop) -> None:
    ranking = {"user": "ann", "candidates": [{"item": "jazz"}], "log_impression": False}
    assert shop.window.ask("/v1/rank", ranking).status_code == 200
    refused = shop.window.ask("/v1/events", {"events": []})
    assert refused.status_code == 403
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["type"] == "/problems/forbidden"
    with closing(Api(shop.port)) as stranger:
        assert stranger.ask("/v1/rank", ranking).status_code == 401
        with places_taken(shop.port, IN_FLIGHT, shop.api, key="all"):
            shed = shop.api.ask("/v1/rank", ranking)
            assert (shed.status_code, shed.headers["Retry-After"]) == (503, "1")
            for path in ("/health/live", "/health/ready"):
                assert stranger.ask(path).status_code == 200


def test_every_scenario_is_here_or_where_the_table_says() -> None:
    here = {int(n) for n in re.findall(r"^def test_(\d+)_", Path(__file__).read_text(), re.M)}
    assert sorted(here | set(ELSEWHERE)) == list(range(1, 13))
    for test in (test for tests in ELSEWHERE.values() for test in tests):
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()
