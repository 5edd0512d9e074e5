"""Tests of ordering scans by score: doubtful ones, certain ones, and rare levels, but never ten alike."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from test_corrections_store import Desk
from totalspineseg_server.activelearning.scores import Parts, Score
from totalspineseg_server.activelearning.selection import FinishedLevels, counts_of, rarity
from totalspineseg_server.activelearning.strategies import DoubtfulFirst, MostToLearn, Offers, SurestFirst
from totalspineseg_server.corrections import ids
from totalspineseg_server.corrections.image_records import noted_for
from totalspineseg_server.errors import LabelError

LUMBAR, NECK = (41, 42, 43, 44, 45), (11, 12, 13)


def score(image: str, doubt: float, codes: tuple[int, ...] = LUMBAR, **more: Any) -> Score:
    return Score(image, "1", "x", {}, parts=Parts(names=0.0, mirror=doubt), codes=codes, **more)


class Studies:
    def __init__(self, *images: str) -> None:
        self.images = list(images)

    def get_unlabeled_images(self) -> list[str]:
        return self.images

    def get_image_info(self, image: str) -> dict[str, Any]:
        return {}


def order(strategy: Any, studies: Studies, count: int, client: str = "ada") -> str:
    return "".join(strategy({"client_id": client}, studies)["id"] for _ in range(count))


@pytest.mark.parametrize(
    ("kind", "expected"), [(DoubtfulFirst, "fbcadeg"), (SurestFirst, "acbfdeg")], ids=["doubtful", "surest"]
)
def test_scored_scans_come_first_then_unscored_then_unreadable_ones(kind: Any, expected: str) -> None:
    known = {name: score(name, doubt) for name, doubt in {"a": 0.1, "b": 0.9, "c": 0.3}.items()}
    known["f"] = Score("f", "1", "x", {}, refused="no spine")
    known["g"] = Score("g", "1", "x", {}, refused="image")
    strategy = kind(Offers(), lambda images: {image: known[image] for image in images if image in known})
    studies = Studies(*"gfedcba")
    assert order(strategy, studies, 7) == expected
    assert order(strategy, studies, 1) == expected[0], "what was skipped comes again after all others"


@pytest.mark.parametrize("kind", [DoubtfulFirst, SurestFirst])
def test_a_site_without_scores_works_as_before(kind: Any) -> None:
    assert order(kind(Offers(), lambda images: {}), Studies("b", "c", "a"), 4) == "abca"


@pytest.mark.parametrize("kind", [DoubtfulFirst, SurestFirst])
def test_two_readers_get_different_scans_by_score(kind: Any) -> None:
    strategy = kind(Offers(), lambda images: {image: score(image, 0.5) for image in images})
    studies = Studies("b", "c", "a")
    assert order(strategy, studies, 1, "ada") + order(strategy, studies, 1, "bob") == "ab"


def test_each_record_is_read_once_however_often_a_scan_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Next Sample read the records of all finished labels, and in this order twice."""
    desk, read = Desk(tmp_path), list[Path]()
    once = ids.read_record
    monkeypatch.setattr(ids, "read_record", lambda kind, entry, name: [read.append(entry), once(kind, entry, name)][1])
    levels = FinishedLevels(desk.store)
    assert levels.of(["img", "other"]) == []
    first = desk.submit()
    displayed = frozenset(first.present)
    read.clear()
    assert [levels.of(["img"]) for _ in range(3)] == [[displayed]] * 3
    assert len(read) == 1
    with pytest.raises(LabelError):
        desk.submit({})
    second = desk.submit({"label_info": [{"name": "L4"}, {"name": "L3"}]})
    read.clear()
    assert levels.of(["img"]) == [frozenset(second.present)] != [displayed]
    desk.store.withdrawals.add("img", second.id, "ada")
    assert [levels.of(["img"]) for _ in range(2)] == [[displayed]] * 2
    desk.store.withdrawals.add("img", first.id, "ada")
    assert levels.of(["img"]) == []
    assert len(read) == len({second.id, "the parked one"})


def test_rarity() -> None:
    displayed = counts_of([LUMBAR, LUMBAR, NECK, (), ()])
    assert rarity(LUMBAR, displayed) == pytest.approx(1 / 3)
    assert rarity(NECK, displayed) == pytest.approx(1 / 2)
    assert rarity((44, 21), displayed) == pytest.approx((1 / 3 + 1) / 2)
    assert rarity((), displayed) == pytest.approx(1 / 3)
    assert rarity(LUMBAR, Counter()) == 1


def test_most_to_learn_does_not_offer_ten_scans_alike() -> None:
    """Nine lumbar scans are a little more doubtful than a single neck, which would have come last."""
    known = {name: score(name, 0.6) for name in "abcdefghi"} | {"z": score("z", 0.5, NECK)}
    strategy = MostToLearn(Offers(), lambda images: {i: known[i] for i in images if i in known}, list)
    assert order(strategy, Studies(*known), 3) == "azb"
    assert order(strategy, Studies(*known), 1, "bob") == "c", "another reader's scans count, too"


def test_most_to_learn_offers_what_finished_labels_lack() -> None:
    known = {"a": score("a", 0.6), "z": score("z", 0.5, NECK), "y": score("y", 0.05, (50,)), "b": score("b", 0.6)}
    finished = [frozenset(LUMBAR)] * 4
    strategy = MostToLearn(Offers(), lambda images: {i: known[i] for i in images if i in known}, lambda: finished)
    assert order(strategy, Studies("a", "b", "u", "y", "z"), 5) == "zabyu"


def test_the_recorded_offer_of_a_label_is_its_authors() -> None:
    now = time.time()
    info = {
        "strategy": {
            "first": {"ts": now - 60, "client_id": "ada", "score": None},
            "doubtful_first": {"ts": now - 50, "client_id": "ada", "score": {"doubt": 0.7}},
            "random": {"ts": now, "client_id": "bob"},
            "last": {"ts": "late", "client_id": "ada"},
        }
    }
    assert noted_for(info, ("ada", "admin")) == {
        "strategy": "doubtful_first",
        "ts": now - 50,
        "client_id": "ada",
        "score": {"doubt": 0.7},
    }
    assert noted_for(info, ("cyd",)) is None
    assert noted_for({}, ("ada",)) is None
