"""Use OHIF in a headless Chromium as an annotator does."""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

WAIT_MS = 300_000
"""A viewer that needs half a minute on a quiet machine needs minutes on a busy one."""
ATTEMPTS = 5
"""How often a menu is opened that closes before the click arrives, on a busy machine."""
SIZE = {"width": 1400, "height": 900}
FLAGS = (
    "--no-sandbox",  # Chromium refuses to run as root with it, and tests run so in containers
    "--use-gl=angle",
    "--use-angle=swiftshader",  # draws without a graphics card
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
BOX = """([view, low, high]) => {
  const viewport = window.cornerstone.getRenderingEngines()[0].getViewport(view);
  const [a, b] = [low, high].map(point => viewport.worldToCanvas(point));
  const frame = viewport.canvas.getBoundingClientRect();
  return [frame.x + Math.min(a[0], b[0]), frame.y + Math.min(a[1], b[1]),
          frame.x + Math.max(a[0], b[0]), frame.y + Math.max(a[1], b[1])];
}"""
COUNTS = """() => {
  const service = window.services.segmentationService;
  const data = service.getLabelmapVolume('1').voxelManager.getCompleteScalarDataArray();
  const counts = {};
  for (const value of data) {
    if (value) { counts[value] = (counts[value] || 0) + 1; }
  }
  const segments = service.getSegmentation('1').segments;
  return Object.fromEntries(Object.entries(counts).map(([value, count]) => [segments[value].label, count]));
}"""
SEGMENTS = """() => {
  const segments = window.services.segmentationService.getSegmentation('1').segments;
  return Object.values(segments).filter(segment => segment).map(segment => segment.label);
}"""
STROKES = 4
SAGITTAL = "mpr-sagittal"

Picture = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Rectangle:
    """A part of the page, CSS pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def cut(self, picture: Picture, margin: float = 3) -> Picture:
        """Return the part of a screenshot inside, without its outline."""
        rows = slice(round(self.top + margin), round(self.bottom - margin))
        return picture[rows, round(self.left + margin) : round(self.right - margin)]


class Viewer:
    """One browser window."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        page.set_default_timeout(WAIT_MS)
        page.set_default_navigation_timeout(WAIT_MS)
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def list_studies(self) -> list[str]:
        """Return the patients of the study list."""
        self.page.goto(f"{self.url}/ohif/")
        rows = self.page.locator("tr[data-cy], [data-cy='study-list-results'] tr").filter(has_text="Phantom")
        self.page.get_by_text("Phantom").first.wait_for()
        return [text.split("\n")[0] for text in rows.all_inner_texts()]

    def filter_by_patient(self, text: str) -> None:
        """Type into the list's first filter."""
        self.page.locator("input[id*='patientName'], input[type=text]").first.fill(text)

    def open(self, study: str) -> None:
        """Open a study in the MONAI Label mode and wait until the panel has connected by itself."""
        self.page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study}")
        self.page.get_by_text("Options / Configurations").wait_for()
        hide = self.page.get_by_text("Confirm and Hide")
        if hide.is_visible():
            # A notice may cover the button, and stays while the mouse is on it.
            hide.dispatch_event("click")

    def run(self, model: str = "totalspineseg", during: Callable[[], object] = lambda: None) -> None:
        """Run a model, do something during that, and wait for its segments."""
        self.page.locator("select.selectBox").first.select_option(model)
        self.page.locator("button[title='Run Segmentation']").click()
        during()
        self.page.get_by_text("Running Segmentation - Successful").first.wait_for()
        self.page.wait_for_function(f"() => Object.keys(({COUNTS})()).length > 0")
        self.settle()

    def voxels(self) -> Mapping[str, int]:
        """Return the number of voxels of each segment that has any, by name."""
        counts: Mapping[str, int] = self.page.evaluate(COUNTS)
        return counts

    def segments(self) -> list[str]:
        """Return the names of the segments, including empty ones."""
        names: list[str] = self.page.evaluate(SEGMENTS)
        return names

    def panel(self, name: str) -> None:
        """Show a panel on the right: "monailabel" or "panelSegmentationWithTools"."""
        self.page.locator(f"[data-cy='{name}-btn']").click()

    def export(self) -> str:
        """Export the segmentation to the PACS; return the server's message."""
        self.panel("panelSegmentationWithTools")
        box = (
            "xpath=//button[@role='combobox'][contains(.,'Segmentations')]/preceding::button[@aria-haspopup='menu'][1]"
        )
        for attempt in range(ATTEMPTS):
            self.page.locator(box).click()
            self.page.get_by_text("Export & Download").hover()
            try:
                self.page.get_by_text("Export DICOM SEG").click(timeout=20_000)
                break
            except PlaywrightTimeoutError:
                if attempt == ATTEMPTS - 1:
                    raise
                self.page.keyboard.press("Escape")
        with self.page.expect_response(lambda response: "/submissions/" in response.url) as answer:
            self.page.get_by_role("button", name="Save").click()
        message: str = answer.value.json()["message"]
        self.page.get_by_text(message).first.wait_for()
        return message

    def name_at(self, box: Rectangle) -> str:
        """Hold the mouse over the middle of a box, and return the name beside it."""
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        self.page.mouse.move(x - 2, y)
        self.page.mouse.move(x, y)
        label = self.page.locator("#totalspineseg-hover")
        label.wait_for()
        return label.inner_text()

    def rename(self, name: str, new: str) -> None:
        """Rename a segment in the panel of segments."""
        self.panel("panelSegmentationWithTools")
        row = self.page.get_by_text(name, exact=True).first
        row.hover()
        row.locator("xpath=ancestor::*[.//button[@aria-haspopup='menu']][1]").locator(
            "button[aria-haspopup='menu']"
        ).first.click()
        self.page.get_by_text("Rename").click()
        self.page.get_by_role("textbox").last.fill(new)
        self.page.get_by_role("button", name="Save").click()
        self.page.get_by_text(new, exact=True).first.wait_for()

    def erase(self, name: str, box: Rectangle) -> None:
        """Stroke with the eraser through the middle of a structure.

        The first touch of a view only makes it the active one, as with a real hand.
        """
        self.panel("panelSegmentationWithTools")
        self.page.get_by_text(name, exact=True).first.click()
        self.page.locator("[data-cy='Eraser']").first.click()
        middle, reach = (box.top + box.bottom) / 2, (box.right - box.left) / 4
        mouse, before = self.page.mouse, self.voxels()
        for _ in range(STROKES):
            self.settle()
            mouse.move(box.left + reach, middle)
            mouse.down()
            mouse.move(box.right - reach, middle, steps=10)
            mouse.up()
            self.settle()
            if self.voxels() != before:
                return
        raise AssertionError("the eraser erased nothing")

    def box(self, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], view: str = SAGITTAL) -> Rectangle:
        """Return where a box of the patient (LPS mm) is on the page."""
        return Rectangle(*self.page.evaluate(BOX, [view, low.tolist(), high.tolist()]))

    def picture(self, path: Path) -> Picture:
        """Return a screenshot (rows, columns, RGB), and write it to a file."""
        content = self.page.screenshot(path=str(path))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)

    def settle(self) -> None:
        """Wait until two screenshots in a row are the same."""
        before = b""
        while (now := self.page.screenshot()) != before:
            before = now
            self.page.wait_for_timeout(500)

    def button(self, name: str) -> Locator:
        """Return a button by its text."""
        return self.page.get_by_role("button", name=name)


@contextmanager
def browser(url: str) -> Iterator[Viewer]:
    """Open a window of the system's Chromium; see ``window``."""
    with window(SIZE) as page:
        yield Viewer(page, url)


@contextmanager
def window(size: Mapping[str, int]) -> Iterator[Page]:
    """Open a page in the system's Chromium.

    Raises:
        RuntimeError: There is none.
    """
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        raise RuntimeError("Chromium is missing. Install Debian's package chromium.")
    with sync_playwright() as playwright:
        program_window = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        try:
            yield program_window.new_page(viewport={"width": size["width"], "height": size["height"]})
        finally:
            program_window.close()


def state(page: Page) -> Any:
    """Return the viewer's notifications, for a failing test's message."""
    return page.evaluate("() => document.body.innerText.slice(-500)")
