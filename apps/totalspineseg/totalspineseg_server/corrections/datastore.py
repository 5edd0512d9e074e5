"""The studies folder of MONAI Label, made safe: files stay inside it and are written whole, by one writer at a time."""

import logging
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from totalspineseg_server.corrections.image_fingerprints import DRAWN_ON, IMPRINT, ImageCheck, imprint_of
from totalspineseg_server.corrections.image_ids import file_stem, id_of_stem, is_usable_id
from totalspineseg_server.corrections.label_notes import note_of, read_note, write_note
from totalspineseg_server.corrections.not_offered import OFFERED_ENDINGS, is_offered, not_offered
from totalspineseg_server.corrections.watch import FolderWatch
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import PARTIAL_PREFIX, copy_file, sha256_of, storage_errors, sync_folder, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.places import COMMAND

logger = logging.getLogger(__name__)

IMAGE_PATTERNS: Final = tuple(f"*{ending}" for ending in OFFERED_ENDINGS)
"""Files of the studies folder that are offered as images. Of two files with one id, the one offered before is used,
since labels are drawn on it, else the one whose ending is first here."""
FOREIGN: Final = (
    "was not made by this server, so the names of its structures are not known and it does not count. Load it in "
    "3D Slicer as a segmentation over its image, name its segments (such as L5 or L4-L5), and submit it. To train from "
    f"many such maps, see '{COMMAND} prepare --help'"
)
WITHOUT_IMAGE: Final = "belongs to no image here. Restore the image or remove the label"
ASIDE: Final = ".not-submitted"
"""Added to the name of a label that somebody else put in the place of a label of the server."""
NAMES_IN_LOG: Final = 5
SAFE_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
INDEX_SECONDS: Final = 60.0
"""Longest wait for another writer of the index: copying a large image to a slow disk takes seconds."""
EXAMINATION: Final = re.compile(r"sub-([A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?_")
"""Series of one session share the scanner's coordinates; those of two sessions do not."""


def same_examination(one: str, other: str) -> bool:
    """Return whether two image ids are of one examination: they begin with the same BIDS ``sub-`` and ``ses-``."""
    first, second = (EXAMINATION.match(image_id) for image_id in (one, other))
    return first is not None and second is not None and first.groups() == second.groups()


def is_safe_tag(tag: str) -> bool:
    """Return whether a label tag is a plain word."""
    return SAFE_TAG.fullmatch(tag) is not None


class StudiesDatastore(LocalDatastore):  # type: ignore[misc]
    """``LocalDatastore`` that never overwrites an image, replaces labels whole, and lets one writer in at a time.

    A submitted or predicted label is kept, but neither shown nor used, while its image is replaced by another one.

    Args:
        path: Folder of the index and of the labels that are shown; made when missing.
        images: Folder of the images, which is only read unless somebody uploads one; empty for the same folder.
        auto_reload: Whether added and removed files are noticed.
        read_only: Whether labels are refused.

    The host's own class copies over files in place, and rewrites its index from memory that may be older than the file;
    with a full disk or two writers, labels are lost.
    """

    looks_beyond = True
    """Whether to report other files in the folder of images, whose owner should know that they are not offered."""

    def __init__(self, path: str, *, images: str = "", auto_reload: bool = True, read_only: bool = False) -> None:
        self._images_dir = images or "."
        self._guard = threading.RLock()
        self._holder = 0
        self._seen: tuple[int, int] | None = None
        self._not_offered: dict[str, str] = {}
        self._same_id: dict[str, str] = {}
        self._image_check = ImageCheck()
        self._reported: set[tuple[str, str, str]] = set()
        # The host's own watch lists the whole folder at every change, takes a watch of the system for every entry of
        # the history, and misses renames, by which whole files appear.
        super().__init__(
            path, images_dir=self._images_dir, extensions=list(IMAGE_PATTERNS), auto_reload=False, read_only=read_only
        )
        self._report_not_offered()
        self._watch = self._watched() if auto_reload else None

    def _to_id(self, file: str) -> tuple[str, str]:
        """Return the id of an image by the name of its file, and the file's ending."""
        stem, ending = _split(file)
        return id_of_stem(stem), ending

    def _filename(self, id: str, ext: str) -> str:
        """Return the name of the file of an image or of its label."""
        return f"{file_stem(id)}{ext}"

    def image_file(self, image_id: str) -> Path | None:
        """Return the file of an image, or None."""
        uri = self.get_image_uri(image_id) if image_id else ""
        return Path(uri) if uri and Path(uri).exists() else None

    def series_folder(self, image_id: str) -> Path | None:
        """Return the folder of an image's DICOM files; None for a folder of images, which has none."""
        return None

    def study_of(self, image_id: str) -> str:
        """Return the UID of an image's study in the PACS; "" for a folder of images."""
        return ""

    def label_file(self, image_id: str, tag: str) -> Path | None:
        """Return the file of an image's label under a tag, or None."""
        uri = self.get_label_uri(image_id, tag)
        return Path(uri) if uri.lower().endswith(OFFERED_ENDINGS) and Path(uri).is_file() else None

    def same_space(self, one: str, other: str) -> bool:
        """Return whether the coordinates of two images can be compared, as far as is known."""
        return True

    def send_waiting(self) -> None:
        """Do nothing: no label of a folder waits to be sent."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image.

        Args:
            image_id: Its id; empty for the file's name.
            image_filename: NIfTI or NRRD file. Copied.
            image_info: Information about it.

        Returns:
            The id.

        Raises:
            ValueError: The id is missing or not readable, or the ending is not that of an image.
            FileExistsError: Another image has this id.
            StorageError: It could not be written, or the image with this id is out of reach.
        """
        source = Path(image_filename)
        own, ending = self._to_id(source.name)
        image_id = image_id or own
        _require_usable_id(image_id)
        if f"*{ending.lower()}" not in IMAGE_PATTERNS:
            raise ValueError(f"The image ends in {ending!r}. Convert it to .nii.gz, .nii or .nrrd.")
        folder = Path(self._datastore.image_path()).resolve()
        with self._index():
            known, there = image_id in self._datastore.objects, self._file_of(image_id)
            if there is None and known and self._is_away():
                raise StorageError(
                    f"The server has a record of an image {image_id!r}, but none of its images can be read now, so "
                    "it cannot tell whether yours is another one. Mount the folder of images, or rename yours."
                )
        # What takes seconds for a large image is done while others may use the index.
        if there is not None and sha256_of(there) != sha256_of(source):
            raise FileExistsError(
                f"Another image here is named {image_id!r}. Rename yours (in 3D Slicer, the volume in the "
                "module Data) and press 'Upload Volume' before 'Submit Label'."
            )
        with _copied(source, folder) if there is None else nullcontext() as copy, self._index():
            entry, file = self._datastore.objects.get(image_id), self._file_of(image_id)
            is_same = file == there
            if is_same and entry and file == self._image_path(image_id, entry):
                return image_id
            if is_same and copy is not None:
                file = folder / self._filename(image_id, ending)
                with storage_errors(file):
                    copy.replace(file)
                    sync_folder(folder)
            if is_same and file is not None:
                self._add_entry(image_id, file, image_info)
                return image_id
        # Somebody else added or removed it in the meantime.
        return self.add_image(image_id, image_filename, image_info)

    def _add_entry(self, image_id: str, file: Path, image_info: Mapping[str, Any]) -> None:
        """Add an image that lies in the folder to the index, which is held."""
        info = {**image_info, "ts": int(time.time()), "name": file.name}
        image = DataModel(info=info, ext=self._to_id(file.name)[1])
        self._datastore.objects[image_id] = ImageLabelModel(image=image)
        self._update_datastore_file()

    def remove_image(self, image_id: str) -> None:
        """Remove an image from the studies, with the labels shown for it; the history keeps all submissions.

        If the image is a link, only the link is removed.

        Raises:
            ImageNotFoundException: There is no such image.
            StorageError: A file or the index could not be changed.
        """
        with self._index():
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise ImageNotFoundException(
                    f"There is no image {image_id!r} in the studies. Ask for the list of images."
                )
            labels = self._all_label_files(image_id)
            # Remove the image first: if it cannot be removed, its labels stay.
            for file in (self._image_path(image_id, entry), *labels):
                _remove(file)
            del self._datastore.objects[image_id]
            self._update_datastore_file()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Show a label map in wire ids under a tag, in place of the one shown before.

        Labels of annotators come only from ``Inbox``, which has mapped and kept them.

        Args:
            image_id: Image that it belongs to.
            label_filename: NIfTI file of wire ids. Copied.
            label_tag: "original", "final", ..
            label_info: Kept with it in the index; with ``DRAWN_ON`` it counts only while the image has that content.

        Returns:
            The label id, which is the image id.

        Raises:
            ValueError: The tag is not a plain word.
            KeyError: There is no such image.
            StorageError: It could not be written; the label shown before is still there.
        """
        tag = str(getattr(label_tag, "value", label_tag))
        if not is_safe_tag(tag):
            raise ValueError(f"expected a label tag of letters, digits, '-' and '_', such as 'final', got {tag!r}")
        source = Path(label_filename)
        ending = self._to_id(source.name)[1]
        with self._index():
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise KeyError(image_id)
            folder = Path(self._datastore.label_path(tag))
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            target = folder / self._filename(image_id, ending)
            others = [file for file in self._label_files(image_id, tag) if file not in (target, note_of(target))]
            self._set_foreign_aside(entry, tag, (target, *others))
            # A label of this server has an entry for its image; a file that somebody else copied here has none.
            info = {DRAWN_ON: "", **(label_info or {}), "ts": int(time.time()), "name": target.name}
            # Store no imprint: the image may have been replaced since that hash was taken, so it is read once more.
            write_note(target, source, info)
            copy_file(source, target)
            entry.labels[tag] = DataModel(info=info, ext=ending)
            self._update_datastore_file()
            _remove_if_possible(others)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Stop showing a label under a tag; do nothing if none is shown.

        Raises:
            StorageError: The file or the index could not be changed.
        """
        with self._index():
            entry = self._datastore.objects.get(label_id)
            label = entry.labels.get(label_tag) if entry else None
            if label is None:
                return
            # Remove the files first: a file that the index does not know would be shown again.
            for file in self._label_files(label_id, label_tag):
                _remove(file)
            del entry.labels[label_tag]
            self._update_datastore_file()

    def fingerprint(self, image_id: str) -> str:
        """Return the size and time of an image's file, which change whenever its content may have changed.

        Returns:
            "" if there is no such image.
        """
        with self._guard:
            entry = self._datastore.objects.get(image_id)
        try:
            return "" if entry is None else "-".join(map(str, imprint_of(self._image_path(image_id, entry))))
        except OSError:
            return ""

    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Return the images of the same examination, whose coordinates can be compared with those of this image."""
        others = (other for other in self.list_images() if other != image_id)
        return tuple(sorted(other for other in others if same_examination(image_id, other)))

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to the information about an image."""
        with self._index():
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to the information about a label."""
        with self._index():
            super().update_label_info(label_id, label_tag, info)

    # The host answers from several threads; none may read while another one adds an image.

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images with a finished label that was drawn on their present content."""
        finished = self._finished()
        return [image_id for image_id, is_finished in finished.items() if is_finished]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images without such a label."""
        finished = self._finished()
        return [image_id for image_id, is_finished in finished.items() if not is_finished]

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the file of a label; "" if there is none, or if its image was replaced."""
        with self._guard:
            entry = self._datastore.objects.get(label_id)
        return str(super().get_label_uri(label_id, label_tag)) if self._fits(label_id, entry, label_tag) else ""

    def status(self) -> dict[str, Any]:
        """Return how many images and labels there are.

        ``not_offered`` maps a file or folder to the offered file with the same id, or to the reason why it is not
        offered.
        """
        finished = self._finished()
        with self._guard:
            entries = self._datastore.objects.values()
            tags = Counter(tag for entry in entries for tag, label in entry.labels.items() if DRAWN_ON in label.info)
            counts = {"total": len(finished), "completed": sum(finished.values()), "label_tags": dict(tags)}
            return {**counts, "not_offered": {**self._not_offered, **self._same_id}}

    def json(self) -> dict[str, Any]:
        """Return the index without labels whose image was replaced."""
        with self._guard:
            content, entries = dict(super().json()), dict(self._datastore.objects)
        for image_id, listed in content["objects"].items():
            tags = listed["labels"]
            listed["labels"] = {tag: tags[tag] for tag in tags if self._fits(image_id, entries[image_id], tag)}
        return content

    def _finished(self) -> dict[str, bool]:
        """Return for each image whether it has a finished label that counts. An image whose file was touched is read;
        no lock is held for that."""
        with self._guard:
            entries = dict(self._datastore.objects)
        return {
            image_id: self._fits(image_id, entry, DefaultLabelTag.FINAL.value) for image_id, entry in entries.items()
        }

    def _fits(self, image_id: str, entry: ImageLabelModel | None, tag: str) -> bool:
        """Return whether an image has a label under a tag that was drawn on its present content."""
        label = entry.labels.get(tag) if entry else None
        if entry is None or label is None or DRAWN_ON not in label.info:
            return False
        if not label.info[DRAWN_ON]:
            return True
        try:
            imprint = self._image_check.check(self._image_path(image_id, entry), label.info)
        except OSError:
            # It was removed, or cannot be read at the moment.
            return True
        if imprint is None:
            self._report_replaced(image_id, tag, label)
            return False
        # In memory; it is written with the next change of the index.
        label.info[IMPRINT] = imprint
        return True

    def _report_replaced(self, image_id: str, tag: str, label: DataModel) -> None:
        replaced = (image_id, tag, str(label.info[DRAWN_ON]))
        if replaced not in self._reported:
            self._reported.add(replaced)
            logger.warning(
                "Image %r was replaced after it was labeled, so its label %r is not used. Restore the image, or "
                "label it again.",
                *(image_id, tag),
            )

    def _image_path(self, image_id: str, entry: ImageLabelModel) -> Path:
        return Path(self._datastore.image_path()) / self._filename(image_id, entry.image.ext)

    def _label_files(self, image_id: str, tag: str) -> tuple[Path, ...]:
        """Return where a label of an image and its note may be under a tag: in one format the index has it, and a file
        in another one would be shown after that is removed."""
        entry, folder = self._datastore.objects.get(image_id), Path(self._datastore.label_path(tag))
        label = entry.labels.get(tag) if entry else None
        endings = {*([label.ext] if label else []), *(pattern[1:] for pattern in IMAGE_PATTERNS)}
        files = (folder / self._filename(image_id, ending) for ending in sorted(endings))
        return tuple(path for file in files for path in (file, note_of(file)))

    def _all_label_files(self, image_id: str) -> tuple[Path, ...]:
        """Return the same files under every tag, also those that the index does not have for this image."""
        tags = (folder.name for folder in Path(self._datastore.label_path(None)).iterdir() if folder.is_dir())
        return tuple(file for tag in tags for file in self._label_files(image_id, tag))

    def _file_of(self, image_id: str) -> Path | None:
        """Return the file of an image, even if it was copied just now and the index does not have it; None if there is
        no file, even if the index has the image."""
        entry, folder = self._datastore.objects.get(image_id), Path(self._datastore.image_path())
        named = [self._image_path(image_id, entry)] if entry else []
        others = [name for name in self._files(str(folder), list(IMAGE_PATTERNS)) if self._to_id(name)[0] == image_id]
        return next((file for file in (*named, *(folder / name for name in others)) if file.is_file()), None)

    def _reconcile_datastore(self) -> None:
        with self._index():
            if self._is_away():
                logger.warning(
                    "There are no images in %s anymore. Their index and labels are kept until they return.",
                    self._images_dir,
                )
                return
            try:
                super()._reconcile_datastore()
            except StorageError as error:
                # The host's method only reads before it writes the index.
                logger.warning("The images in the folder are offered, but their index was not written: %s", error)
        self._report_not_offered()

    def _add_non_existing_labels(self, tag: str) -> int:
        """Add label files that the index does not have, with the information in their notes."""
        before = {image_id for image_id, entry in self._datastore.objects.items() if tag in entry.labels}
        added: int = super()._add_non_existing_labels(tag)
        for image_id, entry in self._datastore.objects.items():
            if tag in entry.labels and image_id not in before:
                label = entry.labels[tag]
                label.info.update(
                    read_note(Path(self._datastore.label_path(tag)) / self._filename(image_id, label.ext))
                )
        return added

    def _is_away(self) -> bool:
        """Return whether a separate folder of images that had images has none: an archive that is not mounted now."""
        images = Path(self._datastore.image_path())
        known = bool(self._datastore.objects) and self._images_dir != "."
        return known and not (images.is_dir() and self._files(str(images), list(IMAGE_PATTERNS)))

    def _report_not_offered(self) -> None:
        """Find the files in the folders that are not offered, and log the reason once for each.

        No lock is held while the folders are searched, which may take long.
        """
        folder, labels = Path(self._datastore.image_path()), Path(self._datastore.label_path(None))
        found = not_offered(folder, labels=labels) if self.looks_beyond and folder.is_dir() else {}
        files = self._files(str(folder), list(IMAGE_PATTERNS))
        with self._guard:
            same_id = {}
            for file in files:
                image_id, ending = self._to_id(file)
                entry = self._datastore.objects.get(image_id)
                if entry is not None and entry.image.ext != ending:
                    same_id[file] = self._filename(image_id, entry.image.ext)
            found |= self._foreign_labels(labels)
            before, self._not_offered = self._not_offered, found
            same_before, self._same_id = self._same_id, same_id
        for name, other in same_id.items():
            if same_before.get(name) != other:
                logger.warning(
                    "%r and %r have the same image id, so %r is not offered. Rename or remove one.", other, name, name
                )
        by_reason: dict[str, list[str]] = {}
        for name, reason in found.items():
            if before.get(name) != reason:
                by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            listed = ", ".join(map(repr, names[:NAMES_IN_LOG])) + (" and more" if len(names) > NAMES_IN_LOG else "")
            logger.warning("Not offered: %s, which %s.", listed, reason)

    def _foreign_labels(self, labels: Path) -> dict[str, str]:
        """Return the label files that this server did not write, whose values have no known names."""
        found = {}
        for image_id, entry in self._datastore.objects.items():
            for tag, label in entry.labels.items():
                if DRAWN_ON not in label.info:
                    file = Path(self._datastore.label_path(tag)) / self._filename(image_id, label.ext)
                    found[file.relative_to(labels.parent).as_posix()] = FOREIGN
        for tag in labels.iterdir() if labels.is_dir() else ():
            for name in self._files(str(tag), list(IMAGE_PATTERNS)) if tag.is_dir() else ():
                if self._to_id(name)[0] not in self._datastore.objects:
                    found[f"{labels.name}/{tag.name}/{name}"] = WITHOUT_IMAGE
        return found

    def _set_foreign_aside(self, entry: ImageLabelModel, tag: str, files: Iterable[Path]) -> None:
        """Rename label files that this server did not write, before its own files take their place."""
        known = entry.labels.get(tag)
        own = known.info.get("name") if known is not None and DRAWN_ON in known.info else None
        for file in files:
            if file.is_file() and file.name != own and not file.name.startswith(".") and not read_note(file):
                aside = file.with_name(f"{file.name}{ASIDE}")
                with storage_errors(file):
                    file.replace(aside)
                logger.warning("%r was not made by this server. It is kept as %r.", file.name, aside.name)

    def _watched(self) -> FolderWatch:
        images = Path(self._datastore.image_path())
        return FolderWatch(
            {images: False, Path(self._datastore_path): False, Path(self._datastore.label_path(None)): True},
            self._look_through,
            index=Path(self._datastore_config_path),
            reload=self._init_from_datastore_file,
            poll=self._is_on_mount(str(images)),
        )

    def _look_through(self) -> None:
        """Update the index after images or labels were added or removed."""
        try:
            self._reconcile_datastore()
        except (StorageError, OSError, ValueError) as error:
            logger.warning("The studies folder could not be read: %s", error)

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Return the image files of a folder, one for each id: the one whose ending is first in ``patterns``.

        Files that are being written and files without a plain name are skipped.
        """
        chosen: dict[str, str] = {}
        for name in self._files(path, patterns):
            chosen.setdefault(self._to_id(name)[0], name)
        return {name: name for name in chosen.values()}

    def _files(self, path: str, patterns: list[str]) -> list[str]:
        """Return the names of all such files, with endings in any case, in the order of ``patterns``, then by name."""
        endings = [pattern[1:] for pattern in patterns]
        plain = [file.name for file in sorted(Path(path).iterdir()) if is_offered(file)]
        return sorted(plain, key=lambda name: (endings.index(self._to_id(name)[1].lower()), name))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the index against other threads and processes; the thread that holds it may take it again.

        The file is locked first, so that readers are not held up while another process has it.

        Raises:
            BusyError: Another process does not release it.
            StorageError: The folder is not writable.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with locked(Path(self._datastore_path), seconds=INDEX_SECONDS), self._guard:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = 0

    @contextmanager
    def _index(self) -> Iterator[None]:
        """Lock the index, and read what others have written since."""
        with self._turn():
            self._reload_index()
            yield

    def _reload_index(self) -> None:
        """Read what another process has written since. The caller holds the lock."""
        path = Path(self._datastore_config_path)
        if path.exists() and _stamp(path) != self._seen:
            self._datastore = LocalDatastoreModel.model_validate_json(path.read_text(encoding="utf-8"))
            self._datastore.base_path = self._datastore_path
            # The folder may have been mounted somewhere else before.
            self._datastore.images_dir = self._images_dir
            self._seen = _stamp(path)

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index; the host calls it by this name."""
        try:
            with self._turn():
                self._reload_index()
        except (OSError, ValueError) as error:
            if throw_exception:
                raise
            logger.warning("The index of the studies cannot be read: %s", error)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index, whole or not at all."""
        content = self._datastore.model_dump(exclude={"base_path"})
        path = Path(self._datastore_config_path)
        with self._turn():
            write_json(path, content, default=str)
            self._seen = _stamp(path)


def _stamp(index: Path) -> tuple[int, int]:
    """Return a value that changes whenever the index is replaced."""
    stat = index.stat()
    return stat.st_ino, stat.st_mtime_ns


def _split(file: str) -> tuple[str, str]:
    """Return a file's name without its ending, and the ending; a part inside the name that looks like one stays."""
    for pattern in IMAGE_PATTERNS:
        if file.lower().endswith(pattern[1:]):
            return file[: -len(pattern) + 1], file[-len(pattern) + 1 :]
    path = Path(file)
    return path.stem, path.suffix


def _require_usable_id(image_id: str) -> None:
    if not is_usable_id(image_id):
        raise ValueError(f"expected a short image id without control characters, got {image_id[:80]!r}")


def _remove(file: Path) -> None:
    with storage_errors(file):
        file.unlink(missing_ok=True)


def _remove_if_possible(files: Iterable[Path]) -> None:
    """Remove files of replaced labels; the new label is shown even if they cannot be removed."""
    for file in files:
        try:
            _remove(file)
        except StorageError as error:
            logger.warning("A replaced label might be shown again: %s", error)


@contextmanager
def _copied(source: Path, folder: Path) -> Iterator[Path]:
    """Copy a file into a folder under a name that no image has; at the end, remove the copy if it is still there.

    Raises:
        StorageError: It could not be written.
    """
    copy = folder / f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
    copy_file(source, copy)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)
