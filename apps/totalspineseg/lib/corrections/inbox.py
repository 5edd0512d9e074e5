"""What happens to a submission: read, mapped by name, checked, kept, and put where clients find it again."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from lib.anatomy import BACKGROUND, WIRE_LABELS
from lib.corrections import history
from lib.corrections.attribution import Attribution
from lib.corrections.drawn_maps import DrawnMaps
from lib.corrections.imprints import DRAWN_ON
from lib.corrections.meanwhile import finished_meanwhile
from lib.corrections.names import Mapped, map_names
from lib.corrections.predictions import PredictionStore
from lib.corrections.renames import follow_rename
from lib.corrections.store import SEG_SUFFIX, Correction, CorrectionStore, Received, Sender
from lib.corrections.submission import read_submission
from lib.corrections.unreviewed import PARAMETER, with_unreviewed, without_regions
from lib.corrections.wire import STEP1_WIRE_LABELS, to_wire
from lib.dicom.seg_reader import read_seg
from lib.errors import GridError, ImageError, LabelError, StorageError
from lib.geometry import Grid, LabelArray
from lib.numbering.findings import Finding
from lib.segments import Submission
from lib.turns import Turns
from lib.volume_io import read_image, write_volume

FINAL_TAG: Final = "final"
"""Datastore tag of what a reader finished: its names are certain. Clients that name no tag mean it."""
STEP1_TAG: Final = "step1"
"""Datastore tag of corrected step-1 maps: input of step 2, never a finished label."""
READER_TAGS: Final = (STEP1_TAG, FINAL_TAG)
"""Datastore tags that only a reader's submission may fill; any other is a prediction's, or work in progress."""

Lint = Callable[[LabelArray, Grid], tuple[Mapping[str, Any], ...]]
"""Says what is odd about a label map in codes, with ``UNREVIEWED`` where nobody has looked."""
Publish = Callable[[str, Path, str, dict[str, Any]], None]
"""``publish(image_id, file, tag, info)``: show a label map in wire ids under a tag of the datastore."""
Hide = Callable[[str, str], None]
"""``hide(image_id, tag)``: show none under it any more."""


class Inbox:
    """Takes submissions for one studies folder."""

    def __init__(self, corrections: CorrectionStore, predictions: PredictionStore, lint: Lint, maps: DrawnMaps) -> None:
        self._corrections = corrections
        self._attribution = Attribution(predictions, maps)
        self._lint = lint
        self._turns = Turns()

    def submit(
        self,
        image_id: str,
        image: Path,
        file: Path,
        *,
        tag: str,
        sender: Sender,
        params: Mapping[str, Any],
        publish: Publish,
        sources: Path | None = None,
        unclear: LabelError | None = None,
    ) -> Correction:
        """Keep a submission and publish it when it is understood.

        Args:
            image_id: Image it belongs to.
            image: That image's file or folder.
            file: The submitted file; one that ends in .dcm is a DICOM segmentation. Not modified.
            tag: Tag it was sent for; a step-1 map goes to STEP1_TAG instead, unfinished to
                one that ends so.
            sender: Who sent it.
            params: What came with it: ``label_info``; ``prediction`` when the client knows it; ``unreviewed``, names
                of structures nobody checked.
            publish: Called with the label in wire ids once the correction is kept.
            sources: The DICOM files of the image, where there are any; a DICOM segmentation may place its frames by
                reference to them.
            unclear: Why it is not known that the label belongs to this image; None where it is.

        Returns:
            The record, already kept.

        Raises:
            LabelError: The label is not understood; the message says why and where the file was kept.
            StorageError: It could not be kept, or it is kept and could not be shown; the message says which.
        """
        label_info, stated = params.get("label_info"), params.get("prediction")
        received = Received(image_id, image, file, tag, sender, label_info, None, history.sha256_of(image))
        received = replace(received, prediction=self._attribution.likely(received, stated))
        followed = None
        try:
            if unclear is not None:
                raise unclear
            self._attribution.require_of_image(received, stated)
            grid = read_image(image).grid
            submission = _read(file, grid, label_info, sources)
            if (corrected := self._attribution.corrected(received, stated, submission, grid)) is not None:
                received = replace(received, prediction=corrected.prediction)
                followed = None if corrected.compared is None else follow_rename(corrected.compared)
            unreviewed = params.get(PARAMETER)
            if followed is not None:
                submission, unreviewed = followed.submission, followed.now(unreviewed)
            mapped = with_unreviewed(map_names(submission, grid), unreviewed)
        except (LabelError, GridError, ImageError) as error:
            parked = self._corrections.park(received, error)
            raise LabelError(
                f"{error} (the file is kept but not used: correction {parked.id} of image {image_id!r})"
            ) from error
        findings = (*self._lint(mapped.codes, grid), *_replaced(received))
        renumbered = None if followed is None else followed.report
        # Of two at once the one that counts as the newer is the one that is shown.
        with self._turns.at(image_id):
            findings = (*findings, *finished_meanwhile(self._shown(image_id, _shown_as(tag, mapped.step)), received))
            correction = self._corrections.accept(received, mapped, grid, findings, renumbered)
            try:
                self._publish(correction, mapped, grid, publish)
            except StorageError as error:
                raise type(error)(
                    f"{error} (the label is kept, but not shown: correction {correction.id} of image {image_id!r})"
                ) from error
        return correction

    def shown(self, file: Path, params: Mapping[str, Any], images: Mapping[str, Path]) -> str:
        """Of some images the one whose prediction a label shows: the reader has left structures of it as they were.

        Args:
            file: The submitted file. Not modified.
            params: What came with it.
            images: Their files by id.

        Returns:
            Its id; empty where the label shows none, or as much of another.
        """
        try:
            left = {name: self._left_as_drawn(file, params, image) for name, image in images.items()}
        except (LabelError, GridError, ImageError):
            return ""
        most = max(left.values(), default=(0, 0))
        best = [name for name, count in left.items() if count == most]
        return best[0] if len(best) == 1 and any(most) else ""

    def _left_as_drawn(self, file: Path, params: Mapping[str, Any], image: Path) -> tuple[int, int]:
        grid = read_image(image).grid
        submission = _read(file, grid, params.get("label_info"), None)
        return self._attribution.left_as_drawn(history.sha256_of(image), submission, grid)

    def withdraw(self, image_id: str, tag: str, *, user: str, hide: Hide) -> tuple[str, ...]:
        """Take back all labels of an image that were shown under a tag; the history keeps them and says who did it.

        Not the newest alone: the one before it was replaced for a reason.

        Args:
            image_id: Image they belong to.
            tag: Tag of the datastore.
            user: Who takes them back.
            hide: Called once the withdrawal is kept: no label is to be shown under the tag any more.

        Returns:
            Ids of the corrections that count no more; none where only a prediction was shown.

        Raises:
            StorageError: It could not be kept, or the label could not be removed; asked again, the rest is done.
        """
        with self._turns.at(image_id):
            taken = tuple(c.id for c in self._shown(image_id, tag))
            for correction_id in taken:
                self._corrections.withdrawals.add(image_id, correction_id, user)
            hide(image_id, tag)
        return taken

    def _shown(self, image_id: str, tag: str) -> tuple[Correction, ...]:
        """The corrections of an image that count and were shown under a tag of the datastore, oldest first."""
        standing = self._corrections.standing(image_id)
        return tuple(c for c in standing if c.step is not None and _shown_as(c.tag, c.step) == tag)

    def _publish(self, correction: Correction, mapped: Mapped, grid: Grid, publish: Publish) -> None:
        labels = STEP1_WIRE_LABELS if mapped.step == 1 else WIRE_LABELS
        info = {
            "correction": correction.id,
            "user": correction.user,
            "client_id": correction.client,
            "label_info": [{"name": name, "idx": value} for name, value in labels.items()],
            "prediction": correction.prediction,
            DRAWN_ON: correction.image_sha256,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "label.nii.gz"
            write_volume(file, to_wire(without_regions(mapped.codes)), grid)
            publish(correction.image, file, _shown_as(correction.tag, mapped.step), info)


def _shown_as(tag: str, step: int) -> str:
    """The datastore's tag of a label; a step-1 map that is work in progress does not stand for a finished one."""
    if step == 2:
        return tag
    return STEP1_TAG if tag in READER_TAGS else f"{tag}-{STEP1_TAG}"


def _replaced(received: Received) -> tuple[Mapping[str, Any], ...]:
    """A finding where the label may belong to what the image was before."""
    predicted = received.prediction
    if predicted is None or predicted.image_sha256 in ("", received.image_sha256):
        return ()
    message = "The image was replaced after the prediction that this label corrects; check that the label fits it."
    return (Finding("image_replaced", BACKGROUND, message).as_dict(np.eye(4)),)


def _read(file: Path, grid: Grid, label_info: object, sources: Path | None) -> Submission:
    if file.name.lower().endswith(SEG_SUFFIX):
        return read_seg(file, grid, sources=sources)
    return read_submission(file, label_info).on(grid)
