"""Offer the studies as MONAI Label's datastore: images, and the labels that clients are shown for them.

Everything here comes from files: the images lie in a folder or a PACS, the labels are saved results and the newest
corrections that count (``label_files``), and anything else about an image is in a record of its own
(``image_records``). The base class holds the code that a folder and a PACS share.
"""

import io
import json
import logging
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.correction_store import FINAL_TAG, Correction, CorrectionStore
from totalspineseg_server.corrections.ids import OFFERED_ENDINGS, split_name
from totalspineseg_server.corrections.image_records import (
    IMAGES_DIR,
    ContentHashes,
    ImageRecords,
    older_index,
)
from totalspineseg_server.corrections.label_files import (
    IMAGE_HASH,
    LABELS_DIR,
    DisplayedLabel,
    LabelFiles,
)
from totalspineseg_server.errors import StorageError, UnknownImageError
from totalspineseg_server.geometry import Volume

logger = logging.getLogger(__name__)

CONTENTS_FILE: Final = "contents.json"
"""File with hashes of images and labels, so that the server does not read all of them at each start; it may be deleted.
"""


class SpineDatastore(Datastore):  # type: ignore[misc]
    """The images of a folder or a PACS, with their labels. Labels are replaced whole, by one writer at a time.

    A submitted or predicted label is kept, but neither shown nor used, while its image is replaced by another one.

    Args:
        folder: Folder of the labels.
        images: Folder of the images' files.
        own: Folder for everything else: records of images, and hashes.
        corrections: The corrections that are shown; None if only saved labels are shown.

    Attributes:
        records: The records of the images, with what is known of each besides its file.
    """

    def __init__(self, folder: Path, images: Path, own: Path, corrections: CorrectionStore | None) -> None:
        self._place = folder
        self._corrections = corrections
        self._reported: set[tuple[str, str, str]] = set()
        self._name, self._description = folder.name, ""
        older = older_index(folder)
        self.records = ImageRecords(own / IMAGES_DIR, older)
        self._contents = ContentHashes(own / CONTENTS_FILE)
        for name, size, time_ns, sha256 in older.hashes():
            self._contents.learn(images / name, size, time_ns, sha256)
        self._labels = LabelFiles(folder / LABELS_DIR, self._contents, older, corrections)

    # Questions that a folder and a PACS answer differently.

    @abstractmethod
    def list_images(self) -> list[str]:
        """Return the ids of the images."""

    @abstractmethod
    def image_file(self, image_id: str) -> Path | None:
        """Return the file of an image, fetched if need be, or None."""

    @abstractmethod
    def present_file(self, image_id: str) -> Path | None:
        """Return the file of an image if it is on this machine now; nothing is fetched."""

    @abstractmethod
    def fingerprint(self, image_id: str) -> str:
        """Return a value that changes whenever an image's content may have changed; "" if there is no such image."""

    @abstractmethod
    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Return the images of the same examination, whose coordinates can be compared with those of this image."""

    @abstractmethod
    def series_folder(self, image_id: str) -> Path | None:
        """Return the folder of an image's DICOM files; None for an image that has none."""

    @abstractmethod
    def study_of(self, image_id: str) -> str:
        """Return the UID of an image's study in the PACS; "" for other images."""

    @abstractmethod
    def same_space(self, one: str, other: str) -> bool:
        """Return whether the coordinates of two images can be compared, as far as is known."""

    @abstractmethod
    def show(self, correction: Correction, codes: Volume, more: Mapping[str, Any] | None = None) -> None:
        """Show an accepted correction under its tag, in place of the label shown before.

        Args:
            correction: The correction.
            codes: Its codes, on the grid of its image. Not modified.
            more: Other information that is shown with it. Not modified.

        Raises:
            KeyError: There is no such image.
            StorageError: It could not be written; the label shown before is still there.
        """

    @abstractmethod
    def send_waiting(self) -> None:
        """Begin to send the waiting labels to another place."""

    @abstractmethod
    def is_unsent(self, image_id: str, tag: str) -> bool:
        """Return whether the label of an image under a tag still has to be sent to another place."""

    @abstractmethod
    def subject(self, image_id: str) -> str:
        """Return an anonymous id of an image's patient; "" if nobody said who it is.

        Raises:
            StorageError: The record that says so cannot be read.
        """

    # Images.

    def get_image_uri(self, image_id: str) -> str:
        """Return the file of an image, fetched if need be; "" if there is none."""
        file = self.image_file(image_id)
        return "" if file is None else str(file)

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """Return the content of an image's file, or None."""
        file = self.image_file(image_id)
        return None if file is None else io.BytesIO(file.read_bytes())

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image; empty if there is no such image."""
        file = self.present_file(image_id)
        return {} if file is None else {**self._image_entry(image_id, file)["info"], "path": os.path.realpath(file)}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to the information about an image.

        Raises:
            ImageNotFoundException: There is no such image.
            StorageError: The information could not be read or written.
        """
        if self.image_file(image_id) is None:
            raise ImageNotFoundException(str(UnknownImageError(image_id)))
        with self._labels.turn():
            self.records.add(image_id, info)

    def _image_entry(self, image_id: str, file: Path | None) -> dict[str, Any]:
        """Return the entry of an image in a list."""
        info = self.records.of(image_id)
        if file is not None:
            try:
                info = {"ts": int(file.stat().st_mtime), **info, "name": file.name}
            except OSError:
                info = {**info, "name": file.name}
        return {"ext": OFFERED_ENDINGS[0] if file is None else split_name(file.name)[1], "info": info}

    # Labels.

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images with a finished label that was drawn on their present content."""
        return [image_id for image_id, labels in self._all_displayed().items() if FINAL_TAG in labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images without such a label."""
        return [image_id for image_id, labels in self._all_displayed().items() if FINAL_TAG not in labels]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return tag -> the id of the label, which is that of the image."""
        return dict.fromkeys(self._labels.displayed(image_id), image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Return the id of a label, which is that of its image; "" if there is none."""
        return image_id if tag in self._labels.displayed(image_id) else ""

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """Return the content of a label's file, or None."""
        file = self.label_file(label_id, label_tag)
        return None if file is None else io.BytesIO(file.read_bytes())

    def label_file(self, image_id: str, tag: str) -> Path | None:
        """Return the file of an image's label under a tag, or None."""
        uri = self.get_label_uri(image_id, tag)
        return Path(uri) if uri and Path(uri).is_file() else None

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the file of a label; "" if there is none, or if its image was replaced.

        Raises:
            StorageError: It is a correction that had to be written, and could not.
        """
        label = self._displayed(label_id).get(_plain(label_tag))
        if label is not None and label.file is None:
            label = self._written(label_id, _plain(label_tag))
        return "" if label is None else str(label.file)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return the information about a label, even if its image was replaced."""
        label = self._labels.displayed(label_id).get(_plain(label_tag))
        return {} if label is None else dict(label.info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Show a label map in wire ids under a tag, in place of the one shown before.

        Labels of annotators come only from ``Inbox``, which has mapped and kept them.

        Args:
            image_id: Image that it belongs to.
            label_filename: NIfTI file of wire ids. Copied.
            label_tag: "original", "final", ..
            label_info: Kept with it; with ``IMAGE_HASH`` it counts only while the image has that content.

        Returns:
            The label id, which is the image id.

        Raises:
            ValueError: The tag is not a plain word.
            KeyError: There is no such image.
            StorageError: It could not be written; the label shown before is still there.
        """
        if self.image_file(image_id) is None:
            raise KeyError(image_id)
        self._labels.save(image_id, _plain(label_tag), Path(label_filename), label_info or {})
        return image_id

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to the information about a label.

        Raises:
            LabelNotFoundException: There is no such label.
            StorageError: It could not be written.
        """
        tag = _plain(label_tag)
        label = self._labels.displayed(label_id).get(tag)
        if label is not None and label.file is None:
            label = self._written(label_id, tag)
        if label is None:
            raise LabelNotFoundException(answers.no_label(label_id, tag))
        with self._labels.turn():
            self._labels.add_info(self._labels.of(label_id).get(tag, label), info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Stop showing a label under a tag; do nothing if none is shown. A correction that counts is shown again.

        Raises:
            StorageError: The file could not be removed.
        """
        with self._labels.turn():
            self._labels.remove(label_id, [tag for tag in self._labels.tags() if tag == _plain(label_tag)])

    def _displayed(self, image_id: str) -> dict[str, DisplayedLabel]:
        """Return the labels of an image by tag that this server made and that were drawn on its present content."""
        return self._fitting(image_id, self._labels.displayed(image_id))

    def _all_displayed(self) -> dict[str, dict[str, DisplayedLabel]]:
        """Return the same for every image."""
        return {
            image_id: self._fitting(image_id, known)
            for image_id, known in self._labels.all_displayed(self.list_images()).items()
        }

    def _fitting(self, image_id: str, known: Mapping[str, DisplayedLabel]) -> dict[str, DisplayedLabel]:
        return {tag: label for tag, label in known.items() if self._fits(image_id, tag, label)}

    def _written(self, image_id: str, tag: str) -> DisplayedLabel | None:
        """Write the label file of a correction if it has none, for instance because it was deleted; return the
        label."""
        correction = None if self._corrections is None else self._corrections.displayed(image_id).get(tag)
        if self._corrections is None or correction is None:
            return None
        self.show(correction, self._corrections.volume(correction))
        return self._labels.of(image_id).get(tag)

    def _fits(self, image_id: str, tag: str, label: DisplayedLabel) -> bool:
        """Return whether this server made a label on the image's present content; a changed image is read again."""
        if not label.is_own:
            return False
        image_hash, file = str(label.info.get(IMAGE_HASH) or ""), self.present_file(image_id)
        if not image_hash or file is None:
            return True
        try:
            fits = self._contents.is_content(file, image_hash)
        except OSError:
            # It was removed, or cannot be read at the moment.
            return True
        replaced = (image_id, tag, image_hash)
        if not fits and replaced not in self._reported:
            self._reported.add(replaced)
            logger.warning(
                "Image %r was replaced after it was labeled, so its label %r is not used. Restore the image, or "
                "label it again.",
                *(image_id, tag),
            )
        return fits

    # The datastore as a whole.

    def name(self) -> str:
        """Return the name of the studies."""
        return self._name

    def set_name(self, name: str) -> None:
        """Set the name of the studies until the server ends."""
        self._name = name

    def description(self) -> str:
        """Return the description of the studies."""
        return self._description

    def set_description(self, description: str) -> None:
        """Set the description of the studies until the server ends."""
        self._description = description

    def datalist(self) -> list[dict[str, Any]]:
        """Return the finished images and their labels as files."""
        finished = ((image_id, self.label_file(image_id, FINAL_TAG)) for image_id in self.get_labeled_images())
        return [{"image": self.get_image_uri(image_id), "label": str(file)} for image_id, file in finished if file]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Refuse to make an archive, because the studies folder itself can be copied.

        Raises:
            StorageError: Always.
        """
        raise StorageError(answers.NO_ARCHIVES)

    def refresh(self) -> None:
        """Look for images that were added or removed."""

    def status(self) -> dict[str, Any]:
        """Return how many images and labels there are."""
        known = self._labels.all_displayed(self.list_images())
        tags = Counter(tag for labels in known.values() for tag, label in labels.items() if label.is_own)
        final = {image_id: labels[FINAL_TAG] for image_id, labels in known.items() if FINAL_TAG in labels}
        finished = sum(self._fits(image_id, FINAL_TAG, label) for image_id, label in final.items())
        return {"total": len(known), "completed": finished, "label_tags": dict(tags)}

    def json(self) -> dict[str, Any]:
        """Return all images and the labels that are shown for them."""
        objects = {
            image_id: {
                "image": self._image_entry(image_id, self.present_file(image_id)),
                "labels": {tag: {"ext": _ending_of(one), "info": dict(one.info)} for tag, one in labels.items()},
            }
            for image_id, labels in self._all_displayed().items()
        }
        # What is sent must be JSON, whatever a client or an older version has stored.
        content: dict[str, Any] = {"name": self.name(), "description": self.description(), "objects": objects}
        content |= {"images_dir": ".", "labels_dir": LABELS_DIR}
        sendable: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return sendable


def _plain(tag: object) -> str:
    """Return a tag as text; MONAI Label has an enumeration for its own two."""
    return str(getattr(tag, "value", tag))


def _ending_of(label: DisplayedLabel) -> str:
    return OFFERED_ENDINGS[0] if label.file is None else split_name(label.file.name)[1]
