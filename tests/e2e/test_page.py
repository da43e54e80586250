"""The live page in a real browser against the real demo: click, receipt, the list reorders."""

import itertools
import re
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Route, ViewportSize, expect

from tests.e2e.browsing import (
    ARTIFACTS,
    N_CARDS,
    NARROW,
    RANKED_TIMEOUT_MS,
    SERVABLE_TIMEOUT_MS,
    WIDE,
    Visit,
    attribute,
    visiting,
)


@pytest.fixture(scope="module")
def users() -> Iterator[str]:
    """Users of the audience, each for one test: what a test teaches stays with its user."""
    return (f"user-{number}" for number in itertools.count(100))


@pytest.fixture
def visit(browser: Browser, demo: str, users: Iterator[str]) -> Iterator[Visit]:
    """A page of its own user."""
    with visiting(browser, demo) as visit:
        visit.choose(next(users))
        yield visit


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


def test_the_keyboard_walks_and_clicks(visit: Visit) -> None:
    item = visit.item_at(2)
    visit.page.locator(".card").first.focus()

    visit.page.keyboard.press("ArrowDown")
    expect(visit.card(item)).to_be_focused()
    visit.page.keyboard.press("Enter")

    visit.wait_until_reordered(item)
    expect(visit.card(item)).to_be_focused()


def test_auc_points_grow(visit: Visit) -> None:
    chart = visit.page.locator("#auc-chart")
    expect(chart).not_to_have_attribute("data-points", "0", timeout=15_000)
    before = float(attribute(chart, "data-newest"))  # a full chart has as many points as before

    visit.page.wait_for_function(
        "s => Number(document.getElementById('auc-chart').dataset.newest) >= s + 2.5", arg=before
    )

    expect(chart).to_have_attribute("aria-label", re.compile(r"AUC over time; now click 0\.\d"))


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
