"""Make a row of the worklist: the state of a scan between new and finished."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from totalspineseg_server.activelearning.scores import Score
from totalspineseg_server.activelearning.strategies import RESERVED_SECONDS
from totalspineseg_server.anatomy import DISCS, NAME_OF, SACRUM, VERTEBRAE
from totalspineseg_server.corrections.correction_store import Correction, Rejection
from totalspineseg_server.corrections.ids import text_of_time
from totalspineseg_server.corrections.image_records import Offer
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.report import sentence
from totalspineseg_server.trust import certainty_of

Status = Literal["new", "predicted", "failed", "in progress", "submitted", "parked", "rejected", "finished"]
DATE_LETTERS: Final = 8
"""Number of characters of a DICOM date, such as 20260131."""
STATUSES: Final[tuple[Status, ...]] = get_args(Status)


@dataclass(frozen=True)
class Row:
    """One scan.

    Attributes:
        id: Image id.
        status: See ``docs/lab-page.md``.
        reason: One sentence: why names are doubtful or counted, why it is parked, rejected or failed.
        certainty: "certain", "counted", "doubtful"; empty if nothing is known.
        doubt: 0 (none) to 1; None if it is not known.
        levels: Levels in view, such as "T12 to sacrum"; empty if none is named.
        user: Who worked on it last, or to whom it was offered.
        date: When that was, UTC, ISO 8601; if nobody worked on it, when it was predicted; empty for a new scan.
        version: Weights of each step that made the result; empty if there is none.
        prediction: Id of the result; empty if there is none.
        unchanged: Whether it is finished because the result was accepted unchanged.
        study: UID of its study in the PACS; empty for a folder.
        about: The name of a series of a PACS for people, such as "T2 sagittal, patient 17, 2026-01-31"; empty for a
            folder.
    """

    id: str
    status: Status = "new"
    reason: str = ""
    certainty: str = ""
    doubt: float | None = None
    levels: str = ""
    user: str = ""
    date: str = ""
    version: str = ""
    prediction: str = ""
    unchanged: bool = False
    study: str = ""
    about: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the row for clients."""
        return asdict(self)


def row_of(
    image_id: str,
    *,
    is_finished: bool,
    score: Score | None,
    numbering: Mapping[str, Any] | None,
    corrections: Sequence[Correction],
    withdrawn: frozenset[str],
    rejection: Rejection | None,
    offer: Offer,
    now: float,
    study: str = "",
    about: str = "",
) -> Row:
    """Return the row of a scan.

    Args:
        image_id: The scan.
        is_finished: Whether it has a finished label that counts.
        score: Its score, by any weights; None if it was never predicted.
        numbering: Report of the prediction that was scored.
        corrections: All corrections, oldest first.
        withdrawn: Ids of those that were taken back.
        rejection: The rejection, if its result is rejected.
        offer: When it was last offered, and to whom.
        now: Time stamp.
        study: See ``Row``.
        about: See ``Row``.
    """
    row: dict[str, Any] = {} if score is None else _predicted(score, numbering)
    counting = [one for one in corrections if one.id not in withdrawn]
    last = counting[-1] if counting else None
    accepted = next((one for one in reversed(counting) if one.status == "accepted"), None)
    if is_finished and accepted is not None:
        row |= {"status": "finished", "unchanged": accepted.unchanged, **_by(accepted)}
        if accepted.present:
            row["levels"] = levels_text(accepted.present)
    elif rejection is not None and (last is None or rejection.id > last.id):
        row |= {"status": "rejected", "reason": rejection.reason, **_by(rejection)}
    elif last is not None and last.status == "parked":
        row |= {"status": "parked", "reason": last.reason, **_by(last)}
    elif last is not None:
        row |= {"status": "submitted", **_by(last)}
    elif offer.time and 0 <= now - offer.time < RESERVED_SECONDS:
        row |= {"status": "in progress", "user": offer.client, "date": text_of_time(offer.time)}
    return Row(image_id, study=study, about=about, **row)


def about_series(info: Mapping[str, Any]) -> str:
    """Return a series' name for people, made from what the PACS knows about it; empty if it knows nothing."""
    date = str(info.get("StudyDate") or "")
    patient = str(info.get("PatientID") or "")
    parts = (
        str(info.get("SeriesDescription") or ""),
        f"patient {patient}" if patient else "",
        f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == DATE_LETTERS and date.isdigit() else date,
    )
    return ", ".join(part for part in parts if part)


def levels_text(codes: Sequence[int]) -> str:
    """Return the levels in view, such as "T12 to sacrum"; discs alone if no vertebra is named."""
    vertebrae = sorted((code for code in codes if code in (*VERTEBRAE, SACRUM)), key=ORDER.__getitem__)
    named = vertebrae or sorted((code for code in codes if code in DISCS), key=ORDER.__getitem__)
    if not named:
        return ""
    first, last = NAME_OF[named[0]], NAME_OF[named[-1]]
    return first if first == last else f"{first} to {last}"


def version_text(versions: Mapping[str, str]) -> str:
    """Return the weights of both steps; one name if both have the same version."""
    return " + ".join(dict.fromkeys(versions[step] for step in sorted(versions)))


def _predicted(score: Score, numbering: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"date": score.created, "version": version_text(score.versions), "doubt": score.doubt}
    if score.refused:
        return {**row, "status": "failed", "reason": score.message}
    text = sentence(numbering) if numbering else ""
    return {
        **row,
        "status": "predicted",
        "certainty": certainty_of(numbering) or "",
        "reason": f"{text[:1].upper()}{text[1:]}." if text else "",
        "levels": levels_text(score.codes),
        "prediction": score.prediction,
    }


def _by(act: Correction | Rejection) -> dict[str, str]:
    return {"user": act.reader, "date": act.received}
