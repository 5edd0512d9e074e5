"""The studies folder as MONAI Label sees it, made safe: files stay inside and are whole, writers take turns."""

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

from lib.corrections.image_ids import file_stem, id_of_stem, is_usable_id
from lib.corrections.imprints import DRAWN_ON, IMPRINT, Imprints, imprint_of
from lib.corrections.label_notes import note_of, read_note, write_note
from lib.corrections.not_offered import OFFERED_ENDINGS, is_offered, not_offered
from lib.corrections.watch import FolderWatch
from lib.errors import StorageError
from lib.files import PARTIAL_PREFIX, copy_file, sha256_of, storage_errors, sync_folder, write_json
from lib.locks import locked

logger = logging.getLogger(__name__)

IMAGE_PATTERNS: Final = tuple(f"*{ending}" for ending in OFFERED_ENDINGS)
"""Files of the studies folder that are offered as images; of two that share an id the one whose ending is first here,
unless another one was offered before: its labels are drawn on that one."""
FOREIGN: Final = (
    "was not made by this server, so that the names of its structures are not known, and it does not count: load it in "
    "3D Slicer as a segmentation with its names, and submit it"
)
WITHOUT_IMAGE: Final = "belongs to no image here: restore the image, or remove the label"
ASIDE: Final = ".not-submitted"
"""Behind the name of a label that somebody else put where the server's own one has to lie."""
NAMES_IN_LOG: Final = 5
SAFE_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
INDEX_SECONDS: Final = 60.0
"""How long another one that writes the index is waited for: to copy a large image to a slow disk takes seconds."""
EXAMINATION: Final = re.compile(r"sub-([A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?_")
"""Series of one session share the scanner's coordinates; those of two sessions do not."""


def same_examination(one: str, other: str) -> bool:
    """Whether two image ids name series of one examination: they begin with the same BIDS ``sub-`` and ``ses-``."""
    first, second = (EXAMINATION.match(image_id) for image_id in (one, other))
    return first is not None and second is not None and first.groups() == second.groups()


def is_safe_tag(tag: str) -> bool:
    """Whether a label tag is a plain word."""
    return SAFE_TAG.fullmatch(tag) is not None


class StudiesDatastore(LocalDatastore):  # type: ignore[misc]
    """``LocalDatastore`` that never overwrites an image, replaces labels whole, and lets writers take turns.

    A label that was submitted or predicted is kept, but not shown nor used, while its image is another one.

    Args:
        path: Folder of the index and the labels that are shown; made when missing.
        images: Folder of the images, which is only read unless somebody uploads one; empty for the same folder.
        auto_reload: Whether files that come and go are noticed.
        read_only: Whether labels are refused.

    The host's own class copies over files in place and rewrites its index from memory that may be older than
    the file; a full disk or two writers then cost labels.
    """

    looks_beyond = True
    """Whether what the folder of images holds beside them is somebody's, who should know that it is not offered."""

    def __init__(self, path: str, *, images: str = "", auto_reload: bool = True, read_only: bool = False) -> None:
        self._images_dir = images or "."
        self._guard = threading.RLock()
        self._holder = 0
        self._seen: tuple[int, int] | None = None
        self._not_offered: dict[str, str] = {}
        self._same_id: dict[str, str] = {}
        self._imprints = Imprints()
        self._told: set[tuple[str, str, str]] = set()
        # The host's own watch looks through everything at every file, takes a watch of the system for every entry of
        # the history, and does not listen to renaming, by which whole files come.
        super().__init__(
            path, images_dir=self._images_dir, extensions=list(IMAGE_PATTERNS), auto_reload=False, read_only=read_only
        )
        self._name_what_is_not_offered()
        self._watch = self._watched() if auto_reload else None

    def _to_id(self, file: str) -> tuple[str, str]:
        """The id of an image by the name of its file, and the file's ending."""
        stem, ending = _split(file)
        return id_of_stem(stem), ending

    def _filename(self, id: str, ext: str) -> str:
        """The name of a file of an image, or of a label of it."""
        return f"{file_stem(id)}{ext}"

    def image_file(self, image_id: str) -> Path | None:
        """Return the file of an image, or None."""
        uri = self.get_image_uri(image_id) if image_id else ""
        return Path(uri) if uri and Path(uri).exists() else None

    def series_folder(self, image_id: str) -> Path | None:
        """Return the folder of an image's DICOM files; None for a folder of images, which has none."""
        return None

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
            image_info: What is known about it.

        Returns:
            The id.

        Raises:
            ValueError: No id, one that cannot be read, or not an image's ending.
            FileExistsError: Another image has this id.
            StorageError: It could not be written, or the image that has this id is away.
        """
        source = Path(image_filename)
        own, ending = self._to_id(source.name)
        image_id = image_id or own
        _require_usable_id(image_id)
        if f"*{ending.lower()}" not in IMAGE_PATTERNS:
            raise ValueError(f"The image ends in {ending!r}. Convert it to .nii.gz, .nii or .nrrd.")
        folder = Path(self._datastore.image_path()).resolve()
        with self._index():
            known, there = image_id in self._datastore.objects, self._lying(image_id)
            if there is None and known and self._is_away():
                raise StorageError(
                    f"The server has a record of an image {image_id!r}, but none of its images can be read now, so "
                    "it cannot tell whether yours is another one. Mount the folder of images, or rename yours."
                )
        # What takes seconds for a large image is done while others may use the index.
        if there is not None and sha256_of(there) != sha256_of(source):
            raise FileExistsError(
                f"The name {image_id!r} names another image here. Rename yours (in 3D Slicer the volume, in the "
                "module Data) and press 'Upload Volume' before 'Submit Label'."
            )
        with _copied(source, folder) if there is None else nullcontext() as copy, self._index():
            entry, kept = self._datastore.objects.get(image_id), self._lying(image_id)
            is_same = kept == there
            if is_same and entry and kept == self._image_path(image_id, entry):
                return image_id
            if is_same and copy is not None:
                kept = folder / self._filename(image_id, ending)
                with storage_errors(kept):
                    copy.replace(kept)
                    sync_folder(folder)
            if is_same and kept is not None:
                self._add_entry(image_id, kept, image_info)
                return image_id
        # Somebody else added or removed it in the meantime.
        return self.add_image(image_id, image_filename, image_info)

    def _add_entry(self, image_id: str, kept: Path, image_info: Mapping[str, Any]) -> None:
        """Add an image that lies in the folder to the index, which is held."""
        info = {**image_info, "ts": int(time.time()), "name": kept.name}
        image = DataModel(info=info, ext=self._to_id(kept.name)[1])
        self._datastore.objects[image_id] = ImageLabelModel(image=image)
        self._update_datastore_file()

    def remove_image(self, image_id: str) -> None:
        """Take an image out of the studies, with the labels shown for it; the history keeps what was submitted.

        Of a link the link alone is removed: the file it leads to belongs to somebody else.

        Raises:
            ImageNotFoundException: There is no such image.
            StorageError: A file or the index could not be changed.
        """
        with self._index():
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise ImageNotFoundException(
                    f"the id of an image of the studies is required, got {image_id!r}; ask for the list"
                )
            labels = self._all_label_files(image_id)
            # The image first: where it cannot be removed, its labels stay.
            for file in (self._image_path(image_id, entry), *labels):
                _remove(file)
            del self._datastore.objects[image_id]
            self._update_datastore_file()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Show a label map in wire ids under a tag, replacing the one shown before.

        What annotators submit comes here only through ``Inbox``, which has mapped and kept it.

        Args:
            image_id: Image it belongs to.
            label_filename: NIfTI file of wire ids. Copied.
            label_tag: "original", "final", ..
            label_info: Kept beside it in the index; with ``DRAWN_ON`` it counts only while the image stays that one.

        Returns:
            The label id, which is the image id.

        Raises:
            ValueError: An unsafe tag.
            KeyError: There is no such image.
            StorageError: It could not be written; the label shown before is still there.
        """
        tag = str(getattr(label_tag, "value", label_tag))
        if not is_safe_tag(tag):
            raise ValueError(f"a label tag of letters, digits, '-' and '_' is required, got {tag!r}; use 'final'")
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
            # An own label has an entry for its image; what was copied to this place by somebody else has none.
            info = {DRAWN_ON: "", **(label_info or {}), "ts": int(time.time()), "name": target.name}
            # No imprint: the image may have been replaced since that hash was taken, so it is read once.
            write_note(target, source, info)
            copy_file(source, target)
            entry.labels[tag] = DataModel(info=info, ext=ending)
            self._update_datastore_file()
            _remove_if_possible(others)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Show no label under a tag any more; nothing happens where none is shown.

        Raises:
            StorageError: The file or the index could not be changed.
        """
        with self._index():
            entry = self._datastore.objects.get(label_id)
            label = entry.labels.get(label_tag) if entry else None
            if label is None:
                return
            # First: a file that the index does not know would be shown again.
            for file in self._label_files(label_id, label_tag):
                _remove(file)
            del entry.labels[label_tag]
            self._update_datastore_file()

    def fingerprint(self, image_id: str) -> str:
        """Return what changes whenever an image's content may have, without reading it: its file's size and time.

        Returns:
            "" where there is no such image.
        """
        with self._guard:
            entry = self._datastore.objects.get(image_id)
        try:
            return "" if entry is None else "-".join(map(str, imprint_of(self._image_path(image_id, entry))))
        except OSError:
            return ""

    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Images of the same examination, whose coordinates can be compared with this one's."""
        others = (other for other in self.list_images() if other != image_id)
        return tuple(sorted(other for other in others if same_examination(image_id, other)))

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known about an image."""
        with self._index():
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known about a label."""
        with self._index():
            super().update_label_info(label_id, label_tag, info)

    # The host answers from several threads; none may read while another adds an image.

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images with a finished label that was drawn on them as they are now."""
        finished = self._finished()
        return [image_id for image_id, is_finished in finished.items() if is_finished]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images without one."""
        finished = self._finished()
        return [image_id for image_id, is_finished in finished.items() if not is_finished]

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of a label; "" for none, and for one that was drawn on what the image was before."""
        with self._guard:
            entry = self._datastore.objects.get(label_id)
        return str(super().get_label_uri(label_id, label_tag)) if self._fits(label_id, entry, label_tag) else ""

    def status(self) -> dict[str, Any]:
        """How many images and labels there are.

        ``not_offered``: file or folder -> the offered file that has its id, or why it is not offered.
        """
        finished = self._finished()
        with self._guard:
            entries = self._datastore.objects.values()
            tags = Counter(tag for entry in entries for tag, label in entry.labels.items() if DRAWN_ON in label.info)
            counts = {"total": len(finished), "completed": sum(finished.values()), "label_tags": dict(tags)}
            return {**counts, "not_offered": {**self._not_offered, **self._same_id}}

    def json(self) -> dict[str, Any]:
        """The index, without labels that were drawn on what their image was before."""
        with self._guard:
            content, entries = dict(super().json()), dict(self._datastore.objects)
        for image_id, listed in content["objects"].items():
            tags = listed["labels"]
            listed["labels"] = {tag: tags[tag] for tag in tags if self._fits(image_id, entries[image_id], tag)}
        return content

    def _finished(self) -> dict[str, bool]:
        """Whether an image has a finished label that counts, for each. An image that was touched is read: no lock is
        held meanwhile."""
        with self._guard:
            entries = dict(self._datastore.objects)
        return {
            image_id: self._fits(image_id, entry, DefaultLabelTag.FINAL.value) for image_id, entry in entries.items()
        }

    def _fits(self, image_id: str, entry: ImageLabelModel | None, tag: str) -> bool:
        """Whether an image has a label under a tag that was drawn on it as it is now."""
        label = entry.labels.get(tag) if entry else None
        if entry is None or label is None or DRAWN_ON not in label.info:
            return False
        if not label.info[DRAWN_ON]:
            return True
        try:
            imprint = self._imprints.check(self._image_path(image_id, entry), label.info)
        except OSError:
            # It is gone, or cannot be read just now.
            return True
        if imprint is None:
            self._tell_of_replaced(image_id, tag, label)
            return False
        # In memory; it goes to the disk with the next change of the index.
        label.info[IMPRINT] = imprint
        return True

    def _tell_of_replaced(self, image_id: str, tag: str, label: DataModel) -> None:
        told = (image_id, tag, str(label.info[DRAWN_ON]))
        if told not in self._told:
            self._told.add(told)
            logger.warning(
                "the image that was labeled is required, got another file as %r; its label %r is not used: restore the "
                "image, or label it again",
                *(image_id, tag),
            )

    def _image_path(self, image_id: str, entry: ImageLabelModel) -> Path:
        return Path(self._datastore.image_path()) / self._filename(image_id, entry.image.ext)

    def _label_files(self, image_id: str, tag: str) -> tuple[Path, ...]:
        """Where a label of an image may lie under a tag: in one format the index has it, and any other one would be
        shown once that is gone. With what is noted about each, which names its reader."""
        entry, folder = self._datastore.objects.get(image_id), Path(self._datastore.label_path(tag))
        label = entry.labels.get(tag) if entry else None
        endings = {*([label.ext] if label else []), *(pattern[1:] for pattern in IMAGE_PATTERNS)}
        files = (folder / self._filename(image_id, ending) for ending in sorted(endings))
        return tuple(path for file in files for path in (file, note_of(file)))

    def _all_label_files(self, image_id: str) -> tuple[Path, ...]:
        """The same under every tag, also those that the index does not know for this image."""
        tags = (folder.name for folder in Path(self._datastore.label_path(None)).iterdir() if folder.is_dir())
        return tuple(file for tag in tags for file in self._label_files(image_id, tag))

    def _lying(self, image_id: str) -> Path | None:
        """The file of an image, also one that was copied a moment ago, so that the index does not know it; None where
        there is none, also of an image that the index knows."""
        entry, folder = self._datastore.objects.get(image_id), Path(self._datastore.image_path())
        named = [self._image_path(image_id, entry)] if entry else []
        others = [name for name in self._files(str(folder), list(IMAGE_PATTERNS)) if self._to_id(name)[0] == image_id]
        return next((file for file in (*named, *(folder / name for name in others)) if file.is_file()), None)

    def _reconcile_datastore(self) -> None:
        with self._index():
            if self._is_away():
                logger.warning(
                    "no image lies in %s any more; what is known of them stays until they return", self._images_dir
                )
                return
            try:
                super()._reconcile_datastore()
            except StorageError as error:
                # It only reads before.
                logger.warning("images are offered as they lie in the folder, but their index is not stored: %s", error)
        self._name_what_is_not_offered()

    def _add_non_existing_labels(self, tag: str) -> int:
        """Take over label files that the index does not know, with what is known about those that it knew once."""
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
        """Whether a folder of its own that held images holds none: an archive that is not mounted at this moment."""
        images = Path(self._datastore.image_path())
        known = bool(self._datastore.objects) and self._images_dir != "."
        return known and not (images.is_dir() and self._files(str(images), list(IMAGE_PATTERNS)))

    def _name_what_is_not_offered(self) -> None:
        """Find what lies in the folders but is not offered, and log, once for each, why.

        Nothing is locked while the folders are looked into, which may take long.
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
                    "%r and %r have one image id; %r is not offered: rename or remove one", other, name, name
                )
        by_reason: dict[str, list[str]] = {}
        for name, reason in found.items():
            if before.get(name) != reason:
                by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            listed = ", ".join(map(repr, names[:NAMES_IN_LOG])) + (" and more" if len(names) > NAMES_IN_LOG else "")
            logger.warning("not offered is %s, which %s", listed, reason)

    def _foreign_labels(self, labels: Path) -> dict[str, str]:
        """Label files that this server did not write: by which numbers they name structures, nobody knows."""
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
        """Rename label files that this server did not write, before its own ones take their place."""
        known = entry.labels.get(tag)
        own = known.info.get("name") if known is not None and DRAWN_ON in known.info else None
        for file in files:
            if file.is_file() and file.name != own and not file.name.startswith(".") and not read_note(file):
                aside = file.with_name(f"{file.name}{ASIDE}")
                with storage_errors(file):
                    file.replace(aside)
                logger.warning("%r was not made by this server; it is kept as %r", file.name, aside.name)

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
        """Take images and labels that came or went into the index."""
        try:
            self._reconcile_datastore()
        except (StorageError, OSError, ValueError) as error:
            logger.warning("the folder of the studies could not be looked through: %s", error)

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Files of a folder, one an id: of several the one whose ending comes first in ``patterns``.

        Not those being written, nor those whose name is no plain one.
        """
        chosen: dict[str, str] = {}
        for name in self._files(path, patterns):
            chosen.setdefault(self._to_id(name)[0], name)
        return {name: name for name in chosen.values()}

    def _files(self, path: str, patterns: list[str]) -> list[str]:
        """Names of all such files, whatever the case of their ending, as ``patterns`` has them, then by name."""
        endings = [pattern[1:] for pattern in patterns]
        plain = [file.name for file in sorted(Path(path).iterdir()) if is_offered(file)]
        return sorted(plain, key=lambda name: (endings.index(self._to_id(name)[1].lower()), name))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the index against other threads and processes; the thread that holds it may take it again.

        The file first: while another process has it, whoever only reads is not held up.

        Raises:
            BusyError: Another one does not let go of it.
            StorageError: The folder cannot be written.
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
        """Hold the index, with what others wrote since."""
        with self._turn():
            self._reload_index()
            yield

    def _reload_index(self) -> None:
        """Take over what another process wrote since. The caller has its turn."""
        path = Path(self._datastore_config_path)
        if path.exists() and _stamp(path) != self._seen:
            self._datastore = LocalDatastoreModel.model_validate_json(path.read_text(encoding="utf-8"))
            self._datastore.base_path = self._datastore_path
            # The folder may have been mounted somewhere else before.
            self._datastore.images_dir = self._images_dir
            self._seen = _stamp(path)

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """The host's name for ``_reload_index``."""
        try:
            with self._turn():
                self._reload_index()
        except (OSError, ValueError) as error:
            if throw_exception:
                raise
            logger.warning("the index of the studies cannot be read: %s", error)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index, whole or not at all."""
        content = self._datastore.model_dump(exclude={"base_path"})
        path = Path(self._datastore_config_path)
        with self._turn():
            write_json(path, content, default=str)
            self._seen = _stamp(path)


def _stamp(index: Path) -> tuple[int, int]:
    """Changes whenever the index is replaced."""
    stat = index.stat()
    return stat.st_ino, stat.st_mtime_ns


def _split(file: str) -> tuple[str, str]:
    """A file's name without its ending, and the ending; an ending-like part inside the name stays."""
    for pattern in IMAGE_PATTERNS:
        if file.lower().endswith(pattern[1:]):
            return file[: -len(pattern) + 1], file[-len(pattern) + 1 :]
    path = Path(file)
    return path.stem, path.suffix


def _require_usable_id(image_id: str) -> None:
    if not is_usable_id(image_id):
        raise ValueError(
            f"a short image id without control characters is required, got {image_id[:80]!r}; rename the image"
        )


def _remove(file: Path) -> None:
    with storage_errors(file):
        file.unlink(missing_ok=True)


def _remove_if_possible(files: Iterable[Path]) -> None:
    """Remove files of labels that another one took the place of, which is shown whether or not they go."""
    for file in files:
        try:
            _remove(file)
        except StorageError as error:
            logger.warning("a label that was replaced could be shown again: %s", error)


@contextmanager
def _copied(source: Path, folder: Path) -> Iterator[Path]:
    """Copy a file into a folder, under a name that is no image's, and remove what is left of it in the end.

    Raises:
        StorageError: It could not be written.
    """
    copy = folder / f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
    copy_file(source, copy)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)
