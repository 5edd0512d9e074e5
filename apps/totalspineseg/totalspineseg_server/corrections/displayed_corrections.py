"""Choose the corrections that clients see, write them as label maps for clients, and answer their authors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.anatomy import NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections import answers, history
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.file_contents import Remembered
from totalspineseg_server.corrections.label_files import DRAWN_ON
from totalspineseg_server.corrections.wire import STEP1_WIRE_LABELS, to_wire
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.plausible import without_regions

FINAL_TAG: Final = "final"
"""Datastore tag of a finished label, whose names are certain. Clients that state no tag get this one."""
STEP1_TAG: Final = "step1"
"""Datastore tag of corrected step-1 maps: input of step 2, never a finished label."""
READER_TAGS: Final = (STEP1_TAG, FINAL_TAG)
"""Datastore tags that only submissions of readers may have; others are for predictions and work in progress."""
RENUMBERED: Final = "renumbered"
"""Field of a displayed label: whether it was renumbered after it was sent."""
UNCONFIRMED: Final = "unconfirmed"
"""Field of a displayed label: names that its reader left marked as doubtful. It is also the kind of the finding about
them.
"""
CORRECTION: Final = "correction"
"""Field of a displayed label: the id of the correction; predictions have none."""


def display_tag(tag: str, step: int) -> str:
    """Return the datastore's tag of a label; a step-1 map never replaces a finished label."""
    if step == 2:
        return tag
    return STEP1_TAG if tag in READER_TAGS else f"{tag}-{STEP1_TAG}"


class DisplayedCorrections:
    """The corrections that clients see: for each image and tag the newest one that counts.

    Args:
        store: All corrections.
    """

    def __init__(self, store: CorrectionStore) -> None:
        self._store = store
        self._remembered: Remembered[tuple[Correction, ...]] = Remembered()

    def any_of(self) -> Callable[[str], bool]:
        """Return a function that says whether an image has corrections, even damaged ones, without reading the disk."""
        folders = frozenset(history.names(self._store.root))
        return lambda image_id: history.folder_name(image_id) in folders

    def of(self, image_id: str) -> dict[str, Correction]:
        """Return tag -> the correction of an image that is shown under it."""
        return {display_tag(c.tag, c.step): c for c in self.in_force(image_id) if c.step is not None}

    def under(self, image_id: str, tag: str) -> tuple[Correction, ...]:
        """Return the corrections of an image that count and belong under a tag, oldest first."""
        in_force = self.in_force(image_id)
        return tuple(c for c in in_force if c.step is not None and display_tag(c.tag, c.step) == tag)

    def in_force(self, image_id: str) -> tuple[Correction, ...]:
        """Return the corrections of an image that count, oldest first."""
        folders = self._store.folders(image_id)
        return self._remembered.value(image_id, folders, lambda: self._store.in_force(image_id))

    def has(self, image_id: str, correction_id: str) -> bool:
        """Return whether an image has a correction, even one that does not count anymore."""
        return correction_id in self._store.ids(image_id)

    def draw(self, correction: Correction, folder: Path) -> Path:
        """Write a correction in the form that clients get, on the grid of its image.

        Args:
            correction: An accepted correction.
            folder: Folder to write into.

        Returns:
            The file, in wire ids.

        Raises:
            ImageError: Its codes cannot be read.
            StorageError: The file could not be written.
        """
        codes = self._store.volume(correction)
        file = folder / "label.nii.gz"
        write_volume(file, to_wire(without_regions(codes.data)), codes.grid)
        return file


def info_of(correction: Correction, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the information about a correction as a label.

    Args:
        correction: An accepted correction.
        more: Other fields. Not modified.
    """
    labels = STEP1_WIRE_LABELS if correction.step == 1 else WIRE_LABELS
    return {
        CORRECTION: correction.id,
        "user": correction.user,
        "client_id": correction.client,
        "label_info": [{"name": name, "idx": value} for name, value in labels.items()],
        UNCONFIRMED: [NAME_OF[code] for code in correction.unconfirmed],
        "prediction": correction.prediction,
        DRAWN_ON: correction.image_sha256,
        RENUMBERED: correction.renumbered is not None,
        **(more or {}),
    }


def message_of(correction: Correction) -> str:
    """Return the message for the author of an accepted label: first the effect of a rename, findings last."""
    found = [str(finding.get("message", "")) for finding in correction.findings]
    renumbered = str(correction.renumbered.get("message", "")) if correction.renumbered else ""
    is_finished = correction.tag in READER_TAGS
    return answers.submitted(
        correction.step, len(correction.present), renumbered=renumbered, findings=found, is_finished=is_finished
    )
