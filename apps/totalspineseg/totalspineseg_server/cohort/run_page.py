"""Make one HTML page for a run that opens from disk without other files."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from totalspineseg_server.trust import CERTAINTIES, Certainty


@dataclass(frozen=True)
class ScanRow:
    """One scan of the page.

    Attributes:
        scan: Name.
        in_view: Levels in view, such as "T11 - sacrum".
        certainty: Whether the names are certain, counted or doubtful; None if the method does not report it.
        probability: Chance that all levels are right; None as above.
        warnings: Sentences.
        model: Versions of the weights.
        seconds: Duration.
        sheet: SVG document of ``preview.sheet_svg``; "" for none.
        picture: Address of the full picture relative to the page; "" for none.
        failure: Why there is no result; "" if there is one.
        answer: Sentence that explains ``certainty``; "" for none.
    """

    scan: str
    in_view: str = ""
    certainty: Certainty | None = None
    probability: float | None = None
    warnings: tuple[str, ...] = ()
    model: str = ""
    seconds: float | None = None
    sheet: str = ""
    picture: str = ""
    failure: str = ""
    answer: str = ""

    @property
    def urgency(self) -> float:
        """How soon somebody should look: failed scans first (4 and more), then doubtful ones (3), then by findings."""
        if self.failure:
            return 4.0
        doubt = 0.0 if self.probability is None else 1 - self.probability
        if self.certainty == "doubtful":
            return 3 + doubt
        findings = len(self.warnings)
        return findings / (findings + 1) + (0.5 if self.certainty == "counted" else 0.0) + doubt / 2

    @property
    def is_to_check(self) -> bool:
        """Whether it is on the list of scans to check before anybody has looked."""
        return self.urgency >= 3


MAX_WARNINGS: Final = 6
"""Number of sentences beside a picture; the others are folded away."""
ORDERS: Final = {"urgency": "look here first", "scan": "name", "view": "levels in view", "seconds": "seconds"}
FILTERS: Final = {
    "": "all scans",
    "check": "to check",
    "failed": "failed",
    "doubtful": "doubtful",
    "counted": "counted",
    "certain": "certain",
}
KEYS: Final = (
    ("j k", "next, previous scan"),
    ("b", "labels off and on"),
    ("c", "to check or not"),
    ("n", "note"),
    ("Enter", "enlarge"),
    ("e", "save the list"),
)


def report_html(rows: Sequence[ScanRow], *, title: str, note: str = "", warning: str = "") -> str:
    """Return the page, with the scans that most need a look at the top.

    Args:
        rows: One for each scan, in any order.
        title: Heading; escaped, as all texts are.
        note: A sentence below the heading.
        warning: Another sentence, shown above it; "" for none.

    Returns:
        A complete HTML document.
    """
    failed = sum(bool(row.failure) for row in rows)
    answers = Counter(row.certainty for row in rows if not row.failure)
    sure = ", ".join(f"{answers[certainty]} {certainty}" for certainty in CERTAINTIES)
    body = "\n".join(_card(row) for row in sorted(rows, key=lambda row: (-row.urgency, row.scan)))
    warned = f'<p class="bad" role="alert"><strong>{html.escape(warning)}</strong></p>\n' if warning else ""
    keys = " ".join(f"<kbd>{html.escape(key)}</kbd> {what}" for key, what in KEYS)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_file("report.css")}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
{warned}<p>{len(rows)} scans, {failed} failed; names: {sure}. {html.escape(note)}</p>
<details><summary>What the colors and words mean</summary>
<p>Certain: what is in view identifies the names. Counted: up from the sacrum or down from C2; nothing in view
contradicts them, but they would be wrong in people with an unusual number of vertebrae. Doubtful: something
contradicts the names, or too little is in view; such levels are striped and have a "?". The small pictures are
cross-sections of the canal, one through each level, {CUT_MM} mm wide, with the patient's right (R) on the left. They
show whether the canal is as wide as the sac, which the sagittal picture does not.</p></details>
</header>
<form id="bar">
<label>Order <select id="order">{_options(ORDERS)}</select></label>
<label>Show <select id="shown">{_options(FILTERS)}</select></label>
<label>Search <input type="search" id="search" size="14"></label>
<button type="button" id="blink" aria-pressed="false">Labels off</button>
<button type="button" id="save">Save the list</button>
<span id="count" role="status"></span>
</form>
<p class="soft">{keys}</p>
<main>
{body}
</main>
<dialog aria-label="Enlarged picture"></dialog>
<script>{_file("report.js")}</script>
</body>
</html>
"""


CUT_MM: Final = 76
"""Width of an axial cut, see ``preview.axial``."""


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _options(words: dict[str, str]) -> str:
    return "".join(f'<option value="{value}">{text}</option>' for value, text in words.items())


def _card(row: ScanRow) -> str:
    name = html.escape(row.scan)
    answer = "failed" if row.failure else row.certainty or "not stated"
    kind = {"failed": "bad", "doubtful": "unsure", "not stated": "soft"}.get(answer, "good")
    sentences = [row.failure] if row.failure else list(row.warnings)
    facts = [
        f"Levels in view: {html.escape(row.in_view)}" if row.in_view else "",
        f"Chance that all names are right: {row.probability:.0%}" if row.probability is not None else "",
        f"{row.seconds:.1f} s" if row.seconds is not None else "",
        f"Weights: {html.escape(', '.join(row.model.splitlines()))}" if row.model else "",
        f'<a href="{html.escape(row.picture)}" target="_blank">Larger picture</a>' if row.picture else "",
    ]
    listed = "".join(f"<div>{fact}</div>" for fact in facts if fact)
    described = html.escape(row.answer) + ("." if row.answer and not row.answer.endswith(".") else "")
    checked = " checked" if row.is_to_check else ""
    picture = row.sheet or '<p class="soft">There is no picture.</p>'
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return (
        f'<article tabindex="-1" aria-label="{name}" data-scan="{name}" data-urgency="{row.urgency:.4f}" '
        f'data-view="{html.escape(row.in_view)}" data-seconds="{seconds}" data-names="{answer}">'
        f'<div class="sheet">{picture}</div><div class="about"><h2>{name}</h2>'
        f'<p><span class="tag {kind}">{answer}</span> {described}</p>{_sentences(sentences)}'
        f'<p><label><input type="checkbox"{checked}> To check</label></p>'
        f'<p><label>Note <input type="text" maxlength="300"></label></p>'
        f'<div class="soft">{listed}</div></div></article>'
    )


def _sentences(sentences: Sequence[str]) -> str:
    """Return a list of sentences that begin with capital letters; those beyond the limit are folded away."""
    items = [f"<li>{html.escape(s[:1].upper() + s[1:])}</li>" for s in sentences]
    visible, folded = items[:MAX_WARNINGS], items[MAX_WARNINGS:]
    if len(folded) == 1:
        visible, folded = items, []
    more = f"<details><summary>{len(folded)} more</summary><ul>{''.join(folded)}</ul></details>" if folded else ""
    return f'<ul class="reasons">{"".join(visible)}</ul>{more}' if visible else ""
