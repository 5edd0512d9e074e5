"""Tests of the page of a run in Chromium: opened from disk, looked through by keys, and its list taken along."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from page_faults import faults
from phantom import RAS, image_of, lumbar_codes
from totalspineseg_server.cohort.run_page import ScanRow, report_html
from totalspineseg_server.geometry import Volume
from totalspineseg_server.preview import course_of, sheet_svg
from viewer import window

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
CODES = lumbar_codes()
VOLUME = Volume(image_of(CODES), RAS.affine)
SHEET = sheet_svg(VOLUME, CODES, course_of(CODES, VOLUME.grid))
REASONS = tuple(f"{letter} is odd" for letter in "abcdefgh")
ROWS = [
    ScanRow("scan 10", "L1 - L5", "certain", 0.999, REASONS, "starter-1", 9.5, SHEET, "preview/none.jpg"),
    ScanRow("scan 2", "C1 - T7", "doubtful", 0.61, ('a, "b"',), "starter-1", 12.0, SHEET),
    ScanRow("scan 1", failure="an image is required"),
    ScanRow("scan 3", "T4", None, None, (), "starter-2", 100.0, SHEET),
]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The report, opened from disk with no server."""
    (tmp_path / "report.html").write_text(report_html(ROWS, title="run"), encoding="utf-8")
    with window({"width": 1366, "height": 768}) as opened:
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: asked.append(str(error)))
        opened.goto((tmp_path / "report.html").as_uri())
        yield opened
        others = [url for url in asked if not url.startswith(("data:", "blob:"))]
        assert set(others) == {(tmp_path / "report.html").as_uri()}


def names(page: Page) -> list[str]:
    return page.locator("article:visible h2").all_text_contents()


def colors(page: Page) -> int:
    """How colorful the second card's picture is."""
    pixels = page.locator("article[data-scan='scan 2'] svg").screenshot()
    rgb = np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB"), np.int16)
    return int((np.ptp(rgb, axis=-1) > 40).sum())


def test_a_reader_goes_through_a_run_by_keys_and_takes_the_list_along(page: Page, tmp_path: Path) -> None:
    assert names(page) == ["scan 1", "scan 2", "scan 10", "scan 3"]
    assert "2 to check" in page.locator("#count").inner_text()
    keys = page.keyboard
    keys.press("j")
    keys.press("j")
    assert page.evaluate("document.activeElement.dataset.scan") == "scan 2"
    before = colors(page)
    keys.press("b")
    assert colors(page) < before / 4
    keys.press("b")
    assert colors(page) == before
    keys.press("Enter")
    assert page.locator("dialog svg").is_visible()
    keys.press("Escape")
    keys.press("n")
    keys.type("canal is narrow")
    keys.press("Escape")
    keys.press("j")
    keys.press("c")
    assert "3 to check" in page.locator("#count").inner_text()
    with page.expect_download() as taken:
        keys.press("e")
    file = tmp_path / "list.csv"
    taken.value.save_as(file)
    with file.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["scan"] for line in lines] == ["scan 1", "scan 2", "scan 10"]
    assert (lines[1]["note"], lines[1]["reasons"]) == ("canal is narrow", 'A, "b"')


def test_a_page_opened_again_knows_what_was_marked(page: Page) -> None:
    page.locator("article[data-scan='scan 3'] input[type=checkbox]").check()
    page.reload()
    assert page.locator("article[data-scan='scan 3'] input[type=checkbox]").is_checked()


def test_scans_are_ordered_searched_and_filtered(page: Page) -> None:
    page.get_by_label("Order").select_option("scan")
    assert names(page) == ["scan 1", "scan 2", "scan 3", "scan 10"]
    page.get_by_label("Order").select_option("seconds")
    assert names(page)[0] == "scan 3"
    page.get_by_label("Show").select_option("check")
    assert sorted(names(page)) == ["scan 1", "scan 2"]
    page.get_by_label("Show").select_option("")
    page.get_by_label("Search").fill("odd")
    assert names(page) == ["scan 10"]
    assert page.locator("article:visible details summary").text_content() == "2 more"


def test_the_report_can_be_used_by_everybody_in_both_colors(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
        assert faults(page) == []
