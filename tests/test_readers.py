"""Tests of comparing the labels of several readers with each other, and with the results that they corrected."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from test_untouched import EVERY, GRID, L3, L4, TRUTH, edited, inbox_of, submitted
from totalspineseg_server.anatomy import UNREVIEWED
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.receipts import Sender
from totalspineseg_server.errors import ConflictError, LabelError
from totalspineseg_server.worklist.choice import Choice, choose
from totalspineseg_server.worklist.readers import agreements, corrected

CHIEF = Sender("chief", "chief", "lab-page.nii.gz")


def chosen(root: Path, choice: Choice) -> Correction:
    """What becomes of a choice of an administrator."""
    return choose(CorrectionStore(root), inbox_of(root).submit, "img", GRID, choice, CHIEF)


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


def test_differently_named_levels_of_two_readers_are_listed(tmp_path: Path) -> None:
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


def test_what_a_reader_did_not_check_is_not_compared(tmp_path: Path) -> None:
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


def test_the_label_that_was_chosen_counts_and_the_others_can_still_be(tmp_path: Path) -> None:
    """The newest label always trained, whatever an administrator thought of it."""
    ben = submitted(tmp_path, edited(0.5), reader="ben", accepted=["L4"])
    submitted(tmp_path, TRUTH, reader="ada")
    record, store = chosen(tmp_path, Choice(ben.id)), CorrectionStore(tmp_path)
    assert store.latest_accepted("img") == record
    assert (record.reader, record.chosen, record.prediction) == ("chief", (ben.id,), ben.prediction)
    np.testing.assert_array_equal(store.codes(record), store.codes(ben))
    assert (set(record.untouched), record.present) == (EVERY - {L3, L4}, ben.present)
    assert {one["reader"]: one["mean"] == 1 for one in agreements(store, "img")} == {"ben": True, "ada": False}
    assert {one["reader"] for one in corrected(store)["readers"]} == {"ben", "ada"}
    submitted(tmp_path, edited(0.2), reader="ben")
    assert {one["reader"] for one in agreements(store, "img")} == {"ada"}


def test_what_was_left_as_predicted_stays_so_when_it_is_chosen_later(tmp_path: Path) -> None:
    """Once the maps of the prediction were deleted, a chosen label counted as drawn from end to end."""
    ben = submitted(tmp_path, edited(0.5), reader="ben")
    submitted(tmp_path, TRUTH, reader="ada")
    inbox = inbox_of(tmp_path)
    shutil.rmtree(tmp_path / "maps")
    record = choose(CorrectionStore(tmp_path), inbox.submit, "img", GRID, Choice(ben.id), CHIEF)
    assert (record.untouched, record.renamed, record.prediction) == (ben.untouched, ben.renamed, ben.prediction)


def test_a_result_that_was_accepted_unchanged_stays_one_when_it_is_chosen(tmp_path: Path) -> None:
    accepted = submitted(tmp_path, TRUTH, reader="ben", accepted="all", unchanged=True)
    submitted(tmp_path, edited(0.5), reader="ada")
    record = chosen(tmp_path, Choice(accepted.id))
    assert (accepted.unchanged, record.unchanged, record.untouched) == (True, True, ())


def test_a_structure_of_another_reader_is_merged_into_the_label(tmp_path: Path) -> None:
    ben, store = submitted(tmp_path, edited(0.5), reader="ben"), CorrectionStore(tmp_path)
    without_l4 = np.where(TRUTH == L4, 0, TRUTH).astype(np.uint8)
    ada = submitted(tmp_path, without_l4, reader="ada")
    record = chosen(tmp_path, Choice(ben.id, {"L3": ada.id}))
    np.testing.assert_array_equal(store.codes(record), TRUTH)
    assert record.chosen == (ben.id, ada.id)
    with pytest.raises(LabelError, match="'L4' is not in"):
        chosen(tmp_path, Choice(ben.id, {"L4": ada.id}))
    with pytest.raises(ConflictError, match="'nothing'"):
        chosen(tmp_path, Choice("nothing"))


def test_a_choice_confirms_no_name_that_its_reader_left_in_doubt(tmp_path: Path) -> None:
    """A chosen or merged label lost the marks of doubt, and was used for training under names that nobody confirmed."""
    ben = submitted(tmp_path, TRUTH, reader="ben", names={"L3": "L3 ?", "L4": "L4 ?"})
    ada = submitted(tmp_path, TRUTH, reader="ada")
    assert (ben.unconfirmed, ada.unconfirmed) == ((L3, L4), ())
    assert chosen(tmp_path, Choice(ben.id)).unconfirmed == (L3, L4)
    assert chosen(tmp_path, Choice(ben.id, {"L3": ada.id})).unconfirmed == (L4,)
    assert chosen(tmp_path, Choice(ada.id, {"L3": ben.id})).unconfirmed == (L3,)


def test_what_two_readers_draw_differently_is_left_out_of_training(tmp_path: Path) -> None:
    ben, store = submitted(tmp_path, edited(0.5), reader="ben"), CorrectionStore(tmp_path)
    ada = submitted(tmp_path, TRUTH, reader="ada")
    record = chosen(tmp_path, Choice(ada.id, leave_out=(ben.id,)))
    codes = store.codes(record)
    np.testing.assert_array_equal(codes == UNREVIEWED, edited(0.5) != TRUTH)
    np.testing.assert_array_equal(codes[codes != UNREVIEWED], TRUTH[edited(0.5) == TRUTH])
    assert L3 in record.present
