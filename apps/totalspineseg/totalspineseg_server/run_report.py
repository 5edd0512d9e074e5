"""Make one HTML page for a run: a sortable table with thumbnails that opens from disk without other files."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from totalspineseg_server.certainty import CERTAINTIES, Certainty


@dataclass(frozen=True)
class ScanRow:
    """A line of the table.

    Attributes:
        scan: Name.
        in_view: Levels in view, such as "T11 - sacrum".
        certainty: Whether the names are certain, counted or doubtful; None if the method does not say.
        probability: Chance that all levels are right; None if the method does not say.
        warnings: Sentences.
        model: Versions of the weights.
        seconds: Duration.
        thumbnail: JPEG, base64; "" for none.
        picture: Address of the full picture relative to the page, which a click opens if it exists; "" for none.
        failure: Why there is no result; "" if there is one.
        answer: Sentence that explains ``certainty`` in a tooltip; "" for none.
    """

    scan: str
    in_view: str = ""
    certainty: Certainty | None = None
    probability: float | None = None
    warnings: tuple[str, ...] = ()
    model: str = ""
    seconds: float | None = None
    thumbnail: str = ""
    picture: str = ""
    failure: str = ""
    answer: str = ""


MAX_WARNINGS: Final = 3
"""Largest number of warnings shown in a row; more are folded, so that a row stays as high as its picture."""
HEADINGS: Final = ("Picture", "Scan", "Levels in view", "Names", "Warnings", "Seconds", "Model")

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #c62828; --unsure: #b26a00; --good: #2e7d32; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --unsure: #ffb74d; --good: #81c784; } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } p { margin: .25rem 0 1rem; max-width: 75ch; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: Canvas; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid; }
th button::after { content: " \\25B4\\25BE"; opacity: .35; }
th[aria-sort] button::after { opacity: 1; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: var(--soft); } td img { height: 180px; display: block; background: #000; cursor: zoom-in; }
td.model { white-space: pre; font-family: ui-monospace, monospace; font-size: 12px; }
td.scan { font-weight: 600; }
.bad { color: var(--bad); } .unsure { color: var(--unsure); } .good { color: var(--good); }
ul { margin: 0; padding-left: 1.1em; min-width: 26rem; }
summary { cursor: pointer; color: color-mix(in srgb, CanvasText 65%, Canvas); }
dialog { padding: 0; border: 0; background: #000; } dialog img { height: 90vh; max-width: 95vw; object-fit: contain; }
"""

_SCRIPT: Final = """
const body = document.querySelector('tbody');
for (const head of document.querySelectorAll('th')) {
  const button = head.querySelector('button');
  if (!button) continue;
  button.addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    for (const other of document.querySelectorAll('th')) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const column = head.cellIndex;
    const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
    body.append(...(up ? rows : rows.reverse()));
  });
}
const dialog = document.querySelector('dialog');
body.addEventListener('click', event => {
  if (event.target.tagName !== 'IMG') return;
  const large = dialog.querySelector('img');
  // The full picture lies beside the page; without it the small one is enlarged.
  large.onerror = () => { large.onerror = null; large.src = event.target.src; };
  large.src = event.target.dataset.full || event.target.src;
  dialog.showModal();
});
dialog.addEventListener('click', () => dialog.close());
"""


def report_html(rows: Sequence[ScanRow], *, title: str, note: str = "", warning: str = "") -> str:
    """Return the page.

    Args:
        rows: A row for each scan, in the order in which they are shown first.
        title: Heading; escaped, as all texts are.
        note: A sentence after the explanation below the heading.
        warning: A sentence shown above that; "" for none.

    Returns:
        A complete HTML document.
    """
    failed = sum(bool(row.failure) for row in rows)
    answers = Counter(row.certainty for row in rows if not row.failure)
    sure = ", ".join(f"{answers[certainty]} {certainty}" for certainty in CERTAINTIES)
    heads = "".join(
        f"<th scope=col>{heading if not k else f'<button type=button>{heading}</button>'}</th>"
        for k, heading in enumerate(HEADINGS)
    )
    body = "\n".join(_row(row) for row in rows)
    warned = f'<p class="bad" role="alert"><strong>{html.escape(warning)}</strong></p>\n' if warning else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{warned}<p>{len(rows)} scans, {failed} failed; names: {sure}. Click a heading to sort, a picture to enlarge it.
Certain: what is in view identifies the names. Counted: up from the sacrum or down from C2; nothing in view contradicts
them, but they would be wrong in people with another number of vertebrae than usual. Doubtful: something contradicts the
names, or too little is in view; such levels are striped and have a "?". {html.escape(note)}</p>
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table>
<dialog><img alt="enlarged preview"></dialog>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _row(row: ScanRow) -> str:
    name = html.escape(row.scan)
    full = f' data-full="{html.escape(row.picture)}"' if row.picture else ""
    picture = f'<img alt="{name}"{full} src="data:image/jpeg;base64,{row.thumbnail}">' if row.thumbnail else ""
    sentences = [row.failure] if row.failure else list(row.warnings)
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    kind = " class=bad" if row.failure else ""
    return (
        f"<tr><td>{picture}</td><td class=scan>{name}</td><td>{html.escape(row.in_view)}</td>"
        f"{_confidence(row)}<td{kind} data-key={len(sentences)}>{_sentences(sentences)}</td>"
        f'<td data-key="{seconds}">{seconds}</td><td class=model>{html.escape(row.model)}</td></tr>'
    )


def _sentences(sentences: Sequence[str]) -> str:
    """Return a list of sentences with capital letters; those beyond the limit are folded."""
    items = [f"<li>{html.escape(s[:1].upper() + s[1:])}</li>" for s in sentences]
    visible, folded = items[:MAX_WARNINGS], items[MAX_WARNINGS:]
    if len(folded) == 1:
        visible, folded = items, []
    more = f"<details><summary>{len(folded)} more</summary><ul>{''.join(folded)}</ul></details>" if folded else ""
    return f"<ul>{''.join(visible)}</ul>{more}" if visible else ""


def _confidence(row: ScanRow) -> str:
    """Return the cell of the certainty, with a key that sorts failed scans first, then doubtful, counted and certain
    ones.
    """
    if row.failure:
        return '<td class=bad data-key="-1">failed</td>'
    if row.certainty is None or row.probability is None:
        return '<td data-key="4">not stated</td>'
    rank = len(CERTAINTIES) - 1 - CERTAINTIES.index(row.certainty)
    kind = "unsure" if row.certainty == "doubtful" else "good"
    answer = f' title="{html.escape(row.answer)}"' if row.answer else ""
    return f'<td class={kind} data-key="{rank + row.probability / 2:.4f}"{answer}>{row.certainty}</td>'
