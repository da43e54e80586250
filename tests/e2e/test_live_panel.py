"""The live panel in a real browser against the real demo: what it draws, tells and commands."""

import re
import time
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from tests.e2e.browsing import ARTIFACTS, NARROW, WIDE, Visit, attribute, visiting

CHARTS = ("auc", "freshness", "beats", "actions", "lag", "occupancy")
POINTS_TIMEOUT_MS = 20_000
# The trainer obeys between two steps, and the next statistics show it.
OBEYED_TIMEOUT_MS = 30_000
# The demo saves its first checkpoint 20 s after its start.
CHECKPOINT_TIMEOUT_MS = 60_000
# How many colours of pixels a canvas shows: one where nothing is drawn.
COLOURS = """id => {
  const canvas = document.querySelector(`#${id}-chart canvas`);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.fixture
def page(browser: Browser, demo: str) -> Iterator[Page]:
    """A visit whose charts have their first points."""
    with visiting(browser, demo) as visit:
        has_points(visit)
        yield visit.page


def has_points(visit: Visit) -> None:
    auc = visit.page.locator("#auc-chart")
    expect(auc).not_to_have_attribute("data-points", "0", timeout=POINTS_TIMEOUT_MS)


def look(page: Page, slot: str, key: str, other: str | None = None) -> None:
    page.select_option("#slot", slot)
    page.fill("#key", key)
    if other is not None:
        page.fill("#other", other)
    page.press("#key", "Enter")


def test_every_chart_is_drawn_and_says_its_values(page: Page) -> None:
    for chart in CHARTS:
        figure = page.locator(f"#{chart}-chart")
        expect(figure).to_have_attribute("aria-label", re.compile(r"; now \w+"))
        assert page.evaluate(COLOURS, chart) > 3, chart
    # The demo ran before this page was opened: the server remembers.
    assert int(attribute(page.locator("#auc-chart"), "data-points")) > 5
    assert page.locator("#slots tr").count() == 7
    expect(page.locator("#slots tr").first).to_contain_text(re.compile(r"user_id\s*\d+"))


def test_a_pending_id_and_an_admitted_one_say_why(page: Page, demo: str) -> None:
    newcomer = f"newcomer-{time.time_ns()}"
    state = page.locator("#id-state")
    look(page, "user_x_category", newcomer, "jazz")
    expect(state).to_have_text("absent")
    expect(page.locator("#id-why")).to_contain_text("never seen")
    expect(page.locator("#id-vector")).to_be_hidden()

    # A pair has its row at its second time; each ranking is one.
    candidates = [{"item": "jazz-1", "features": {"category": "jazz"}}]
    body = {"user": newcomer, "candidates": candidates}
    assert page.request.post(f"{demo}/v1/rank", data=body).ok
    expect(state).to_have_text("pending 1 of 2", timeout=OBEYED_TIMEOUT_MS)
    expect(page.locator("#id-why")).to_contain_text("seen 1 of 2 times")
    assert page.request.post(f"{demo}/v1/rank", data=body).ok
    expect(state).to_have_text("admitted", timeout=OBEYED_TIMEOUT_MS)
    expect(page.locator("#id-why")).to_contain_text("a row of its own", timeout=OBEYED_TIMEOUT_MS)
    expect(page.locator("#id-vector i")).to_have_count(16)

    look(page, "user_id", "nobody/ever <b>")
    expect(page.locator("#id-why")).to_contain_text("nobody/ever <b>: never seen")


def test_a_paused_trainer_lets_the_age_grow(page: Page) -> None:
    page.click("#trainer")
    try:
        age = page.locator("#age")
        expect(age).to_have_text(re.compile(r"parameters [3-9]\.\d s old, paused"), timeout=15_000)
        expect(age).to_have_attribute("data-level", "stale")
    finally:
        page.click("#trainer")
    expect(page.locator("#trainer")).to_have_text("Pause trainer")


def test_a_roll_back_is_looked_at_first_and_then_flips_the_version(page: Page, demo: str) -> None:
    before = page.request.get(f"{demo}/v1/models").json()["models"][0]["epoch"]
    dry_run, confirm = page.locator("#dry-run"), page.locator("#confirm")
    expect(dry_run).to_be_enabled(timeout=CHECKPOINT_TIMEOUT_MS)
    expect(confirm).to_be_hidden()
    dry_run.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#dry-news")).to_contain_text(re.compile(r"[\d,]+ rows learned since"))
    page.click("#keep-going")
    expect(confirm).to_be_hidden()
    expect(dry_run).to_be_focused()

    dry_run.click()
    page.click("#roll-back")
    news = page.locator("#rollback-news")
    expect(news).to_have_text(
        re.compile(r"Done: d\d+-s\d+ of epoch \d+"), timeout=OBEYED_TIMEOUT_MS
    )
    now = news.inner_text().removeprefix("Done: ").removesuffix(" is served.")
    [model] = page.request.get(f"{demo}/v1/models").json()["models"]
    assert now.endswith(f"of epoch {model['epoch']}")
    assert model["epoch"] > before


def test_a_drift_is_asked_for_and_marked(page: Page) -> None:
    """The answer is made up: a world turned over would disturb the tests that follow."""
    asked = []

    def turn(route: Route) -> None:
        asked.append((route.request.method, urlsplit(route.request.url).path))
        route.fulfill(status=202, json={"drifted": True})

    page.route("**/v1/demo/drift", turn)
    page.click("#drift")
    expect(page.locator("#drift-news")).to_contain_text("likes what it disliked")
    assert asked == [("POST", "/v1/demo/drift")]
    page.unroute_all(behavior="ignoreErrors")


def test_where_the_trainer_is_elsewhere_the_panel_says_so(browser: Browser, demo: str) -> None:
    def elsewhere(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        document |= {"trainer": {"present": False, "paused": None}, "lag": None, "simulated": False}
        for table in document["tables"]:
            table["trainer"] = None
        route.fulfill(response=answer, json=document)

    with visiting(browser, demo) as visit:
        page = visit.page
        page.route("**/v1/stats", elsewhere)
        page.route("**/v1/admin/snapshots", lambda route: route.fulfill(json={"snapshots": None}))
        page.reload()
        for chart in ("actions", "lag"):
            expect(page.locator(f"#{chart}-chart")).to_be_hidden()
            expect(page.locator(f"#{chart}-note")).to_contain_text("process of its own")
        expect(page.locator("#slots-note")).to_be_visible()
        expect(page.locator("#slots td").nth(1)).to_have_text("\N{EN DASH}")
        expect(page.locator("#rollback-news")).to_contain_text("snapshots list")
        expect(page.locator("#rollback-form")).to_be_hidden()
        expect(page.locator("#drift")).to_be_hidden()
        page.unroute_all(behavior="ignoreErrors")


def test_everything_is_reached_by_the_tab_key(page: Page) -> None:
    expect(page.locator("#dry-run")).to_be_enabled(timeout=CHECKPOINT_TIMEOUT_MS)
    page.focus("#slot")
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.type"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached
    assert reached[:2] == ["key", "submit"]
    assert reached[2:] == ["snapshot", "dry-run", "drift"]


@pytest.mark.parametrize(
    ("name", "scheme", "viewport"),
    [("light", "light", WIDE), ("dark", "dark", WIDE), ("narrow", "dark", NARROW)],
)
def test_screenshots_of_the_panel(
    page: Page, name: str, scheme: Literal["light", "dark"], viewport: ViewportSize
) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(viewport)
    look(page, "user_id", "user-1")
    expect(page.locator("#id-vector i")).to_have_count(16)
    page.wait_for_function("document.querySelectorAll('#live canvas').length === 5")

    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for chart in CHARTS:
        assert page.evaluate(COLOURS, chart) > 3, chart
    ARTIFACTS.mkdir(exist_ok=True)
    path = ARTIFACTS / f"live-{name}.png"
    page.locator("#live").screenshot(path=path)
    assert path.stat().st_size > 10_000
