"""Test of the lab's page in a real browser: the whole way of a scan, and of a training, as people go it."""

from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page

from page_faults import faults
from phantom import RAS, image_of, lumbar_codes
from serving import running_server
from test_lab_browser import SIZE, doubtful_codes
from tiny_models import write_models
from totalspineseg_server.anatomy import CODE_OF, NAME_OF
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.io.volumes import write_volume
from training_site import SPACING_MM
from viewer import window

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
WAIT_MS = 600_000
"""A training on a busy machine takes minutes to begin."""


def test_from_the_worklist_to_a_rolled_back_version(tmp_path: Path) -> None:
    """Predict, review, pin, accept, next, train, train again and be refused by the gate, look why, go back."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name, codes in (("sub-1", lumbar_codes()), ("sub-2", doubtful_codes()), ("sub-3", lumbar_codes())):
        write_volume(studies / f"{name}.nii.gz", image_of(codes), RAS)
    write_models(tmp_path / "app" / "model" / "starter", spacing=SPACING_MM)
    with running_server(tmp_path) as server, window(SIZE) as page:
        page.set_default_timeout(WAIT_MS)
        page.goto(server.url)
        page.fill("#name", "ada")
        page.locator("#name").press("Enter")

        predict_all(page)
        pin_the_doubtful_one(page)
        accept_in_three_keys(page)
        accepted, pinned = (CorrectionStore(studies / ".totalspineseg").of_image(name) for name in ("sub-1", "sub-2"))
        assert [one.unchanged for one in (*accepted, *pinned)] == [True, False]

        gate = server.signals / "gate"
        gate.write_text("0.8", encoding="utf-8")
        good = train(page, "published")
        gate.write_text("0.5", encoding="utf-8")
        refused = train(page, "refused")
        assert page.get_by_label(f"Activate {refused}").is_disabled()
        look_why(page, refused)
        go_back(page, good)
        assert requests.get(f"{server.url}/versions", timeout=60).json()["in_use"] == {"1": "starter", "2": "starter"}


def predict_all(page: Page) -> None:
    page.locator("tr[data-scan='sub-3']").wait_for()
    page.get_by_role("button", name="Predict these (3)").click()
    for scan in ("sub-1", "sub-2", "sub-3"):
        page.locator(f"tr[data-scan='{scan}'] .predicted").wait_for()
    page.get_by_text("The prediction is finished: 3 scans").wait_for()
    page.keyboard.press("v")
    picture = page.locator("tr[data-scan='sub-2'] img[src^=blob]")
    picture.wait_for()
    box = picture.bounding_box()
    assert box is not None
    assert box["height"] > 400, "names can be read"
    assert faults(page) == []
    page.keyboard.press("v")


def pin_the_doubtful_one(page: Page) -> None:
    # What is doubtful comes first.
    page.keyboard.press("n")
    page.wait_for_url(lambda url: url.endswith("review/sub-2"))
    page.locator("canvas[data-ready=true]").wait_for()
    page.click("[data-level='L3']")
    page.keyboard.press("p")
    page.locator("#pin-name").select_option(NAME_OF[CODE_OF["L3"] + 1])
    page.locator("#dialog-yes").click()
    page.get_by_text("levels change their names").wait_for()
    page.keyboard.press("s")
    page.get_by_text("Submitted as a finished label").wait_for()


def accept_in_three_keys(page: Page) -> None:
    """Next, accept, next."""
    page.keyboard.press("n")
    page.wait_for_url(lambda url: url.endswith(("review/sub-1", "review/sub-3")))
    if page.url.endswith("sub-3"):
        page.goto(page.url.replace("sub-3", "sub-1"))
        page.wait_for_url(lambda url: url.endswith("review/sub-1"))
    page.locator("h2.scan:text('sub-1')").wait_for()
    page.locator("canvas[data-ready=true]").wait_for()
    page.keyboard.press("a")
    page.get_by_text("Accepted as it is").wait_for()
    page.keyboard.press("n")
    page.wait_for_url(lambda url: url.endswith("review/sub-3"))


def train(page: Page, status: str) -> str:
    """Train, watch the training end, and return the name of the version that it made."""
    page.click("nav a[data-view=learning]")
    before = versions(page)
    page.locator("#start-training").click()
    page.locator("#dialog-yes").click()
    page.locator("#stop-training").wait_for()
    page.get_by_text(status, exact=True).first.wait_for()
    page.wait_for_function("count => document.querySelectorAll('[data-version]').length > count", arg=len(before))
    (new,) = versions(page) - before
    return new


def versions(page: Page) -> set[str]:
    page.locator("li[data-version]").first.wait_for()
    return {str(one.get_attribute("data-version")) for one in page.locator("li[data-version]").all()}


def look_why(page: Page, version: str) -> None:
    page.get_by_label(f"Verdict on {version}").click()
    assert "fell" in page.locator("#verdict").inner_text()
    assert faults(page) == []


def go_back(page: Page, version: str) -> None:
    page.locator("#go-back:enabled").click()
    assert f"{version} is replaced by starter" in page.locator("#dialog").inner_text()
    page.locator("#dialog-yes").click()
    page.get_by_text("In use now: step 1 starter").wait_for()
