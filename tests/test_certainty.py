"""What counts as not certain; the places that ask have tests of their own."""

from typing import Any

import pytest

from lib.certainty import is_doubtful


@pytest.mark.parametrize(
    ("known", "doubtful"),
    [
        pytest.param({"confident": False}, True, id="abstained"),
        pytest.param({"confident": True}, False, id="certain"),
        pytest.param({"confident": None}, False, id="iterative"),
        pytest.param({}, False, id="no numbering"),
        pytest.param(None, False, id="no report"),
    ],
)
def test_what_is_doubtful(known: dict[str, Any] | None, doubtful: bool) -> None:
    assert is_doubtful(known) is doubtful
