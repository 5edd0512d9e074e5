"""Interpret a submission: find its image, the prediction that it corrects and its names, and write its record.

3D Slicer keeps the name that a volume had when it was opened, and names no prediction.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.comparison import (
    ACCEPTED_NAMES,
    ALL,
    LEFT,
    Corrected,
    beside_prediction,
    check,
    compare,
    follow_rename,
    is_unchanged,
    stated_prediction,
    with_untouched,
)
from totalspineseg_server.corrections.correction_store import Correction, is_safe_tag
from totalspineseg_server.corrections.image_records import ImageRecords, noted_for
from totalspineseg_server.corrections.predictions import MapStore, PredictionRecord, PredictionStore
from totalspineseg_server.corrections.receipts import SEG_SUFFIX, Claims, Receipt
from totalspineseg_server.corrections.submission import (
    UNREVIEWED_NAMES,
    is_marked_accepted,
    map_names,
    read_submission,
    submitted_grid,
    with_unreviewed,
)
from totalspineseg_server.errors import (
    GridError,
    ImageError,
    LabelError,
    UnknownImageError,
)
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid, LabelArray, Volume, same_voxels
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.volumes import read_image
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.segments import Submission

logger = logging.getLogger(__name__)

UNCHANGED_PARAMETER: Final = "unchanged"
"""Parameter of a submission: true if its author looked at the prediction and finished it as it was."""
CHOSEN_PARAMETER: Final = "chosen"
"""Parameter of a submission: see ``Correction.chosen``."""
Lint = Callable[[LabelArray, Grid], tuple[Mapping[str, Any], ...]]
"""A function that checks a label map in codes, with ``UNREVIEWED`` where nobody checked."""


def resolve_image(image_id: str, claims: Claims, exists: Callable[[str], bool], fits: Callable[[str], bool]) -> str:
    """Return the image to which a label belongs.

    A label is filed under another image than the one it was sent for only if this client's upload was refused under
    that name, and if the label is on the grid of the volume that the client uploaded instead.

    Args:
        image_id: The image it was sent for.
        claims: Other images that it may belong to.
        exists: Whether an image exists.
        fits: Whether the label is on the grid of an image, which need not exist.

    Raises:
        UnknownImageError: It belongs to no existing image.
        LabelError: It may belong to several images.
    """
    others = {*claims.renamed, claims.uploaded} - {"", image_id}
    fitting = sorted(filter(fits, others))
    is_known = exists(image_id)
    if len(fitting) == 1 and fitting[0] in claims.renamed and (fitting[0] == claims.uploaded or not fits(image_id)):
        return fitting[0]
    if not is_known:
        raise UnknownImageError(image_id)
    if fitting:
        raise LabelError(answers.which_image(image_id, fitting))
    return image_id


class Studies(Protocol):
    """The images that submissions belong to, and the labels that clients see."""

    records: ImageRecords

    def image_file(self, image_id: str) -> Path | None:
        """Return the file of an image, or None."""

    def series_folder(self, image_id: str) -> Path | None:
        """Return the folder of an image's DICOM files, or None; a DICOM segmentation may refer to them."""

    def show(self, correction: Correction, codes: Volume, more: Mapping[str, Any] | None = None) -> None:
        """Show an accepted correction to clients, with some more information."""

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Stop showing the label of an image under a tag."""


@dataclass(frozen=True)
class Received:
    """A submission with the image to which it belongs.

    Attributes:
        receipt: The submission as it was sent.
        file: The submitted file.
        image_id: The image.
        image_sha256: Present hash of that image.
    """

    receipt: Receipt
    file: Path
    image_id: str
    image_sha256: str

    @property
    def stated(self) -> str:
        """Id of the prediction that the client names; "" for none."""
        stated = self.receipt.params.get("prediction")
        return stated if isinstance(stated, str) else ""


class Interpreter:
    """Makes the record of a submission.

    A prediction made in a session belongs to no image of the studies, because the volume is uploaded only when the
    label is submitted; and files are renamed. Therefore a prediction counts for an image if it was made for the same
    content, whatever the name of the image was.

    Args:
        predictions: All records of predictions.
        maps: Recent output of the networks, by the content of the image.
        studies: The images.
        lint: Checks a label.
    """

    def __init__(self, predictions: PredictionStore, maps: MapStore, studies: Studies, lint: Lint = check) -> None:
        self._predictions = predictions
        self._maps = maps
        self._studies = studies
        self._lint = lint

    def interpret(self, receipt: Receipt, file: Path) -> tuple[Correction, Volume | None]:
        """Return the record of a submission, and its codes on the grid of its image; no codes if it is parked.

        Args:
            receipt: The submission.
            file: The submitted file. Not modified.

        Raises:
            UnknownImageError: It belongs to no image.
            ImageError: Its image is not a volume.
        """
        fault = receipt.fault
        if not fault and not is_safe_tag(receipt.tag):
            fault = answers.unsafe_tag(receipt.tag)
        try:
            image_id = self._image_of(receipt, file)
        except LabelError as error:
            image_id, fault = receipt.image, str(error)
        image = self._studies.image_file(image_id)
        if image is None:
            raise UnknownImageError(image_id)
        received = Received(receipt, file, image_id, sha256_of(image))
        prediction = self.likely(received)
        offered = noted_for(self._studies.records.of(image_id), receipt.sender.names)
        record = _record(received, prediction, offered)
        try:
            if not fault:
                self.require_of_image(received)
                return self._accepted(record, received, prediction, read_image(image).grid)
        except (LabelError, GridError, ImageError) as error:
            fault = str(error)
        return replace(record, status="parked", reason=fault), None

    def _image_of(self, receipt: Receipt, file: Path) -> str:
        """Return the image to which a submission belongs; see ``resolve_image``, also for the errors."""
        image_id = resolve_image(
            receipt.image,
            receipt.claims,
            lambda other: self._studies.image_file(other) is not None,
            lambda other: self._is_on_grid(file, other),
        )
        if image_id != receipt.image:
            logger.info(
                "A label sent for %r belongs to %r. The upload of that image under the first name was refused",
                receipt.image,
                image_id,
            )
        return image_id

    def _is_on_grid(self, label: Path, image_id: str) -> bool:
        """Return whether a submitted file is on the grid of an image; False if either is missing or cannot be read."""
        image = self._studies.image_file(image_id)
        try:
            return image is not None and same_voxels(submitted_grid(label), read_image(image).grid)
        except ImageError:
            return False

    def _accepted(
        self, record: Correction, received: Received, prediction: PredictionRecord | None, grid: Grid
    ) -> tuple[Correction, Volume]:
        """Return the complete record of a label, and its codes.

        Raises:
            LabelError: Its names cannot be used.
            GridError: It lies on other voxels than its image.
            ImageError: It is not a readable label map.
        """
        params = received.receipt.params
        if received.file.name.lower().endswith(SEG_SUFFIX):
            submission = read_seg(received.file, grid, sources=self._studies.series_folder(received.image_id))
        else:
            submission = read_submission(received.file, params.get("label_info")).on(grid)
        followed, compared, marked = None, None, tuple[int, ...]()
        corrected = self.corrected(received, submission, grid)
        if corrected is not None:
            prediction, compared, marked = corrected.prediction, corrected.compared, corrected.prediction.marked
            followed = None if compared is None else follow_rename(compared)
        unreviewed, accepted = params.get(UNREVIEWED_NAMES), params.get(ACCEPTED_NAMES)
        accepted = ALL if is_marked_accepted(submission) else accepted
        if followed is not None:
            submission = followed.submission
            unreviewed, accepted = followed.now(unreviewed), followed.now(accepted)
        mapped = with_unreviewed(map_names(submission, grid), unreviewed)
        mapped = with_untouched(mapped, compared, accepted, marked=marked, stated=params.get(LEFT))
        is_finished = params.get(UNCHANGED_PARAMETER) is True
        lint = self._lint(mapped.codes, grid)
        unchanged = compared is not None and is_unchanged(compared, mapped)
        beside = beside_prediction(corrected, mapped, lint, unchanged=unchanged)
        findings = (*beside, *lint, *_replaced(prediction, received))
        complete = replace(
            record,
            step=mapped.step,
            prediction=_named(prediction) or stated_prediction(params.get(LEFT)),
            present=mapped.present,
            overlap_voxels=mapped.overlap_voxels,
            findings=findings,
            unreviewed=mapped.unreviewed,
            renumbered=None if followed is None else followed.report,
            untouched=mapped.untouched,
            renamed=mapped.renamed,
            # Where the result is not here, as with an import, its author is believed.
            unchanged=is_finished and (compared is None or unchanged),
            dice=mapped.dice,
            unconfirmed=mapped.unconfirmed,
        )
        return complete, Volume(mapped.codes, grid.affine)

    def require_of_image(self, received: Received) -> None:
        """Check that a label was sent for the image of the prediction that it corrects, if it names one.

        Series of a patient may have the same grid, so the grid does not prove it.

        Raises:
            LabelError: It corrects a prediction for an image with other content.
        """
        image_id, stated = received.image_id, received.stated
        other = None if not stated or self._predictions.find(image_id, stated) else self._predictions.anywhere(stated)
        if other is not None and other.image and other.image_sha256 != received.image_sha256:
            raise LabelError(answers.other_image(image_id, other.image))

    def likely(self, received: Received) -> PredictionRecord | None:
        """Return the prediction that was probably corrected, without looking at the label.

        Args:
            received: The submission.

        Returns:
            The prediction that the client named, or this client's newest one, or the newest one; None if there is none.
        """
        if (record := self._stated(received)) is not None:
            return record
        listed = self._predictions.latest(received.image_id, *received.receipt.sender.names)
        return self._looked_at(listed) if listed else next(self._of_content(received), None)

    def corrected(self, received: Received, submission: Submission, grid: Grid) -> Corrected | None:
        """Return the prediction whose segments a submission contains.

        Readers cannot be told apart for certain, since most clients use the name that their program was installed with.
        This client's newest prediction may be somebody else's.

        Args:
            received: The submission.
            submission: The label as read. Not modified.
            grid: Grid of the image.

        Returns:
            The one that the client named; else the recent one for this content with the most segments that kept their
            names (if equal, this client's, then the newest); None if nothing can be compared.
        """
        if (record := self._stated(received)) is not None:
            maps = self._maps.of_prediction(received.image_sha256, record.id)
            return Corrected(record, None if maps is None else compare(submission, grid, maps))
        best, best_rank = None, (0, 0, False)
        for maps in self._maps.newest_first(received.image_sha256):
            record = self._record_of(maps.prediction, maps.image, received)
            compared = None if record is None else compare(submission, grid, maps)
            if record is None or compared is None:
                continue
            rank = (*compared.likeness, record.client in received.receipt.sender.names)
            if best is None or rank > best_rank:
                best, best_rank = Corrected(record, compared), rank
        return best

    def _stated(self, received: Received) -> PredictionRecord | None:
        """Return the prediction that a client names, if it was made for this image or for the same content."""
        if not (stated := received.stated):
            return None
        if (record := self._predictions.find(received.image_id, stated)) is not None:
            return self._looked_at(record)
        other = self._predictions.anywhere(stated)
        return self._looked_at(other) if other is not None and other.image_sha256 == received.image_sha256 else None

    def _looked_at(self, record: PredictionRecord) -> PredictionRecord:
        """Return the prediction whose levels a reader saw: for a review, the one under review."""
        found = self._predictions.find(record.image, record.reviewed, record.image_sha256) if record.reviewed else None
        return found or record

    def _of_content(self, received: Received) -> Iterator[PredictionRecord]:
        """Yield the recent predictions for the content of the image, newest first."""
        for prediction, name in self._maps.made_for(received.image_sha256):
            if record := self._record_of(prediction, name, received):
                yield record

    def _record_of(self, prediction: str, name_then: str, received: Received) -> PredictionRecord | None:
        """Return the record of a prediction, under the present or former name of the image, or outside the studies."""
        names = dict.fromkeys((received.image_id, name_then, ""))
        found = (self._predictions.find(name, prediction, received.image_sha256) for name in names)
        return next((record for record in found if record), None)


def _record(received: Received, prediction: PredictionRecord | None, offered: Mapping[str, Any] | None) -> Correction:
    """Return the record of an accepted submission as far as it is known without reading the label."""
    receipt = received.receipt
    chosen = receipt.params.get(CHOSEN_PARAMETER)
    return Correction(
        id=receipt.id,
        image=received.image_id,
        status="accepted",
        reason="",
        step=None,
        tag=receipt.tag,
        user=receipt.user,
        client=receipt.client,
        file_name=receipt.file_name,
        raw=receipt.raw,
        raw_sha256=receipt.raw_sha256,
        image_sha256=received.image_sha256,
        received=receipt.received,
        prediction=_named(prediction),
        label_info=receipt.params.get("label_info"),
        offered=offered,
        chosen=tuple(map(str, chosen)) if isinstance(chosen, (list, tuple)) else (),
    )


def _named(prediction: PredictionRecord | None) -> Mapping[str, Any] | None:
    """Return a prediction as the record of a correction names it."""
    if prediction is None:
        return None
    return {"id": prediction.id, "model": prediction.model, "versions": dict(prediction.versions)}


def _replaced(prediction: PredictionRecord | None, received: Received) -> tuple[Mapping[str, Any], ...]:
    """Return a finding if the image was replaced after the prediction was made."""
    if prediction is None or prediction.image_sha256 in ("", received.image_sha256):
        return ()
    return (Finding("image_replaced", BACKGROUND, answers.IMAGE_REPLACED).as_dict(np.eye(4)),)
