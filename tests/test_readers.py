"""Tests of comparing the labels of several readers with each other, and with the results that they corrected."""

from pathlib import Path

import pytest

from test_untouched import EVERY, TRUTH, edited, submitted
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.worklist.readers import agreements, corrected


def test_two_readers_of_one_scan_are_compared_by_outline_and_name(tmp_path: Path) -> None:
    submitted(tmp_path, edited(0.5), reader="ben")
    submitted(tmp_path, edited(0.2), reader="cai")
    assert {one["reader"] for one in agreements(CorrectionStore(tmp_path), "img")} == {"ben"}
    submitted(tmp_path, TRUTH, reader="ada")
    newest, oldest = agreements(CorrectionStore(tmp_path), "img")
    assert (newest["reader"], oldest["reader"]) == ("cai", "ben")
    assert (newest["named"], newest["dice"]["L4"]) == ({}, 1)
    assert newest["dice"]["L3"] == pytest.approx(2 * 0.8 / 1.8, abs=0.01)
    assert oldest["dice"]["L3"] == pytest.approx(2 * 0.5 / 1.5, abs=0.01)


def test_two_readers_who_name_the_levels_otherwise_are_told_how(tmp_path: Path) -> None:
    submitted(tmp_path, TRUTH, reader="ben")
    # The other levels follow.
    submitted(tmp_path, TRUTH, {"L5": "L6"}, reader="ada")
    (found,) = agreements(CorrectionStore(tmp_path), "img")
    assert (found["named"]["L6"], found["named"]["L4"]) == ("L5", "L3")
    assert (found["dice"]["L6"], found["dice"]["canal"]) == (0, 1)


def test_a_reader_is_not_compared_with_an_earlier_label_or_with_one_taken_back(tmp_path: Path) -> None:
    taken_back = submitted(tmp_path, edited(0.5), reader="ben")
    submitted(tmp_path, edited(0.3), reader="ada")
    submitted(tmp_path, TRUTH, reader="ada")
    store = CorrectionStore(tmp_path)
    assert [one["reader"] for one in agreements(store, "img")] == ["ben"]
    store.withdrawals.add("img", taken_back.id, "ben")
    assert agreements(store, "img") == []


def test_what_a_reader_did_not_check_is_compared_with_nothing(tmp_path: Path) -> None:
    submitted(tmp_path, TRUTH, reader="ben", unreviewed=["L3"])
    submitted(tmp_path, edited(0.5), reader="ada")
    (found,) = agreements(CorrectionStore(tmp_path), "img")
    assert "L3" not in found["dice"]
    assert found["dice"]["L4"] == 1


def test_corrections_are_counted_by_structure_month_and_reader(tmp_path: Path) -> None:
    first = submitted(tmp_path, edited(0.2), reader="ben")
    submitted(tmp_path, TRUTH, {"L5": "L6"}, reader="ada")
    found = corrected(CorrectionStore(tmp_path))
    month = first.received[:7]
    assert found["months"] == [month]
    known = {one["name"]: one["months"][month] for one in found["structures"]}
    places = [name for name in known if name.startswith("L") and "-" not in name]
    assert places == sorted(places)
    assert known["canal"] == {"structures": 2, "corrected": 0, "dice": 1}
    assert known["L3"] == {"structures": 2, "corrected": 2, "dice": pytest.approx(2 * 0.8 / 1.8 / 2, abs=0.01)}
    # Right in ben's label; ada says that it is L6, which the result does not have.
    assert known["L5"] == {"structures": 2, "corrected": 1, "dice": 0.5}
    assert known["L6"] == {"structures": 1, "corrected": 1, "dice": 0}
    ada, ben = found["readers"]
    stay = known.keys() & {"canal", "cord", "sacrum", "L5-S"}
    assert (ada["reader"], ada["labels"], ada["corrected"]) == ("ada", 1, len(known) - len(stay))
    assert (ben["reader"], ben["structures"], ben["corrected"]) == ("ben", len(EVERY), 1)


def test_a_structure_that_a_reader_accepted_as_it_was_is_not_counted_as_corrected(tmp_path: Path) -> None:
    """Checked structures are not listed as left as predicted, although nobody changed them."""
    record = submitted(tmp_path, TRUTH, accepted="all")
    assert record.untouched == ()
    (reader,) = corrected(CorrectionStore(tmp_path))["readers"]
    assert (reader["corrected"], reader["dice"]) == (0, 1)
