"""Name the files of BIDS data sets, and describe such a data set."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from totalspineseg_server.version import VERSION

BIDS_VERSION: Final = "1.10.0"
DESCRIPTION_FILE: Final = "dataset_description.json"
DERIVATIVES: Final = "derivatives"
"""Folder of a data set with what was made from its images, such as labels."""
PIPELINE: Final = "totalspineseg"
"""Name of the folder of our label maps below ``derivatives``."""
PREDICTED: Final = "TotalSpineSeg"
"""Value of ``seg-`` of a network's label maps."""
FINISHED: Final = "spine"
"""Value of ``seg-`` of label maps that readers finished; ``prepare`` uses only these."""
IMAGE_NAME: Final = re.compile(
    r"(?P<entities>(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?(?:_[a-z]+-[A-Za-z0-9]+)*)"
    r"_(?P<suffix>[A-Za-z][A-Za-z0-9]*)"
)
"""Name of an image, without its ending."""
SUBJECT: Final = re.compile(r"sub-[A-Za-z0-9]+")
LABEL_NAME: Final = re.compile(rf"(?P<entities>sub-.+)_seg-{FINISHED}_desc-(?P<suffix>[A-Za-z0-9]+)_dseg")
"""Name of a finished label map, without its ending."""
LABEL_SUFFIX: Final = "_label-spine_dseg"
"""Ending of the names of labels, beside BIDS's own name, in many data sets of the spine."""
ANATOMY_FOLDERS: Final = ("sub-*/anat", "sub-*/ses-*/anat")
"""Patterns of the folders of a data set that have anatomical images."""
MANUAL: Final = "Manual"
"""Key of the file beside a label: false for a map that a program made and nobody corrected."""
LEFT_AS_PREDICTED: Final = "LeftAsPredicted"
"""Key of the file beside a label: structures that its reader left as a network predicted them, and that network."""
HASH_DIGITS: Final = 6


def subject_of(image: str) -> str:
    """Return the subject that an image id belongs to: its BIDS subject, or else the id itself."""
    match = SUBJECT.search(image)
    return match[0] if match else image


def label_path(image_name: str, segmentation: str, *, iso: bool = False) -> PurePosixPath:
    """Return the path of an image's label map below a folder of derivatives, without its ending.

    Args:
        image_name: Name of the image without its ending. A name that does not follow BIDS becomes that of a subject.
        segmentation: ``PREDICTED`` or ``FINISHED``.
        iso: Whether the map has voxels of 1 mm instead of those of the image.
    """
    match = IMAGE_NAME.fullmatch(image_name)
    entities = f"sub-{_plain(image_name)}" if match is None else match["entities"]
    kinds = ["res-1mm"] if iso else []
    kinds += [f"seg-{segmentation}"] + ([] if match is None else [f"desc-{match['suffix']}"])
    name = "_".join((entities, *kinds, "dseg"))
    return folder_of(image_name) / name


def folder_of(image_name: str) -> PurePosixPath:
    """Return the folder of an image and of its label, below a data set."""
    match = IMAGE_NAME.fullmatch(image_name)
    if match is None:
        return PurePosixPath(f"sub-{_plain(image_name)}") / "anat"
    return PurePosixPath(match["subject"], *filter(None, [match["session"]]), "anat")


def image_of_label(label_name: str) -> str | None:
    """Return the name of the image of a finished label map, both without endings; None for another file."""
    match = LABEL_NAME.fullmatch(label_name)
    return None if match is None else f"{match['entities']}_{match['suffix']}"


def description(name: str, kind: str, **more: Any) -> Mapping[str, Any]:
    """Return the content of ``dataset_description.json``.

    Args:
        name: Name of the data set.
        kind: "raw" or "derivative".
        more: Further fields.
    """
    made_by = {"Name": "TotalSpineSeg for MONAI Label", "Version": VERSION}
    return {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind, "GeneratedBy": [made_by], **more}


def _plain(name: str) -> str:
    """Return a name in letters and digits; other characters are left out, and a hash tells such names apart."""
    plain = "".join(c for c in name if c.isascii() and c.isalnum())
    return (
        plain if plain == name else f"{plain}{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:HASH_DIGITS]}"
    )
