"""Test of the lab's page in a real browser, in front of a real Orthanc."""

import signal
from pathlib import Path

import psutil
import pytest

from pacs_serving import pacs_server
from page_faults import faults
from test_lab_browser import SIZE
from totalspineseg_server.corrections.correction_store import CorrectionStore
from viewer import WAIT_MS, window

pytestmark = [
    pytest.mark.ohif,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def orthanc() -> psutil.Process:
    """The Orthanc of this test."""
    (found,) = (one for one in psutil.Process().children(recursive=True) if one.name().startswith("Orthanc"))
    return found


def test_studies_of_a_pacs_are_predicted_accepted_and_opened_in_ohif(tmp_path: Path) -> None:
    with pacs_server(tmp_path, ("Alpha", "Beta")) as server, window(SIZE) as page:
        first, second = server.studies
        page.set_default_timeout(WAIT_MS)
        page.goto(server.url)
        page.fill("#name", "ada")
        page.locator("#name").press("Enter")
        # Not the UID of a series, which tells nobody anything.
        page.get_by_text("T2 sagittal, patient P1, 2026-01-01").first.wait_for()
        assert page.locator("tr[data-scan]").count() == 2, "localizers are left out"
        page.get_by_role("button", name="Predict these (2)").click()
        for study in (first, second):
            page.locator(f"tr[data-scan='{study.series}'] .predicted").wait_for()
        page.locator("tr[data-scan] img[src^=blob]").nth(1).wait_for()
        assert faults(page) == []
        with page.expect_popup() as opened:
            page.get_by_role("link", name="In OHIF").click()
        opened.value.set_default_timeout(WAIT_MS)
        opened.value.get_by_text("Options / Configurations").wait_for()
        assert first.uid in opened.value.url
        opened.value.close()

        page.get_by_role("link", name="T2 sagittal, patient P1").first.click()
        page.locator("canvas[data-ready=true]").wait_for()
        page.keyboard.press("a")
        page.get_by_text("Accepted as it is").wait_for()
        (accepted,) = CorrectionStore(server.work).of_image(first.series)
        assert (accepted.unchanged, accepted.client) == (True, "ada")

        frozen = orthanc()
        frozen.send_signal(signal.SIGSTOP)
        try:
            page.goto(f"{server.url}/#/learning")
            page.locator("#start-training").wait_for()
            page.goto(f"{server.url}/#/worklist")
            page.locator(f"tr[data-scan='{first.series}'] .finished").wait_for()
        finally:
            frozen.send_signal(signal.SIGCONT)
