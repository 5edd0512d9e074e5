"""Describe the archive of a site: the files in it, and their list with hashes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from totalspineseg_server.corrections.ids import HISTORY_DIR, PACS_DIR, RECORD_FILE
from totalspineseg_server.corrections.image_records import IMAGES_DIR, INDEX_FILE
from totalspineseg_server.corrections.label_files import LABELS_DIR
from totalspineseg_server.corrections.receipts import RECEIVED_DIR
from totalspineseg_server.errors import ArchiveError
from totalspineseg_server.exchange import exchange_messages
from totalspineseg_server.files import EARLIER_PREFIX, PARTIAL_PREFIX, from_fields
from totalspineseg_server.locks import LOCK_FILE
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.model_store import STARTER, ModelStore

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
"""Version of the archive's format."""
MAX_FILES: Final = 2_000_000
"""Largest number of files; a correction has four."""
STUDIES, WORK = "studies", "work"
"""Kinds of a site's folder: images with a hidden history inside, or the ``--work`` folder of a server."""
SITE, MODELS, SETTINGS = "site", "models", "settings"
"""Parts of the archive."""
BESIDE_HISTORY: Final = (LABELS_DIR, INDEX_FILE)
"""Names in a folder of studies that a server writes beside its history."""
BESIDE_SERIES: Final = (LABELS_DIR, INDEX_FILE, IMAGES_DIR)
"""Names that a server writes beside the series that it fetched from a PACS."""
CACHES: Final = frozenset({"maps", "thumbnails", "sessions"})
"""Folders of a history that the server can make again, or needs only for a moment."""
TRAINING: Final = "training"
"""Folder of a history with training runs. Only their JSON files are kept, because a published version has its weights.
"""


@dataclass(frozen=True)
class Entry:
    """A file of the archive."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The list of an archive's files; a file that is not listed is not restored.

    Attributes:
        format: See ``FORMAT``.
        software: Version that made the archive.
        created: UTC, ISO 8601.
        kind: ``STUDIES`` or ``WORK``.
        images: Whether the archive has the images.
        files: Path in the archive -> hash and size.
    """

    format: int
    software: str
    created: str
    kind: str
    images: bool
    files: Mapping[str, Entry] = field(default_factory=dict)

    def as_text(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_text(cls, text: bytes) -> "Manifest":
        """Return a manifest from JSON.

        Raises:
            ArchiveError: It is not one that this version can read.
        """
        try:
            content: Any = json.loads(text)
            files = {path: Entry(str(e["sha256"]), int(e["bytes"])) for path, e in content.pop("files").items()}
            manifest = from_fields(cls, content, "of the backup")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise no_backup() from error
        usable = manifest.format == FORMAT and manifest.kind in (STUDIES, WORK) and all(map(_is_inside, files))
        if not usable:
            raise no_backup()
        return Manifest(FORMAT, manifest.software, manifest.created, manifest.kind, manifest.images, files)

    def part(self, name: str) -> dict[str, Entry]:
        """Return the entries of a part: path below it -> entry."""
        return {path.removeprefix(f"{name}/"): e for path, e in self.files.items() if path.startswith(f"{name}/")}

    def settings_folder(self, site: Path) -> Path:
        """Return the folder that settings files are restored into."""
        return site / HISTORY_DIR / SETTINGS if self.kind == STUDIES else site / SETTINGS

    def summary(self) -> str:
        """Return a sentence with the number of submissions, versions and settings files."""
        records = [path.split("/") for path in self.part(SITE) if path.endswith(f"/{RECORD_FILE}")]
        corrections = [parts for parts in records if "corrections" in parts[:2]]
        versions = {path.split("/")[1] for path in self.part(MODELS) if path.startswith("versions/")}
        settings = self.part(SETTINGS)
        return (
            f"{len(corrections)} submissions of {len({parts[-3] for parts in corrections})} images, {len(versions)} "
            f"versions, {len(settings)} settings files ({len(self.files)} files, made {self.created})"
        )


def _is_inside(path: str) -> bool:
    """Return whether a path certainly lies inside a part of an archive."""
    parts = PurePosixPath(path).parts
    plain = str(PurePosixPath(*parts)) == path and ".." not in parts and "\\" not in path
    return plain and len(parts) > 1 and parts[0] in (SITE, MODELS, SETTINGS)


def kind_of(folder: Path) -> str:
    """Return the kind of a site's folder."""
    return STUDIES if (folder / HISTORY_DIR).is_dir() else WORK


def site_files(folder: Path, *, images: bool) -> Iterator[PurePosixPath]:
    """Yield the files of a site's folder that belong in an archive, relative to it. They are found as the caller asks
    for them.

    Waiting submissions come first: if one is read in the meantime, it is found again among the corrections.

    Args:
        folder: Studies with a hidden history, or the ``--work`` folder of a server.
        images: Whether to yield the images as well.
    """
    history = history_of(folder)
    for path in _files(history / RECEIVED_DIR):
        yield PurePosixPath(history.relative_to(folder).as_posix()) / RECEIVED_DIR / path
    for path in _files(folder):
        if path.parts[0] == HISTORY_DIR:
            inside = PurePosixPath(*path.parts[1:])
        elif history == folder:
            inside = path
        else:
            if images or path.parts[0] in BESIDE_HISTORY:
                yield path
            continue
        if inside.parts[0] != RECEIVED_DIR and _belongs(inside, images=images):
            yield path


def history_of(folder: Path) -> Path:
    """Return the folder of the history of a site's folder."""
    return folder / HISTORY_DIR if kind_of(folder) == STUDIES else folder


def model_files(store: ModelStore) -> Iterator[PurePosixPath]:
    """Yield the files of a model folder, relative to it, without the weights that come with the software.

    The pointer comes first, so that the versions it names are found after it.
    """
    folder = store.model_dir
    if store.pointer.is_file():
        yield PurePosixPath(store.pointer.name)
    for path in _files(folder):
        if path.parts[0] != STARTER and path.name != store.pointer.name:
            yield path


def _belongs(path: PurePosixPath, *, images: bool) -> bool:
    """Return whether a file of a history belongs in an archive."""
    top = path.parts[0]
    if top in CACHES:
        return False
    if top == TRAINING:
        return path.suffix == ".json"
    return top != PACS_DIR or images or path.parts[1:2] in [(name,) for name in BESIDE_SERIES]


def _files(folder: Path) -> Iterator[PurePosixPath]:
    """Yield the complete files of a folder: no links, no locks, and none that are being written."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        relative = PurePosixPath(path.relative_to(folder).as_posix())
        partial = any(part.startswith((PARTIAL_PREFIX, EARLIER_PREFIX)) for part in relative.parts)
        lock = path.name == LOCK_FILE or path.suffix == LOCK_FILE
        if not partial and not lock and not path.is_symlink() and path.is_file():
            yield relative


def no_backup() -> ArchiveError:
    """Return the error for a file that is not a backup of this program."""
    return ArchiveError(exchange_messages.NO_BACKUP.format(command=COMMAND))
