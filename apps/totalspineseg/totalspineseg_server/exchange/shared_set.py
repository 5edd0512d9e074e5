"""Export finished labels with their images as a BIDS data set without names, dates and identifiers of patients."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import C1, C2, UNREVIEWED, UNREVIEWED_NAME
from totalspineseg_server.bids import (
    DESCRIPTION_FILE,
    FINISHED,
    LEFT_AS_PREDICTED,
    MANUAL,
    description,
    folder_of,
    label_path,
)
from totalspineseg_server.color_tables import BIDS_TABLE, bids_table
from totalspineseg_server.corrections.comparison import stated_left
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.errors import ImageError, StorageError
from totalspineseg_server.exchange import exchange_messages
from totalspineseg_server.files import staged_folder, storage_errors, write_json, write_text
from totalspineseg_server.geometry import AnyArray, on_grid
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.nnunet.discovery import parts_of
from totalspineseg_server.segments import mark_unchecked
from totalspineseg_server.training.site import Site

KEY_FILE: Final = "pseudonyms.key"
"""File of a history with the key of its pseudonyms. With the key and an identifier, anybody can find the pseudonym."""
KEY_BYTES: Final = 32
SUBJECT_DIGITS: Final = 12
SERIES_DIGITS: Final = 8
LABELS: Final = "derivatives/labels"
SUFFIXES: Final = ("T1w", "T2w", "PDw", "FLAIR", "T2star")
"""Suffixes of BIDS for the contrasts of the spine."""
CONTRAST: Final = re.compile(r"(?<![a-z0-9])(?:(?P<t1>t1)|(?P<t2>t2|stir)|(?P<pd>pd))(?![0-9])", re.IGNORECASE)
SESSION: Final = re.compile(r"sub-[A-Za-z0-9]+_(ses-[A-Za-z0-9]+)")
FINISHED_BY_READER: Final = "Label that a reader finished"
FACE: Final = frozenset({C1, C2})
"""Vertebrae near the face, which may be in view with them."""
README: Final = """# Finished labels of the spine

Images of the spine with labels that readers finished: vertebrae, discs, sacrum, canal and cord, below
`derivatives/labels`; `dseg.tsv` there names the numbers. 255 means that nobody checked the voxel.

Names, dates and identifiers of patients and readers were left out: subjects have pseudonyms, and the headers have only
the geometry. The picture itself remains. It may show text that was burned into it, and an image of the neck
or the whole spine may show the face. Look at the images, and keep to the law of your country, before you pass them on.
"""


@dataclass(frozen=True)
class Exported:
    """The outcome of an export.

    Attributes:
        images: Number of images.
        subjects: Number of subjects.
        faces: Number of images that may show the face.
        left_out: Image id -> reason.
    """

    images: int
    subjects: int
    faces: int
    left_out: Mapping[str, str] = field(default_factory=dict)


def export_set(site: Site, target: Path, *, contrast: str = "T2w") -> Exported:
    """Write the newest finished label of each image, with the image, as a BIDS data set.

    Args:
        site: Studies and corrections.
        target: Folder to write; it must be missing or empty, and appears complete.
        contrast: BIDS suffix of images whose name does not say it.

    Raises:
        StorageError: ``target`` has files, there is nothing to export, or something cannot be read or
            written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(exchange_messages.FOLDER_IN_USE.format(folder=str(target)))
    pseudonym = _pseudonyms(site.history)
    finished = _newest_finished(site.corrections)
    left_out: dict[str, str] = {}
    subjects: set[str] = set()
    faces = images = 0
    with storage_errors(target):
        if target.is_dir():
            target.rmdir()
    with staged_folder(target) as root:
        for correction in finished:
            name = _name(correction.image, site.subject(correction.image), pseudonym, contrast)
            try:
                codes = _write_pair(site, correction, root, name)
            except (ImageError, OSError, ValueError) as error:
                if isinstance(error, StorageError):
                    raise
                left_out[correction.image] = str(error)
                continue
            images += 1
            faces += not FACE.isdisjoint(codes)
            subjects.add(folder_of(name).parts[0])
        if not images:
            reasons = " ".join(left_out.values())
            raise StorageError(f"{exchange_messages.NOTHING_TO_EXPORT} {reasons}".strip())
        _write_documents(root, subjects)
    return Exported(images, len(subjects), faces, left_out)


def _newest_finished(corrections: CorrectionStore) -> list[Correction]:
    """Return the newest finished label of each image, in the order of images."""
    images = sorted({correction.image for correction in corrections.all()})
    return [known[-1] for image in images if (known := corrections.finished(image))]


def _write_pair(site: Site, correction: Correction, root: Path, name: str) -> set[int]:
    """Write an image and its label; return the codes in the label."""
    image = read_image(site.labeled_image(correction))
    codes = on_grid(site.corrections.volume(correction), image.grid)
    label = root / LABELS / label_path(name, FINISHED)
    file = root / folder_of(name) / f"{name}.nii.gz"
    for folder in (file.parent, label.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_volume(file, _plain(image.data), image.grid)
    write_volume(label.with_name(f"{label.name}.nii.gz"), mark_unchecked(codes.data, correction.unchecked), codes.grid)
    source = PurePosixPath(folder_of(name), file.name)
    about: dict[str, Any] = {
        "Description": "Result that a reader accepted unchanged" if correction.unchanged else FINISHED_BY_READER,
        "Sources": [f"bids:raw:{source}"],
        MANUAL: not correction.unchanged,
    }
    if correction.untouched or correction.renamed:
        versions = (correction.prediction or {}).get("versions", {})
        # The name of a version means other weights elsewhere; the digits of its network do not.
        networks = {step: parts_of(version)[1] for step, version in versions.items()}
        about[LEFT_AS_PREDICTED] = stated_left(correction.untouched, correction.renamed, networks)
    write_json(label.with_name(f"{label.name}.json"), about)
    return set(np.unique(codes.data).tolist())


def _plain(data: AnyArray) -> AnyArray:
    """Return voxels of a type that every program reads."""
    if data.dtype.kind == "f":
        return data.astype(np.float32)
    return data.astype(np.int32) if data.dtype.itemsize > 4 else data


def _write_documents(root: Path, subjects: set[str]) -> None:
    made = root / LABELS
    write_json(root / DESCRIPTION_FILE, description("Finished labels of the spine", "raw"))
    write_text(root / "README.md", README)
    write_text(root / "participants.tsv", "\n".join(["participant_id", *sorted(subjects)]) + "\n")
    links = {"raw": "../.."}
    write_json(made / DESCRIPTION_FILE, description("Finished labels of the spine", "derivative", DatasetLinks=links))
    write_text(made / "README.md", README)
    write_text(made / BIDS_TABLE, f"{bids_table()}{UNREVIEWED}\t{UNREVIEWED_NAME}\t#808080\n")


def _name(image_id: str, subject: str, pseudonym: Callable[[str, int], str], contrast: str) -> str:
    """Return the BIDS name of an image without its ending; it reveals only the contrast."""
    match = SESSION.search(image_id)
    session = match[0] if match else "" if image_id.startswith("sub-") else image_id
    entities = [f"sub-{pseudonym(subject, SUBJECT_DIGITS)}"]
    entities += [f"ses-{pseudonym(session, SERIES_DIGITS)}"] if session else []
    entities += [f"acq-{pseudonym(image_id, SERIES_DIGITS)}"]
    return "_".join((*entities, _suffix(image_id, contrast)))


def _suffix(image_id: str, otherwise: str) -> str:
    last = image_id.rpartition("_")[2]
    if last in SUFFIXES:
        return last
    match = CONTRAST.search(image_id.replace("_", " "))
    return otherwise if match is None else {"t1": "T1w", "t2": "T2w", "pd": "PDw"}[str(match.lastgroup)]


def _pseudonyms(history: Path) -> Callable[[str, int], str]:
    """Return a function from an identifier to a pseudonym, the same at every export of a site.

    Raises:
        StorageError: The key cannot be read or stored.
    """
    file = history / KEY_FILE
    with storage_errors(file):
        if not file.exists():
            write_text(file, secrets.token_hex(KEY_BYTES) + "\n")
            file.chmod(0o600)
        key = file.read_bytes().strip()
    if len(key) != 2 * KEY_BYTES:
        raise StorageError(exchange_messages.DAMAGED_KEY.format(key=str(file)))

    def pseudonym(identifier: str, digits: int) -> str:
        return hmac.new(key, identifier.encode(errors="backslashreplace"), hashlib.sha256).hexdigest()[:digits]

    return pseudonym
