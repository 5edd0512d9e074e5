"""Tests of the three answers about names, and of what depends on them."""

from typing import Any

import pytest

from totalspineseg_server.trust import certainty_of, is_doubtful, proves_nothing


@pytest.mark.parametrize(
    ("known", "certainty", "doubtful", "useless"),
    [
        pytest.param({"certainty": "certain", "confident": True}, "certain", False, False, id="certain"),
        pytest.param({"certainty": "counted", "confident": False}, "counted", False, True, id="counted"),
        pytest.param({"certainty": "doubtful", "confident": False}, "doubtful", True, True, id="doubtful"),
        pytest.param({"confident": False}, "doubtful", True, True, id="written before, abstained"),
        pytest.param({"confident": True}, "certain", False, False, id="written before, certain"),
        pytest.param({"certainty": None, "confident": None}, None, False, False, id="iterative"),
        pytest.param({}, None, False, False, id="no numbering"),
        pytest.param(None, None, False, False, id="no report"),
    ],
)
def test_what_an_answer_is_good_for(
    known: dict[str, Any] | None, certainty: str | None, doubtful: bool, useless: bool
) -> None:
    assert (certainty_of(known), is_doubtful(known), proves_nothing(known)) == (certainty, doubtful, useless)
