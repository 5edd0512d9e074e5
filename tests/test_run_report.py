"""Tests of the HTML page of a run: well-formed, escaped, in the order to look, and small."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import ndimage

from block_spines import block_spine
from totalspineseg_server.cohort.run_page import ScanRow, report_html
from totalspineseg_server.geometry import Volume
from totalspineseg_server.preview import course_of, sheet_svg

VOID = {"meta", "input"}
ROWS = [
    ScanRow("sub-01", "T11 - sacrum", "certain", 0.99, (), "starter-1", 12.34, "<svg></svg>"),
    ScanRow("sub-02", "C2 - T4", "doubtful", 0.61, ("send a localizer", "L6?"), "starter-1", 2.0),
    ScanRow("sub-03", failure="an image is required"),
    ScanRow('<script>"x"</script>', "L1", None, None),
    ScanRow("sub-05", "L1 - L5", "counted", 0.97, ("a fragment",)),
]
SCANS, MOST_BYTES = 100, 10_000_000
"""A fifth of what a page may hold that is sent by mail, and opens: 500 scans in 50 MB."""


class Cards(HTMLParser):
    """Collects the scans and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scans: list[str] = []
        self.checked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        known = dict(attrs)
        if tag == "article":
            self.scans.append(known["data-scan"] or "")
        if tag == "input" and "checked" in known:
            self.checked.append(self.scans[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def cards() -> Cards:
    parser = Cards()
    parser.feed(report_html(ROWS, title="a & b", note="Not <validated>."))
    assert parser.open == []
    return parser


def test_what_failed_or_is_doubtful_comes_first_and_is_to_be_checked() -> None:
    found = cards()
    assert found.scans == ["sub-03", "sub-02", "sub-05", "sub-01", '<script>"x"</script>']
    assert found.checked == ["sub-03", "sub-02"]


def test_names_from_files_are_not_markup() -> None:
    page = report_html(ROWS, title="a & b", note="Not <validated>.")
    assert page.count("<script>") == 1
    assert "a &amp; b" in page
    assert "Not &lt;validated&gt;." in page


def test_the_page_counts() -> None:
    assert "5 scans, 1 failed; names: 1 certain, 1 counted, 1 doubtful" in report_html(ROWS, title="t")
    assert "0 scans" in report_html([], title="t")


def test_a_warning_stands_before_everything_else() -> None:
    """A report of the starter weights did not say on its first screen that they are not for patients."""
    page = report_html(ROWS, title="t", warning="Not for <patients>.")
    assert page.index("Not for &lt;patients&gt;.") < page.index("5 scans")
    assert 'role="alert"' not in report_html(ROWS, title="t")


def noisy_sheet() -> str:
    """The sheet of a whole spine with as much noise as a bad scan has."""
    codes = np.pad(block_spine("C1", "S").repeat(2, 0).repeat(2, 1), ((20, 20), (10, 30), (20, 20)))
    noise = np.random.default_rng(0).normal(0, 15, codes.shape)
    data = ndimage.gaussian_filter(codes.astype(np.float32), 1) + noise.astype(np.float32)
    volume = Volume(data, np.diag([0.8, 0.8, 1, 1]))
    return sheet_svg(volume, codes, course_of(codes, volume.grid), doubtful=np.unique(codes[codes > 0]).tolist())


@pytest.mark.slow
def test_a_page_of_100_noisy_whole_spines_stays_below_10_mb() -> None:
    sheet = noisy_sheet()
    names = re.findall(r">([CTL]\d+) \?<", sheet)
    assert len(set(names)) == 24
    warnings = tuple(f"A piece segmented as a disc ({k} voxels) fits no level and was left out." for k in range(10))
    rows = [ScanRow(f"sub-{k:04d}", "C1 - S", "doubtful", 0.5, warnings, "v", 20, sheet) for k in range(SCANS)]
    page = report_html(rows, title="t").encode()
    assert len(page) < MOST_BYTES
    assert page.count(b"data:image/webp") == 2 * SCANS
