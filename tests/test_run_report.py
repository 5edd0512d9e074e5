"""Tests of the HTML page of a run: well-formed, escaped, sortable."""

from html.parser import HTMLParser

import pytest

from totalspineseg_server.run_report import HEADINGS, ScanRow, report_html

VOID = {"meta", "img"}
ROWS = [
    ScanRow("sub-01", "T11 - sacrum", "certain", 0.99, (), "starter-1", 12.34, "QUJD"),
    ScanRow("sub-02", "C2 - T4", "doubtful", 0.61, ("send a localizer", "L6?"), "starter-1", 2.0, "REVG"),
    ScanRow("sub-03", failure="an image is required"),
    ScanRow('<script>"x"</script>', "L1", None, None),
]


class Cells(HTMLParser):
    """Collects the table and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append({"text": "", **{k: v or "" for k, v in attrs}})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1]["text"] += data


@pytest.fixture
def cells() -> list[list[dict[str, str]]]:
    parser = Cells()
    parser.feed(report_html(ROWS, title="a & b", note="Not <validated>."))
    assert parser.open == []
    return [row for row in parser.rows if row]


def test_one_row_per_scan_with_all_columns(cells: list[list[dict[str, str]]]) -> None:
    assert [len(row) for row in cells] == [len(HEADINGS)] * 4
    assert [row[1]["text"] for row in cells] == [row.scan for row in ROWS]


def test_names_from_files_are_no_markup() -> None:
    page = report_html(ROWS, title="a & b", note="Not <validated>.")
    assert page.count("<script>") == 1
    assert "a &amp; b" in page
    assert "Not &lt;validated&gt;." in page


def test_confidence_sorts_failed_then_doubtful_then_certain(cells: list[list[dict[str, str]]]) -> None:
    keys = [float(row[3]["data-key"]) for row in cells]
    assert sorted(range(4), key=lambda k: keys[k]) == [2, 1, 0, 3]
    assert cells[1][3]["text"] == "doubtful"
    assert cells[2][4]["text"] == "An image is required"
    assert cells[1][4]["data-key"] == "2"


def test_the_page_counts() -> None:
    assert "4 scans, 1 failed; names: 1 certain, 0 counted, 1 doubtful" in report_html(ROWS, title="t")
    assert "0 scans" in report_html([], title="t")


def test_a_warning_stands_before_everything_else() -> None:
    """A report of the starter weights did not say on its first screen that they are not for patients."""
    page = report_html(ROWS, title="t", warning="Not for <patients>.")
    assert page.index("Not for &lt;patients&gt;.") < page.index("4 scans")
    assert 'role="alert"' not in report_html(ROWS, title="t")
