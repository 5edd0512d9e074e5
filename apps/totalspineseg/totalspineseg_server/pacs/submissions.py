"""Count segmentations that a viewer stored in the PACS as submissions."""

import logging
from dataclasses import replace
from pathlib import Path

from totalspineseg_server.corrections.correction_store import FINAL_TAG, Correction, CorrectionStore
from totalspineseg_server.corrections.inbox import Submit
from totalspineseg_server.corrections.receipts import Sender, receipt_of
from totalspineseg_server.errors import LabelError, StorageError, TotalSpineSegError
from totalspineseg_server.io.dicom.seg_object import SegReference, seg_content
from totalspineseg_server.pacs import pacs_messages
from totalspineseg_server.pacs.found_series import image_series, is_own
from totalspineseg_server.pacs.outcomes import Outcome
from totalspineseg_server.pacs.pacs_datastore import UNSENT, PacsDatastore

logger = logging.getLogger(__name__)


def submit_segmentation(
    datastore: PacsDatastore,
    submit: Submit,
    corrections: CorrectionStore,
    file: Path,
    reference: SegReference,
    sender: Sender,
) -> Outcome:
    """Count a segmentation in the PACS as a submission of an annotator, but only once.

    A viewer that got no answer stores it again, perhaps while the first one is still being read.

    Args:
        datastore: The PACS.
        submit: Receives the label.
        corrections: Earlier submissions.
        file: The segmentation.
        reference: Fields of its header.
        sender: User who sent it.

    Returns:
        The outcome. A segmentation that cannot be used is not an error, because the PACS has stored it.
    """
    instance, series = reference.instance, image_series(reference)
    if is_own(reference):
        return Outcome(instance, "prediction", pacs_messages.OWN_RESULT)
    if not datastore.offers(series):
        message = pacs_messages.NOT_OFFERED
        return Outcome(instance, "refused", message)

    params = {"label_info": [{"name": name} for name in reference.labels]}
    with datastore.submitting.of(instance):
        if earlier := _earlier(corrections, series, file, sender):
            return _outcome_of(instance, earlier)
        try:
            info = {"instance": instance}
            correction = submit(receipt_of(series, file, tag=FINAL_TAG, sender=sender, params=params, info=info), file)
        except LabelError as error:
            return Outcome(instance, "parked", f"Not counted: {error}", series)
        except TotalSpineSegError as error:
            logger.warning("A segmentation of series %s was not counted: %s", series, error)
            return Outcome(instance, "refused", f"Not counted: {error}", series)
    outcome = _outcome_of(instance, correction)
    label_info = datastore.get_label_info(series, FINAL_TAG)
    if label_info.get("instance") == instance and label_info.get(UNSENT):
        return replace(outcome, message=f"{outcome.message} {pacs_messages.NOT_PUT_BACK}")
    return outcome


def _earlier(corrections: CorrectionStore, series: str, file: Path, sender: Sender) -> Correction | None:
    """Return the record of the same instance with the same content, or None."""
    try:
        same_name = [known for known in corrections.of_image(series) if known.file_name == sender.file_name]
        content = seg_content(file) if same_name else ""
        return next((one for one in same_name if seg_content(corrections.path(one) / one.raw) == content), None)
    except (StorageError, LabelError) as error:
        # It is better to store it twice than to lose it.
        logger.warning("Earlier segmentations of series %s cannot be compared: %s", series, error)
        return None


def _outcome_of(instance: str, known: Correction) -> Outcome:
    if known.status == "parked":
        return Outcome(instance, "parked", f"Not counted: {known.reason}", known.image, known.id)
    return Outcome(instance, "accepted", known.message, known.image, known.id, tuple(known.findings))
