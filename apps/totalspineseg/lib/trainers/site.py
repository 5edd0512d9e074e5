"""What a training needs to know about the place it runs in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.corrections.history import HISTORY_DIR
from lib.corrections.image_ids import file_stem
from lib.corrections.store import CorrectionStore
from lib.gate.holdout import subject_of
from lib.registry.store import ModelStore
from lib.volume_io import image_named


@dataclass(frozen=True)
class Site:
    """A studies folder and the models that serve it.

    Attributes:
        history: Folder of corrections, hold-out list and training runs.
        models: Which weights are in use, and where new ones go.
        corrections: What annotators sent.
        image_file: ``image_file(image_id)`` is the file or folder of an image, or None when it is gone.
        subject: ``subject(image_id)`` tells whose image it is: all images of one subject train, or all judge.
    """

    history: Path
    models: ModelStore
    corrections: CorrectionStore
    image_file: Callable[[str], Path | None]
    subject: Callable[[str], str] = subject_of

    @property
    def training_dir(self) -> Path:
        """Folder of the training runs; may not exist yet."""
        return self.history / "training"

    @property
    def holdout_file(self) -> Path:
        """The stored list of who trains and who judges."""
        return self.history / "holdout.json"


def folder_site(studies: Path, models: ModelStore, *, work: Path | None = None) -> Site:
    """The site of a plain studies folder, for programs that run without the server.

    Args:
        studies: Folder of images.
        models: Which weights are in use.
        work: Where the server keeps what it writes; None for inside the folder.
    """
    history = work or studies / HISTORY_DIR

    def image_file(image_id: str) -> Path | None:
        return image_named(studies, file_stem(image_id))

    return Site(history, models, CorrectionStore(history), image_file)
