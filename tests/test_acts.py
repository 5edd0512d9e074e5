"""Tests of what readers decide about a scan on the lab's page: reject it, and undo their own acts but no others'."""

from dataclasses import replace
from pathlib import Path

import pytest

from test_corrections_store import SENDER, Desk
from totalspineseg_server.corrections.correction_store import Rejections
from totalspineseg_server.errors import ConflictError
from totalspineseg_server.worklist.acts import Acts
from totalspineseg_server.worklist.rows import Row

BOB = replace(SENDER, user="bob")
ROW = Row("img", "predicted", prediction="p1")


class Table:
    """A desk with the acts of its readers."""

    def __init__(self, folder: Path) -> None:
        self.desk, self.rejections = Desk(folder), Rejections(folder)
        self.acts = Acts(self.desk.inbox, self.desk.store, self.rejections)

    def labels(self) -> list[str]:
        return [correction.id for correction in self.desk.store.under("img", "final")]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def test_a_rejection_needs_a_reason_and_an_unfinished_scan(table: Table) -> None:
    with pytest.raises(ConflictError, match="reason"):
        table.acts.reject(ROW, " \n", SENDER)
    with pytest.raises(ConflictError, match="finished"):
        table.acts.reject(replace(ROW, status="finished"), "The cord is missing.", SENDER)
    assert table.rejections.latest("img") is None
    table.acts.reject(ROW, " The cord is missing. ", SENDER)
    rejection = table.rejections.latest("img")
    assert rejection is not None
    assert (rejection.reason, rejection.user, rejection.prediction) == ("The cord is missing.", "ada", "p1")


def test_nobody_but_an_administrator_undoes_what_another_reader_did(table: Table) -> None:
    """With one click on a colleague's scan his finished label was gone."""
    with pytest.raises(ConflictError, match="undo"):
        table.acts.undo(ROW, SENDER, is_admin=True)
    first, second = table.desk.submit(), table.desk.submit()
    table.acts.reject(ROW, "The cord is missing.", SENDER)
    for _ in range(2):
        with pytest.raises(ConflictError, match=f"{SENDER.client}.*administrator"):
            table.acts.undo(ROW, BOB, is_admin=False)
        assert table.labels() == [first.id, second.id]
        if table.rejections.latest("img") is not None:
            # A rejection that is newer than the label is undone first.
            table.acts.undo(ROW, SENDER, is_admin=False)
            assert (table.rejections.latest("img"), table.labels()) == (None, [first.id, second.id])
    table.acts.undo(ROW, BOB, is_admin=True)
    assert table.labels() == [first.id]
    table.acts.undo(ROW, SENDER, is_admin=False)
    assert table.labels() == []


def test_a_rejection_before_the_label_is_not_what_is_undone(table: Table) -> None:
    table.acts.reject(ROW, "The cord is missing.", BOB)
    table.desk.submit()
    table.acts.undo(ROW, SENDER, is_admin=False)
    assert table.labels() == []
    assert table.rejections.latest("img") is not None
