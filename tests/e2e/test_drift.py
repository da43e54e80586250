"""The demo's world is turned over from the page: AUC dips, and recovers as it is learned."""

import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browsing import ARTIFACTS, visiting
from tests.e2e.conftest import running_demo
from tests.proofs import record, scale

N_DRIFTS = scale("drift", 0)
# Long enough for tastes to be learned, so that there is something to lose.
WARM_UP_S = "20"
LOST = 0.03
# The rest of the window still holds what was scored while it was wrong.
REGAINED = 0.02
TIMEOUT_MS = 90_000
AUC = "Number(document.getElementById('auc').textContent)"
NOTE_LOWEST = f"""() => {{
  lowest = {AUC};
  setInterval(() => lowest = Math.min(lowest, {AUC}), 200);
}}"""


@pytest.mark.skipif(N_DRIFTS == 0, reason="a demo of its own for a minute: make prove")
@pytest.mark.timeout(300 + 200 * N_DRIFTS)
def test_auc_dips_when_the_world_turns_and_recovers(browser: Browser, tmp_path: Path) -> None:
    with running_demo(tmp_path, WARM_UP_S) as demo, visiting(browser, demo) as visit:
        page = visit.page
        page.wait_for_function(f"() => {AUC} > 0.6", timeout=TIMEOUT_MS)
        for _ in range(N_DRIFTS):
            before, began_s = page.evaluate(AUC), time.monotonic()
            page.click("#drift")
            expect(page.locator("#drift-news")).to_contain_text("likes what it disliked")
            page.evaluate(NOTE_LOWEST)
            page.wait_for_function(f"() => {AUC} < {before - LOST}", timeout=TIMEOUT_MS)
            dip_s = time.monotonic() - began_s
            page.wait_for_function(f"() => {AUC} > {before - REGAINED}", timeout=TIMEOUT_MS)
            record(
                "AUC dips when the audience's tastes turn over, and recovers as they are learned",
                auc_before=before,
                auc_lowest=page.evaluate("lowest"),
                auc_after=page.evaluate(AUC),
                dip_seconds=round(dip_s, 1),
                recovery_seconds=round(time.monotonic() - began_s, 1),
            )
        ARTIFACTS.mkdir(exist_ok=True)
        page.emulate_media(color_scheme="dark")
        page.locator("#aside").screenshot(path=ARTIFACTS / "live-drift.png")
