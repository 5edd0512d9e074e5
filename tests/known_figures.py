"""Compare figures with those that were true when somebody last looked at them.

If a change is intended, run the test with RENEW_FIGURES=1 in the environment, look at what has changed, and measure
again what the pages say about it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

KNOWN = Path(__file__).parent / "known"


def require_known(name: str, figures: Mapping[str, Sequence[float]], *, rel: float, abs: float) -> None:
    """Fail if figures differ from the known ones.

    Args:
        name: Name of the file in ``KNOWN``, without its ending.
        figures: What is measured -> its figures.
        rel: Relative difference that is allowed, because processors and versions of libraries round differently.
        abs: The same as an absolute difference; the larger one counts.
    """
    file = KNOWN / f"{name}.json"
    if os.environ.get("RENEW_FIGURES"):
        lines = (
            f" {json.dumps(what)}: {json.dumps([float(f'{v:.5g}') for v in values])}"
            for what, values in figures.items()
        )
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    known = json.loads(file.read_text(encoding="utf-8"))
    assert figures.keys() == known.keys()
    for what, values in known.items():
        assert figures[what] == pytest.approx(values, rel=rel, abs=abs), what
