"""Segmentations in the PACS as submissions, and labels that the PACS still has to get."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lib.corrections.inbox import FINAL_TAG, Publish
from lib.corrections.outcomes import Outcome, accepted
from lib.corrections.store import Correction, Sender
from lib.dicom.seg_object import SegReference
from lib.errors import LabelError, TotalSpineSegError
from lib.pacs.datastore import PacsDatastore
from lib.pacs.series import image_series, is_own

logger = logging.getLogger(__name__)

NOT_PUT_BACK: Final = "The PACS did not take the names that followed; it keeps those you sent until it does."

Submit = Callable[[str, Path, str, Mapping[str, Any], Sender, Publish], Correction]
"""The app's way to take a label."""


def submit_segmentation(
    datastore: PacsDatastore, submit: Submit, file: Path, reference: SegReference, sender: Sender
) -> Outcome:
    """Count a segmentation that lies in the PACS as an annotator's submission.

    Args:
        datastore: The PACS.
        submit: Takes the label.
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

    def publish(image_id: str, label: Path, tag: str, info: dict[str, Any]) -> None:
        own = {"instance": instance, "created": reference.created}
        datastore.save_label(image_id, str(label), tag, {**info, **own})

    params = {"label_info": [{"name": name} for name in reference.labels]}
    try:
        kept = submit(series, file, FINAL_TAG, params, sender, publish)
    except LabelError as error:
        return Outcome(instance, "parked", f"Not counted: {error}", series)
    except TotalSpineSegError as error:
        logger.warning("a segmentation of series %s was not counted: %s", series, error)
        return Outcome(instance, "refused", f"Not counted: {error}", series)
    outcome = accepted(instance, kept)
    if not kept.renumbered or kept.step == 1:
        return outcome
    # The PACS has the names as they were sent: whoever looks there must see those that count.
    return outcome if _put_back(datastore, series) else replace(outcome, message=f"{outcome.message} {NOT_PUT_BACK}")


def send_waiting(datastore: PacsDatastore) -> None:
    """Store the finished labels that the PACS did not take at once, as long as it takes them now."""
    for series in datastore.waiting():
        if not _put_back(datastore, series):
            return


def _put_back(datastore: PacsDatastore, series: str) -> bool:
    try:
        return datastore.put_back(series)
    except TotalSpineSegError as error:
        logger.warning("the label of series %s cannot be stored in the PACS: %s", series, error)
        return False
