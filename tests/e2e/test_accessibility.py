"""The page by the rules of axe-core, in each colour scheme and on a narrow screen."""

from importlib.resources import files
from typing import Any, Final, Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.e2e.browsing import NARROW, WIDE, unavailable, visiting

# The trainer has saved its first checkpoint, and obeys between two steps.
PANEL_TIMEOUT_MS: Final = 60_000
# Fewer would be none of the page's: colours, names, roles, order of headings, landmarks, size.
RULES_MIN: Final = 20


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core, as one of its packages brings it."""
    try:
        return files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    except ModuleNotFoundError:
        unavailable("axe-core is not installed: pip install axe-playwright-python")
        raise


def judged(page: Page, axe: str) -> dict[str, Any]:
    """What axe-core finds, all of its rules applied, those of good practice too."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate("axe.run()")
    return found


def told(rules: list[dict[str, Any]]) -> list[str]:
    """Which rules, and what breaks them."""
    return [f"{one['id']}: {node['html']}" for one in rules for node in one["nodes"]]


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page(
    browser: Browser, demo: str, axe: str, scheme: Literal["light", "dark"], viewport: ViewportSize
) -> None:
    with visiting(browser, demo) as visit:
        page = visit.page
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size(viewport)
        # With a receipt on a card, charts, an id that is told of, and the question of a roll-back.
        visit.click(visit.item_at(8))
        page.select_option("#slot", "user_id")
        page.fill("#key", "user-1")
        page.press("#key", "Enter")
        expect(page.locator("#id-vector i")).to_have_count(16)
        page.wait_for_function("document.querySelectorAll('#live canvas').length === 5")
        expect(page.locator("#dry-run")).to_be_enabled(timeout=PANEL_TIMEOUT_MS)
        page.click("#dry-run")
        expect(page.locator("#confirm")).to_be_visible(timeout=PANEL_TIMEOUT_MS)

        found = judged(page, axe)

    assert told(found["violations"]) == []
    assert len(found["passes"]) > RULES_MIN


def test_axe_finds_what_is_wrong(browser: Browser, axe: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_content(
            "<html><body style='background: #fff'><button></button>"
            "<p style='color: #ddd'>pale</p></body></html>"
        )
        found = {one["id"] for one in judged(page, axe)["violations"]}
    assert {"button-name", "color-contrast", "html-has-lang"} <= found
