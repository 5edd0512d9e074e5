"""Segmentations in the PACS as submissions, and labels that the PACS still has to get."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from lib.corrections.inbox import FINAL_TAG
from lib.corrections.outcomes import Outcome, accepted
from lib.corrections.receipts import Sender
from lib.corrections.store import Correction
from lib.dicom.seg_object import SegReference, seg_content
from lib.errors import LabelError, StorageError, TotalSpineSegError
from lib.pacs.datastore import UNSENT, PacsDatastore
from lib.pacs.series import image_series, is_own

logger = logging.getLogger(__name__)

NOT_PUT_BACK: Final = "The PACS did not take the names that followed; it keeps those you sent until it does."

Submit = Callable[[str, Path, str, Mapping[str, Any], Sender, Mapping[str, Any]], Correction]
"""The app's way to take a label."""


class Corrections(Protocol):
    """What is known of earlier submissions."""

    def of_image(self, image_id: str) -> tuple[Correction, ...]:
        """All submissions for an image."""

    def standing(self, image_id: str) -> tuple[Correction, ...]:
        """Those that were accepted and that nobody took back."""

    def path(self, correction: Correction) -> Path:
        """The folder of a submission."""


def submit_segmentation(
    datastore: PacsDatastore,
    submit: Submit,
    corrections: Corrections,
    file: Path,
    reference: SegReference,
    sender: Sender,
) -> Outcome:
    """Count a segmentation that lies in the PACS as an annotator's submission, once.

    It may come here twice at a time: from the viewer, and found in the PACS before it is recorded.

    Args:
        datastore: The PACS.
        submit: Takes the label.
        corrections: Earlier submissions.
        file: The segmentation.
        reference: What it says about itself.
        sender: Who sent it.

    Returns:
        What became of it; a segmentation that cannot be used is no error, for the PACS has it.
    """
    instance, series = reference.instance, image_series(reference)
    if is_own(reference):
        return Outcome(instance, "prediction", "A model's own result was stored; it does not count as a correction.")
    if not datastore.offers(series):
        message = "A segmentation of a series this server offers is required, got one of another; it was not counted."
        return Outcome(instance, "refused", message)

    params = {"label_info": [{"name": name} for name in reference.labels]}
    with datastore.submitting.at(instance):
        if earlier := _earlier(corrections, series, file, sender):
            return _outcome_of(instance, earlier)
        try:
            kept = submit(series, file, FINAL_TAG, params, sender, {"instance": instance, "created": reference.created})
        except LabelError as error:
            return Outcome(instance, "parked", f"Not counted: {error}", series)
        except TotalSpineSegError as error:
            logger.warning("a segmentation of series %s was not counted: %s", series, error)
            return Outcome(instance, "refused", f"Not counted: {error}", series)
    outcome = accepted(instance, kept)
    shown = datastore.get_label_info(series, FINAL_TAG)
    if shown.get("instance") == instance and shown.get(UNSENT):
        return replace(outcome, message=f"{outcome.message} {NOT_PUT_BACK}")
    return outcome


def _earlier(corrections: Corrections, series: str, file: Path, sender: Sender) -> Correction | None:
    """The record of the same instance with the same content, if there is one."""
    try:
        same_name = [known for known in corrections.of_image(series) if known.file_name == sender.file_name]
        content = seg_content(file) if same_name else ""
        return next((one for one in same_name if seg_content(corrections.path(one) / one.raw) == content), None)
    except (StorageError, LabelError) as error:
        # Better kept twice than not at all.
        logger.warning("earlier segmentations of series %s cannot be compared: %s", series, error)
        return None


def _outcome_of(instance: str, known: Correction) -> Outcome:
    if known.status == "accepted":
        return accepted(instance, known)
    return Outcome(instance, "parked", f"Not counted: {known.reason}", known.image, known.id)


def send_waiting(datastore: PacsDatastore) -> None:
    """Store the finished labels that the PACS did not take at once, until it does not answer."""
    for series in datastore.waiting():
        try:
            if not datastore.put_back(series):
                return
        except TotalSpineSegError as error:
            logger.warning("the label of series %s cannot be stored in the PACS: %s", series, error)
        except Exception:
            # One label that makes the server fail must not keep the others from the PACS.
            logger.exception("the label of series %s could not be stored in the PACS", series)
