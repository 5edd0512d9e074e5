"""Tests of the worklist: which status a scan has, what is found in it, and that nothing is read twice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from totalspineseg_server.activelearning.scores import Parts, Score, Scores
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore, Rejection, Rejections
from totalspineseg_server.corrections.image_records import Offer
from totalspineseg_server.corrections.predictions import MapStore, PredictionRecord, PredictionStore
from totalspineseg_server.corrections.receipts import Sender
from totalspineseg_server.worklist.query import Query, select
from totalspineseg_server.worklist.rows import Row, levels_text, row_of
from totalspineseg_server.worklist.worklist import Records, Worklist

SCORE = Score("a", "1", "s", {"step1": "v1", "step2": "v1"}, "p", Parts(0.2), (CODE_OF["L1"], CODE_OF["L5"]))
REFUSED = Score("a", "1", "s", {"step1": "v1"}, refused="no spine", message="No spine was found.")
DOUBTFUL = {"certainty": "doubtful", "probability": 0.6, "alternatives": [], "findings": []}
OFFER = Offer(1000.0, "ben")
OLD_OFFER = Offer(1000.0 - 8000, "ben")
SENDER = Sender("admin", "ada", "label.nii.gz")


def correction(number: int, **fields: Any) -> Correction:
    known: dict[str, Any] = {
        "id": f"20260101T00000{number}.000000Z-00000000",
        "image": "a",
        "status": "accepted",
        "reason": "",
        "step": 2,
        "tag": "final",
        "user": "admin",
        "client": "ada",
        "file_name": "",
        "raw": "",
        "raw_sha256": "",
        "image_sha256": "s",
        "received": f"2026-01-0{number}",
        "prediction": None,
        "label_info": None,
    }
    return Correction(**{**known, **fields})


PARKED = correction(2, status="parked", reason="The server does not know the segment name 'Q'.")
REJECTED = Rejection(correction(3).id, "a", "drawn into the ribs", "admin", "cai", "p", "2026-01-03")


@pytest.mark.parametrize(
    ("changes", "status", "fact"),
    [
        ({}, "new", ""),
        ({"score": SCORE, "numbering": DOUBTFUL}, "predicted", "The names are doubtful"),
        ({"score": REFUSED}, "failed", "No spine was found."),
        ({"score": SCORE, "offer": OFFER}, "in progress", "ben"),
        ({"score": SCORE, "offer": OLD_OFFER}, "predicted", "L1 to L5"),
        # The clock was wrong: until it gets there, nobody works on the scan.
        ({"score": SCORE, "offer": Offer(1e9, "ben")}, "predicted", "L1 to L5"),
        ({"corrections": [correction(1, tag="draft")]}, "submitted", "ada"),
        ({"corrections": [correction(1), PARKED]}, "parked", "'Q'"),
        ({"corrections": [correction(1), PARKED], "is_finished": True}, "finished", "ada"),
        ({"corrections": [correction(1)], "rejection": REJECTED}, "rejected", "ribs"),
        ({"corrections": [correction(4, tag="draft")], "rejection": REJECTED}, "submitted", "2026-01-04"),
        ({"corrections": [correction(1)], "withdrawn": frozenset({correction(1).id})}, "new", ""),
        ({"corrections": [correction(1)], "is_finished": True, "rejection": REJECTED}, "finished", "ada"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_scan_has_the_status_of_what_was_done_last(changes: dict[str, Any], status: str, fact: str) -> None:
    unknown: dict[str, Any] = {"is_finished": False, "score": None, "numbering": None, "corrections": []}
    more: dict[str, Any] = {"withdrawn": frozenset(), "rejection": None, "offer": Offer(), "now": 1001.0}
    row = row_of("a", **{**unknown, **more, **changes})
    assert row.status == status
    assert fact in " ".join((row.reason, row.user, row.levels, row.date))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("L1", "sacrum", "T12", "L1-L2"), "T12 to sacrum"),
        (("L3",), "L3"),
        (("L1-L2", "T12-L1"), "T12-L1 to L1-L2"),
        (("cord", "canal"), ""),
    ],
)
def test_the_levels_in_view_go_from_top_to_bottom(names: tuple[str, ...], text: str) -> None:
    assert levels_text([CODE_OF[name] for name in names]) == text


ROWS = tuple(
    Row(
        f"scan {k}",
        status="predicted" if k % 2 else "new",
        doubt=None if k == 4 else k / 10,
        user="Ada" if k < 3 else "",
    )
    for k in range(10)
)


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        (Query(), range(10)),
        (Query(page=1, size=4), (4, 5, 6, 7)),
        (Query(page=9), ()),
        (Query(search="ADA scan"), (0, 1, 2)),
        (Query(status=("predicted",)), (1, 3, 5, 7, 9)),
        (Query(sort="doubt", descending=True, size=2), (9, 8)),
        (Query(sort="doubt", size=2), (4, 0)),
        (Query(user="Ada", descending=True), (2, 1, 0)),
        (Query(certainty="certain"), ()),
    ],
    ids=str,
)
def test_a_page_has_what_was_asked_for(query: Query, numbers: Any) -> None:
    page = select(ROWS, query)
    assert [row.id for row in page.rows] == [f"scan {k}" for k in numbers]
    assert page.counts == {"new": 5, "predicted": 5}


class Folder:
    """A datastore with scans by name."""

    def __init__(self, count: int) -> None:
        self.images: list[str] | None = [f"scan-{number:05d}" for number in range(count)]

    def list_images(self) -> list[str]:
        if self.images is None:
            raise ConnectionError
        return self.images

    def get_labeled_images(self) -> list[str]:
        return []

    def get_image_info(self, image_id: str) -> Mapping[str, Any]:
        return {}

    def study_of(self, image_id: str) -> str:
        return "1.2.3"


class CountingScores(Scores):
    """Counts how many scores are read."""

    reads = 0

    def of(self, image_id: str, fingerprint: str) -> Score | None:
        self.reads += 1
        return super().of(image_id, fingerprint)


def test_only_a_scan_that_changed_is_read_again(tmp_path: Path) -> None:
    """With 5000 scans, every look at the page read 10 000 files."""
    predictions, seconds, studies = PredictionStore(tmp_path), [0.0], Folder(5000)
    scores, rejections = CountingScores(tmp_path, predictions, MapStore(tmp_path)), Rejections(tmp_path)
    records = Records(tmp_path, scores, CorrectionStore(tmp_path), rejections, lambda image: "1")
    worklist = Worklist(studies, records, lambda: seconds[0])

    def later() -> tuple[Row, ...]:
        seconds[0] += 60
        found = worklist.rows()
        assert worklist._work is not None
        worklist._work.join()
        return worklist.rows() or found

    assert len(later()) == 5000
    assert scores.reads == 5000
    assert {row.study for row in worklist.rows()} == {"1.2.3"}
    later()
    assert scores.reads == 5000
    scores.keep(Score("scan-00007", "1", "s", {"step1": "v1"}, refused="image", message="It has no voxels."))
    rejections.add("scan-00009", "upside down", SENDER)
    rows = later()
    assert scores.reads == 5002
    assert {row.id: row.reason for row in rows if row.status != "new"} == {
        "scan-00007": "It has no voxels.",
        "scan-00009": "upside down",
    }
    rejections.add("scan-00009", "", SENDER)
    worklist.update("scan-00009")
    assert next(row for row in worklist.rows() if row.id == "scan-00009").status == "new"


def test_a_list_that_cannot_be_read_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the PACS was down, the page said for good that the scans were being read, and the log filled with
    tracebacks."""
    seconds, studies = [0.0], Folder(2)
    scores = Scores(tmp_path, PredictionStore(tmp_path), MapStore(tmp_path))
    records = Records(tmp_path, scores, CorrectionStore(tmp_path), Rejections(tmp_path), lambda image: "1")
    worklist = Worklist(studies, records, lambda: seconds[0])
    images, studies.images = studies.images, None
    assert (worklist.rows(), "PACS" in worklist.failure) == ((), True)
    assert [record.exc_info for record in caplog.records] == [None]
    studies.images = images
    seconds[0] += 60
    assert (len(worklist.rows()), worklist.failure) == (2, "")


def test_a_result_recorded_under_another_name_is_found_without_looking_through_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each scan whose record was gone, the first look at the page listed the folders of all scans."""
    predictions, studies = PredictionStore(tmp_path), Folder(2)
    scores = Scores(tmp_path, predictions, MapStore(tmp_path))
    levels = [{"code": CODE_OF["L4"], "probability": 1.0}]
    numbering = {"certainty": "certain", "probability": 1.0, "levels": levels}
    predictions.keep(PredictionRecord("p", "before", "totalspineseg", {"step1": "v1"}, {}, {}, numbering, "", "s"))
    for name, other in (("scan-00000", "before"), ("scan-00001", None)):
        scores.keep(Score(name, "1", "s", {"step1": "v1"}, prediction="p", predicted_as=other))
    records = Records(tmp_path, scores, CorrectionStore(tmp_path), Rejections(tmp_path), lambda image: "1")
    worklist = Worklist(studies, records)
    monkeypatch.setattr(PredictionStore, "anywhere", lambda *_: pytest.fail("every folder was listed"))
    assert [row.certainty for row in worklist.rows()] == ["certain", ""]
    found, gone = (worklist.record(row) for row in worklist.rows())
    assert (found is None, gone) == (False, None)
