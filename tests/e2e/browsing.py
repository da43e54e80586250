"""The page in a real browser: a visit that remembers what went wrong on it."""

import math
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

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


@contextmanager
def launched() -> Iterator[Browser]:
    """Debian's headless Chromium."""
    executable = shutil.which(BROWSER)
    if executable is None:
        unavailable(f"{BROWSER} is not installed: apt-get install {BROWSER}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGS)
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, demo: str) -> Iterator[Visit]:
    """The page, ranked; at the end, nothing may have gone wrong on it."""
    with browser.new_context(viewport=WIDE) as context:
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda message: note(message.type, message.text, visit.errors))
        visit.page.goto(f"{demo}/ui/")
        expect(visit.page.locator(".card")).to_have_count(N_CARDS, timeout=RANKED_TIMEOUT_MS)
        yield visit
        assert visit.errors == []
        origins = {urlsplit(url)[:2] for url in visit.requests}
        assert origins == {urlsplit(demo)[:2]}


def note(kind: str, text: str, errors: list[str]) -> None:
    if kind in ("error", "warning"):
        errors.append(text)
