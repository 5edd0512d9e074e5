"""Choose which of the finished labels of a scan counts, or merge them into one."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, NAME_OF, UNREVIEWED, UNREVIEWED_NAME, WIRE_LABELS
from totalspineseg_server.corrections.comparison import ACCEPTED_NAMES, LEFT, stated_left
from totalspineseg_server.corrections.correction_store import FINAL_TAG, Correction, CorrectionStore
from totalspineseg_server.corrections.inbox import Submit
from totalspineseg_server.corrections.interpretation import CHOSEN_PARAMETER, UNCHANGED_PARAMETER
from totalspineseg_server.corrections.receipts import Sender, receipt_of
from totalspineseg_server.corrections.submission import UNREVIEWED_NAMES
from totalspineseg_server.errors import ConflictError, LabelError
from totalspineseg_server.geometry import Grid, LabelArray
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.segments import code_of_name, to_wire, with_mark, without_regions
from totalspineseg_server.worklist import worklist_messages

REGION: Final = max(WIRE_LABELS.values()) + 1
"""Value of the regions that are left out of training; it follows those of the structures."""


@dataclass(frozen=True)
class Choice:
    """The label that counts from now on.

    Attributes:
        label: Id of the finished label to use.
        take: Name of a structure -> id of the finished label from which it is taken instead.
        leave_out: Ids of finished labels; places where they differ from ``label`` are left out of training.
    """

    label: str
    take: Mapping[str, str] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()


def choose(
    corrections: CorrectionStore, submit: Submit, image_id: str, grid: Grid, choice: Choice, sender: Sender
) -> Correction:
    """Submit the chosen label as the newest finished one, so that clients see it and trainings use it.

    The labels it is made from stay unchanged in the history.

    Args:
        corrections: All labels.
        submit: Takes a label.
        image_id: The scan.
        grid: Grid of its image.
        choice: The administrator's choice. Not modified.
        sender: The administrator.

    Raises:
        ConflictError: A label is not a finished one of this scan, or was made on another image.
        LabelError: A label does not have the structure that is to be taken from it.
    """
    named = {choice.label, *choice.take.values(), *choice.leave_out}
    known = {one.id: one for one in corrections.finished(image_id)}
    if missing := sorted(named - known.keys()):
        raise ConflictError(worklist_messages.NOT_FINISHED.format(label=missing[0][:80]))
    labels = {id_: known[id_] for id_ in (choice.label, *sorted(named - {choice.label}))}
    base = labels[choice.label]
    if any(one.image_sha256 != base.image_sha256 for one in labels.values()):
        raise ConflictError(worklist_messages.OTHER_IMAGE)
    codes = {id_: corrections.codes(one) for id_, one in labels.items()}
    merged = merge(codes, choice)
    params = _params(choice, labels, merged)
    wire = to_wire(without_regions(merged))
    wire[merged == UNREVIEWED] = REGION
    with tempfile.TemporaryDirectory(prefix="totalspineseg-choice-") as folder:
        file = Path(folder) / "label.nii.gz"
        write_volume(file, wire, grid)
        return submit(receipt_of(image_id, file, tag=FINAL_TAG, sender=sender, params=params), file)


def merge(codes: Mapping[str, LabelArray], choice: Choice) -> LabelArray:
    """Return one label merged from several.

    Args:
        codes: Id of a label -> its codes, all on one grid. Not modified.
        choice: The label that counts, and the structures to take from others.

    Returns:
        uint8 of the same shape; ``UNREVIEWED`` at the places that are left out of training.

    Raises:
        LabelError: A label does not have the structure that is to be taken from it.
    """
    merged = codes[choice.label].copy()
    taken = {}
    for name, id_ in choice.take.items():
        code = code_of_name(name)
        if code is None or not (codes[id_] == code).any():
            raise LabelError(worklist_messages.NOT_IN_LABEL.format(name=name[:80]))
        taken[code] = codes[id_] == code
    for code in taken:
        merged[merged == code] = BACKGROUND
    for code, mask in taken.items():
        merged[mask] = code
    for other in choice.leave_out:
        merged[codes[choice.label] != codes[other]] = UNREVIEWED
    return merged


def _params(choice: Choice, labels: Mapping[str, Correction], merged: LabelArray) -> dict[str, Any]:
    """Return the parameters that keep the meaning that the label had when its reader sent it."""
    base = labels[choice.label]
    present = {code for code in np.unique(merged).tolist() if code in NAME_OF}
    unreviewed = {code for one in labels.values() for code in one.unreviewed} & present
    doubtful = _from_sources(choice, labels, "unconfirmed")
    # Structures that the reader left as predicted still count as such, and no others do.
    untouched, renamed = (_from_sources(choice, labels, key) for key in ("untouched", "renamed"))
    left = untouched | renamed
    checked = present - unreviewed - doubtful - left
    marked = {NAME_OF[code]: with_mark(NAME_OF[code]) for code in doubtful}
    wire = {**WIRE_LABELS, UNREVIEWED_NAME: REGION}
    label_info = [{"name": marked.get(name, name), "idx": value} for name, value in wire.items()]
    return {
        "label_info": label_info,
        "prediction": str((base.prediction or {}).get("id", "")),
        UNREVIEWED_NAMES: [NAME_OF[code] for code in sorted(unreviewed)],
        ACCEPTED_NAMES: [NAME_OF[code] for code in sorted(checked)],
        UNCHANGED_PARAMETER: len(labels) == 1 and base.unchanged,
        CHOSEN_PARAMETER: list(labels),
        LEFT: stated_left(untouched & present, renamed & present, (base.prediction or {}).get("versions", {})),
    }


def _from_sources(
    choice: Choice, labels: Mapping[str, Correction], field_name: Literal["unconfirmed", "untouched", "renamed"]
) -> set[int]:
    """Return the codes that a field of a record lists, for each structure from the label from which it comes."""
    source = {code_of_name(name): labels[id_] for name, id_ in choice.take.items()}
    listed = {code for code in getattr(labels[choice.label], field_name) if code not in source}
    return listed | {code for code, label in source.items() if code in getattr(label, field_name) and code is not None}
