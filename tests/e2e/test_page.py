"""The live page in a real browser against the real demo: click, receipt, the list reorders."""

import itertools
import math
import os
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    Locator,
    Page,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
BROWSER = "chromium-headless-shell"
# What keeps the browser quiet: the test asserts that the page asks its own origin only.
BROWSER_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
N_CARDS = 12
# The page waits up to five statistics for a full sample before it ranks.
RANKED_TIMEOUT_MS = 15_000
SERVABLE_TIMEOUT_MS = 5_000
# Four are enough as a rule; how far ahead the others start depends on what the audience did.
CLICKS_MAX = 25
WIDE: ViewportSize = {"width": 1280, "height": 960}
NARROW: ViewportSize = {"width": 360, "height": 740}


@dataclass
class Visit:
    """A page that remembers what went wrong on it and whom it asked."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def card(self, item: str) -> Locator:
        return self.page.locator(f'.card[data-item="{item}"]')

    def item_at(self, rank: int) -> str:
        return attribute(self.page.locator(f'.card[data-rank="{rank}"]'), "data-item")

    def rank_of(self, item: str) -> int:
        return int(attribute(self.card(item), "data-rank"))

    def scores(self) -> dict[str, float]:
        """Score per item, in the order shown."""
        cards = self.page.locator(".card").all()
        return {
            attribute(card, "data-item"): float(attribute(card, "data-score")) for card in cards
        }

    def lead_of(self, item: str) -> float:
        """Log odds of an item over the mean of the others.

        The bare score, and a little of the lead after one click, also moves with what was shown
        before and not clicked: that reaches the model when the join window closes.
        """
        log_odds = {name: math.log(score / (1 - score)) for name, score in self.scores().items()}
        return log_odds.pop(item) - statistics.mean(log_odds.values())

    def choose(self, user: str) -> None:
        self.page.fill("#user-text", user)
        self.page.press("#user-text", "Enter")
        expect(self.page.locator("#cards")).to_have_attribute("data-user", user)

    def wait_until_reordered(self, item: str) -> None:
        """The news of an item comes after the ranking that follows its receipt."""
        news = self.page.locator("#news")
        expect(news).to_contain_text(f"{item}: servable", timeout=SERVABLE_TIMEOUT_MS)

    def click(self, item: str) -> None:
        """Click and wait for the ranking that has learned it."""
        self.page.evaluate("document.getElementById('news').textContent = ''")
        self.card(item).click()
        self.wait_until_reordered(item)


def attribute(locator: Locator, name: str) -> str:
    value = locator.get_attribute(name)
    assert value is not None, f"no {name}"
    return value


def unavailable(reason: str) -> None:
    """Skip, or fail where everything must be there."""
    if os.environ.get("FRESHRANK_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which(BROWSER)
    if executable is None:
        unavailable(f"{BROWSER} is not installed: apt-get install {BROWSER}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def users() -> Iterator[str]:
    """Users of the audience, each for one test: what a test teaches stays with its user."""
    return (f"user-{number}" for number in itertools.count(100))


@pytest.fixture
def visit(browser: Browser, demo: str, users: Iterator[str]) -> Iterator[Visit]:
    """The page, ranked; at the end, nothing may have gone wrong on it."""
    with browser.new_context(viewport=WIDE) as context:
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda message: note(message.type, message.text, visit.errors))
        visit.page.goto(f"{demo}/ui/")
        expect(visit.page.locator(".card")).to_have_count(N_CARDS, timeout=RANKED_TIMEOUT_MS)
        visit.choose(next(users))
        yield visit
        assert visit.errors == []
        origins = {urlsplit(url)[:2] for url in visit.requests}
        assert origins == {urlsplit(demo)[:2]}


def note(kind: str, text: str, errors: list[str]) -> None:
    if kind in ("error", "warning"):
        errors.append(text)


def test_items_are_ranked_by_descending_score(visit: Visit) -> None:
    scores = list(visit.scores().values())

    assert len(scores) == N_CARDS
    assert scores == sorted(scores, reverse=True)


def test_a_click_is_servable_soon_and_changes_the_score(visit: Visit) -> None:
    item = visit.item_at(8)
    before = visit.scores()[item]

    visit.card(item).click()

    receipt = visit.card(item).locator(".receipt")
    expect(receipt).to_contain_text(re.compile(r"servable \d"), timeout=SERVABLE_TIMEOUT_MS)
    visit.wait_until_reordered(item)
    assert abs(visit.scores()[item] - before) > 1e-4
    scores = list(visit.scores().values())
    assert scores == sorted(scores, reverse=True)


def test_a_click_on_an_old_list_belongs_to_a_new_one(visit: Visit) -> None:
    item = visit.item_at(8)
    visit.page.evaluate("{ const now = Date.now; Date.now = () => now() + 21_000; }")
    visit.requests.clear()

    visit.click(item)

    posts = [url.rpartition("/")[2] for url in visit.requests]
    assert [name for name in posts if name in ("rank", "feedback")] == ["rank", "feedback", "rank"]
    expect(visit.card(item)).to_have_attribute("data-state", "servable")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [("late", "too late"), ("duplicate", "duplicate"), ("unknown", "unknown"), ("odd_one", "odd")],
)
def test_a_click_that_was_not_trained_says_so(visit: Visit, outcome: str, words: str) -> None:
    def lose(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        for one in document["outcomes"]:
            one["outcome"] = outcome
        route.fulfill(response=answer, json=document)

    item = visit.item_at(6)
    visit.page.route("**/v1/events/*", lose)

    visit.card(item).click()

    news = visit.page.locator("#news")
    expect(news).to_contain_text(f"{item}: {words}", timeout=SERVABLE_TIMEOUT_MS)
    receipt = visit.card(item).locator(".receipt")
    expect(receipt).to_contain_text(words)
    expect(receipt).not_to_contain_text(re.compile("servable|trained"))
    expect(visit.card(item)).to_have_attribute("data-state", "lost")


@pytest.mark.parametrize(
    ("degraded", "level"),
    [
        ([], "fresh"),
        (["untrained"], "fresh"),
        (["stale_sparse"], "stale"),
        (["trainer_away"], "stale"),
    ],
)
def test_age_alone_is_no_fault(visit: Visit, degraded: list[str], level: str) -> None:
    def age(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        document["freshness"]["sparse_age_seconds"] = 3_600.0
        document["degraded"] = degraded
        route.fulfill(response=answer, json=document)

    visit.page.route("**/v1/stats", age)

    expect(visit.page.locator("#age")).to_have_text("parameters 3600.0 s old")
    expect(visit.page.locator("#age")).to_have_attribute("data-level", level)
    visit.page.unroute_all(behavior="ignoreErrors")


def test_the_first_user_is_you(browser: Browser, demo: str) -> None:
    with browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.goto(f"{demo}/ui/")
        expect(page.locator(".card")).to_have_count(N_CARDS, timeout=RANKED_TIMEOUT_MS)
        expect(page.locator("#user")).to_have_value("you")
        expect(page.locator("#user option").first).to_have_text("you")
        expect(page.locator("#user option", has_text=re.compile("^you$"))).to_have_count(1)
        assert page.locator("#user option").count() > 1


def test_clicks_lift_an_item_into_the_first_three(visit: Visit) -> None:
    item = visit.item_at(8)
    before = visit.lead_of(item)

    n_clicks = 0
    while visit.rank_of(item) > 3 and n_clicks < CLICKS_MAX:
        visit.click(item)
        n_clicks += 1

    assert visit.rank_of(item) <= 3
    assert visit.lead_of(item) > before


def test_the_keyboard_walks_and_clicks(visit: Visit) -> None:
    item = visit.item_at(2)
    visit.page.locator(".card").first.focus()

    visit.page.keyboard.press("ArrowDown")
    expect(visit.card(item)).to_be_focused()
    visit.page.keyboard.press("Enter")

    visit.wait_until_reordered(item)
    expect(visit.card(item)).to_be_focused()


def test_auc_points_grow(visit: Visit) -> None:
    chart = visit.page.locator("#chart")
    expect(chart).not_to_have_attribute("data-points", "0", timeout=15_000)
    before = int(attribute(chart, "data-points"))

    visit.page.wait_for_function(
        "n => Number(document.getElementById('chart').dataset.points) >= n + 3", arg=before
    )

    assert attribute(chart.locator(".line"), "d").count("L") >= 3


def test_a_paused_trainer_is_named_and_the_click_waits_for_it(visit: Visit) -> None:
    item = visit.item_at(5)
    button = visit.page.locator("#trainer")
    button.click()
    try:
        expect(button).to_have_text("Resume trainer")
        visit.card(item).click()
        expect(visit.card(item).locator(".receipt")).to_contain_text("trainer paused")
        expect(visit.page.locator("#age")).to_have_attribute("data-level", "stale")
    finally:
        button.click()
    visit.wait_until_reordered(item)
    expect(button).to_have_text("Pause trainer")


def test_an_unseen_item_joins_and_its_id_is_text(visit: Visit) -> None:
    name = "<img src=x onerror=alert(1)>"
    visit.page.fill("#item-text", name)
    visit.page.press("#item-text", "Enter")

    expect(visit.page.locator(".card")).to_have_count(N_CARDS + 1)
    added = visit.page.locator(".card.unknown", has_text=name)
    expect(added).to_have_count(1)
    assert visit.page.locator(".card img").count() == 0


def test_another_user_has_a_ranking_too(visit: Visit) -> None:
    visit.choose("somebody-new")

    expect(visit.page.locator("#user")).to_have_value("somebody-new")
    expect(visit.page.locator("#curl")).to_contain_text('"user":"somebody-new"')
    expect(visit.page.locator(".card")).to_have_count(N_CARDS)


def test_no_horizontal_scroll_on_a_narrow_screen(visit: Visit) -> None:
    visit.page.set_viewport_size(NARROW)
    visit.click(visit.item_at(8))

    width = visit.page.evaluate("document.documentElement.scrollWidth")

    assert width <= NARROW["width"]


@pytest.mark.parametrize(
    ("name", "scheme", "viewport"),
    [("light", "light", WIDE), ("dark", "dark", WIDE), ("narrow", "light", NARROW)],
)
def test_screenshots_show_a_learned_click(
    visit: Visit, name: str, scheme: Literal["light", "dark"], viewport: ViewportSize
) -> None:
    visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    visit.page.set_viewport_size(viewport)
    visit.click(visit.item_at(8))

    ARTIFACTS.mkdir(exist_ok=True)
    path = ARTIFACTS / f"page-{name}.png"
    visit.page.screenshot(path=path, full_page=True)

    assert path.stat().st_size > 10_000
