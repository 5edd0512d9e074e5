"""Tests of the page of a run in Chromium: sorting, folding, enlarging."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from totalspineseg_server.run_report import HEADINGS, ScanRow, report_html

ROWS = [
    ScanRow("scan 10", "L1 - L5", "certain", 0.999, tuple("abcde"), "starter-1", 9.5, "QUJD", "preview/none.jpg"),
    ScanRow("scan 2", "C1 - T7", "doubtful", 0.61, ("a",), "starter-1", 12.0, "REVG"),
    ScanRow("scan 1", failure="an image is required"),
    ScanRow("scan 3", "T4", None, None, (), "starter-2", 100.0),
]
PROBE = """
<script>
const names = () => [...document.querySelectorAll('td.scan')].map(cell => cell.textContent);
const found = { before: names() };
for (const head of document.querySelectorAll('th')) {
  const button = head.querySelector('button');
  if (!button) continue;
  button.click();
  const up = names();
  button.click();
  found[head.textContent] = [up, names(), head.getAttribute('aria-sort')];
}
document.querySelector('td img').click();
found.open = document.querySelector('dialog').open;
found.full = document.querySelector('dialog img').src.endsWith('preview/none.jpg');
found.folded = document.querySelector('summary').textContent;
setTimeout(() => {
  // The full picture does not exist here.
  found.small = document.querySelector('dialog img').src.startsWith('data:');
  const note = document.createElement('pre');
  note.id = 'found';
  note.textContent = JSON.stringify(found);
  document.body.append(note);
}, 1000);
</script>
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a reader sees who clicks everything."""
    folder: Path = tmp_path_factory.mktemp("page")
    page = report_html(ROWS, title="run").replace("</body>", f"{PROBE}</body>")
    (folder / "report.html").write_text(page, encoding="utf-8")
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    words += [f"--user-data-dir={folder / 'profile'}", (folder / "report.html").as_uri()]
    dumped = subprocess.run(words, capture_output=True, encoding="utf-8", check=True, timeout=200).stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', dumped, flags=re.DOTALL)
    assert match, dumped[-2000:]
    content: dict[str, Any] = json.loads(match[1])
    return content


SORTED = {
    "Scan": ["scan 1", "scan 2", "scan 3", "scan 10"],
    "Levels in view": ["scan 1", "scan 2", "scan 10", "scan 3"],
    "Names": ["scan 1", "scan 2", "scan 10", "scan 3"],
    "Warnings": ["scan 3", "scan 2", "scan 1", "scan 10"],
    "Seconds": ["scan 1", "scan 10", "scan 2", "scan 3"],
    "Model": ["scan 1", "scan 10", "scan 2", "scan 3"],
}


@pytest.mark.browser
@pytest.mark.parametrize("heading", HEADINGS[1:])
def test_a_click_sorts_and_another_turns_the_order(found: dict[str, Any], heading: str) -> None:
    up, down, state = found[heading]
    assert found["before"] == [row.scan for row in ROWS]
    assert up[0] == SORTED[heading][0]
    assert state == "descending"
    assert down == up[::-1]
    if heading not in ("Warnings", "Model"):  # two scans have the same
        assert up == SORTED[heading]


@pytest.mark.browser
def test_a_picture_is_enlarged_from_the_full_one_or_else_itself(found: dict[str, Any]) -> None:
    assert found["open"] is True
    assert found["full"] is True
    assert found["small"] is True


@pytest.mark.browser
def test_many_warnings_are_folded(found: dict[str, Any]) -> None:
    assert found["folded"] == "2 more"
