"""Hold the labels that clients see: saved maps, and the newest corrections that count.

The maps are ``labels/<tag>/<image><ending>``, each with a hidden note beside it that has the information about the map.
Both may be deleted together: a reader's label is written again from the corrections, and a prediction can be computed
again. A map without a note was copied there by somebody else.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.anatomy import NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore, is_safe_tag
from totalspineseg_server.corrections.ids import OFFERED_ENDINGS, by_image, file_stem, image_files, split_name
from totalspineseg_server.corrections.image_records import ContentHashes, OlderIndex, Remembered
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import copy_file, read_json_or, sha256_of, storage_errors, write_json
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.locks import locked
from totalspineseg_server.segments import STEP1_WIRE_LABELS, to_wire, without_regions

logger = logging.getLogger(__name__)

LABELS_DIR: Final = "labels"
INDEX_SECONDS: Final = 60.0
"""Longest wait for another process that changes the studies: copying a large image to a slow disk takes seconds."""
IMAGE_HASH: Final = "image_sha256"
"""Field of a label: hash of the image on which it was drawn; "" if unknown. Labels that were copied by hand do not have
it."""
RENUMBERED: Final = "renumbered"
"""Field of a displayed label: whether it was renumbered after it was sent."""
UNCONFIRMED: Final = "unconfirmed"
"""Field of a displayed label: names that its reader left marked as doubtful. It is also the kind of the finding about
them.
"""
CORRECTION: Final = "correction"
"""Field of a displayed label: the id of the correction; predictions have none."""
ASIDE: Final = ".not-submitted"
"""Ending that is added to the name of a label that somebody else copied to the place of the server's label."""


@dataclass(frozen=True)
class DisplayedLabel:
    """A label map for clients.

    Attributes:
        file: The map; None if it has yet to be written.
        info: Information about it; without ``IMAGE_HASH``, this server did not make it.
    """

    file: Path | None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether this server made it."""
        return IMAGE_HASH in self.info


class LabelFiles:
    """The labels below a folder, which are changed by one thread of one process at a time.

    Args:
        folder: Folder of the labels; it is made when the first label is written.
        contents: Hashes of their files.
        older: The index of an earlier version.
        corrections: The corrections that clients see, too; None if they see only saved labels.
    """

    def __init__(
        self, folder: Path, contents: ContentHashes, older: OlderIndex, corrections: CorrectionStore | None
    ) -> None:
        self.folder = folder
        self._contents = contents
        self._older = older
        self._corrections = corrections
        self._holder = 0
        self._tags: Remembered[tuple[str, ...]] = Remembered()
        self._names: Remembered[dict[str, list[str]]] = Remembered()
        self._infos: Remembered[dict[str, Any]] = Remembered()

    def tags(self) -> tuple[str, ...]:
        """Return the tags that have a folder."""
        return self._tags.value("", [self.folder], self._read_tags)

    def images(self) -> frozenset[str]:
        """Return the ids of images that have labels."""
        return frozenset(image_id for names in self.names().values() for image_id in names)

    def names(self) -> dict[str, Mapping[str, Sequence[str]]]:
        """Return tag -> image id -> names of the files of its labels."""
        return {tag: self._listed(tag) for tag in self.tags()}

    def of(
        self, image_id: str, names: Mapping[str, Mapping[str, Sequence[str]]] | None = None
    ) -> dict[str, DisplayedLabel]:
        """Return the labels of an image by tag; the server's own label comes before one that somebody copied beside it.

        Args:
            image_id: The image.
            names: A recent result of ``names``, which saves time if many images are asked for.
        """
        found = {}
        for tag, listed in (self.names() if names is None else names).items():
            files = [self.folder / tag / name for name in listed.get(image_id, ())]
            labels = [DisplayedLabel(file, self._info(image_id, tag, file)) for file in files]
            if labels:
                found[tag] = next((label for label in labels if label.is_own), labels[0])
        return found

    def displayed(self, image_id: str) -> dict[str, DisplayedLabel]:
        """Return the labels of an image by tag, whether or not they fit it: saved ones, and corrections that count.

        An empty id, as clients send it, has none.
        """
        return self._with_corrections(image_id, self.of(image_id)) if image_id else {}

    def all_displayed(self, images: Sequence[str]) -> dict[str, dict[str, DisplayedLabel]]:
        """Return the same for many images."""
        names = self.names()
        corrected = frozenset() if self._corrections is None else self._corrections.corrected(images)
        known = {image_id: self.of(image_id, names) for image_id in images}
        return known | {one: self._with_corrections(one, known[one]) for one in images if one in corrected}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let one thread of one process at a time change the studies; the thread that does may call this again.

        Raises:
            BusyError: Another process does not release the lock.
            StorageError: The folder is not writable.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with locked(self.folder.parent, seconds=INDEX_SECONDS):
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = 0

    def show(self, correction: Correction, codes: Volume, more: Mapping[str, Any] | None = None) -> None:
        """Show a correction under its tag; see ``SpineDatastore.show``."""
        with correction_file(codes) as file:
            self.save(correction.image, correction.displayed_tag, file, info_of(correction, more))

    def save(self, image_id: str, tag: str, source: Path, info: Mapping[str, Any]) -> None:
        """Show a label map of this server under a tag, in place of the previous one.

        Args:
            image_id: Image to which it belongs.
            tag: Its tag.
            source: The map. Copied.
            info: Information about it. Not modified.

        Raises:
            ValueError: The tag is not a plain word.
            StorageError: It could not be written; the previous label is still there.
        """
        if not is_safe_tag(tag):
            raise ValueError(f"expected a label tag of letters, digits, '-' and '_', such as 'final', got {tag!r}")
        with self.turn():
            # A label of this server says what it was drawn on; a file that somebody else copied here does not.
            self._write(image_id, tag, source, {IMAGE_HASH: "", **info, "ts": int(time.time())})

    def _write(self, image_id: str, tag: str, source: Path, info: Mapping[str, Any]) -> None:
        """Write a label map and its note. A map that somebody else copied there is renamed.

        Args:
            image_id: Image to which it belongs.
            tag: Its tag.
            source: The map. Copied.
            info: Information about it, with ``IMAGE_HASH``. Not modified.

        Raises:
            StorageError: It could not be written; the previous label is still there.
        """
        before, folder = self.of(image_id).get(tag), self.folder / tag
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{file_stem(image_id)}{split_name(source.name)[1]}"
        others = [file for file in self._files(image_id, tag) if file not in (target, note_of(target))]
        self._set_foreign_aside(image_id, tag, (target, *others))
        note: dict[str, Any] = {"label_sha256": sha256_of(source), "info": {**info, "name": target.name}}
        if before is not None and before.is_own and before.file == target:
            # The previous map is there until the map itself is replaced.
            note["before"] = {"label_sha256": self._contents.of(target), "info": before.info}
        write_json(note_of(target), note, default=str)
        copy_file(source, target)
        for file in others:
            # The new label is shown even if the old files cannot be removed.
            try:
                remove_file(file)
            except StorageError as error:
                logger.warning("A replaced label might be shown again: %s", error)

    def add_info(self, label: DisplayedLabel, info: Mapping[str, Any]) -> None:
        """Add to the information about a label that has a file.

        Raises:
            StorageError: It could not be written.
        """
        if label.file is not None:
            note = {"label_sha256": self._contents.of(label.file), "info": {**label.info, **info}}
            write_json(note_of(label.file), note, default=str)

    def remove(self, image_id: str, tags: Iterable[str]) -> None:
        """Remove the labels of an image under some tags, in every format, and their notes, which name readers.

        Raises:
            StorageError: A file could not be removed.
        """
        for tag in tags:
            for file in self._files(image_id, tag):
                remove_file(file)

    def _with_corrections(self, image_id: str, saved: Mapping[str, DisplayedLabel]) -> dict[str, DisplayedLabel]:
        """Return the labels of an image with those that follow from its corrections.

        Args:
            image_id: The image.
            saved: The labels that have files. Not modified.
        """
        found = dict(saved)
        if self._corrections is None:
            return found
        newest = self._corrections.displayed(image_id)
        for tag, label in saved.items():
            # A correction that the history does not know stays: the history may have been lost.
            displayed = str(label.info.get(CORRECTION) or "")
            if displayed and tag not in newest and displayed in self._corrections.ids(image_id):
                del found[tag]
        for tag, correction in newest.items():
            here = saved.get(tag)
            if here is None or not here.is_own or here.info.get(CORRECTION) not in (None, correction.id):
                found[tag] = DisplayedLabel(None, info_of(correction))
        return found

    def _read_tags(self) -> tuple[str, ...]:
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in self.folder.iterdir() if path.is_dir()))

    def _listed(self, tag: str) -> dict[str, list[str]]:
        """Return image id -> names of the files under a tag."""
        folder = self.folder / tag
        return self._names.value(tag, [folder], lambda: by_image(image_files(folder)) if folder.is_dir() else {})

    def _files(self, image_id: str, tag: str) -> tuple[Path, ...]:
        """Return the files of an image's labels under a tag, in any format, each with the path of its note."""
        folder = self.folder / tag
        names = {*self._listed(tag).get(image_id, ()), *(f"{file_stem(image_id)}{end}" for end in OFFERED_ENDINGS)}
        return tuple(path for name in sorted(names) for path in (folder / name, note_of(folder / name)))

    def _set_foreign_aside(self, image_id: str, tag: str, files: Iterable[Path]) -> None:
        """Rename label files that this server did not write, before its own files take their place."""
        for file in files:
            if file.is_file() and not file.name.startswith(".") and IMAGE_HASH not in self._info(image_id, tag, file):
                aside = file.with_name(f"{file.name}{ASIDE}")
                with storage_errors(file):
                    file.replace(aside)
                logger.warning("%r was not made by this server. It is kept as %r.", file.name, aside.name)

    def _info(self, image_id: str, tag: str, file: Path) -> dict[str, Any]:
        return self._infos.value(file, [file, note_of(file)], lambda: self._read_info(image_id, tag, file))

    def _read_info(self, image_id: str, tag: str, file: Path) -> dict[str, Any]:
        """Return the information about a label; empty if its file has been replaced since, for instance by hand."""
        note = read_json_or(note_of(file), None)
        try:
            if note is None:
                info = self._older.label(image_id, tag)
                is_known = info.get("name") == file.name and file.stat().st_mtime_ns <= self._older.changed_ns
                return info if is_known else {}
            known = {str(each["label_sha256"]): each["info"] for each in (note.get("before"), note) if each}
            return dict(known.get(self._contents.of(file), {}))
        except (OSError, KeyError, TypeError, ValueError):
            return {}


def note_of(label: Path) -> Path:
    """Return the path of the note beside a label's file. Remove both together, because the note names a reader."""
    return label.with_name(f".{label.name}.json")


def remove_file(file: Path) -> None:
    """Remove a file, which may not exist.

    Raises:
        StorageError: It cannot be removed.
    """
    with storage_errors(file):
        file.unlink(missing_ok=True)


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
        IMAGE_HASH: correction.image_sha256,
        RENUMBERED: correction.renumbered is not None,
        **(more or {}),
    }


@contextmanager
def correction_file(codes: Volume) -> Iterator[Path]:
    """Write a correction in the form that clients get, for as long as this block runs.

    Args:
        codes: Its codes, on the grid of its image. Not modified.

    Yields:
        NIfTI file of wire ids.

    Raises:
        StorageError: The file could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="totalspineseg-label-") as name:
        file = Path(name) / "label.nii.gz"
        write_volume(file, to_wire(without_regions(codes.data)), codes.grid)
        yield file
