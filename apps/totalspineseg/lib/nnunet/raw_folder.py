"""One raw dataset of nnU-Net on disk: which cases are ours and whole, and what earlier calls left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lib.errors import StorageError
from lib.files import PARTIAL_PREFIX, read_json, remove_leftovers, storage_errors, write_json
from lib.geometry import Grid, LabelArray
from lib.volume_io import write_volume

CASES_FILE: Final = "cases.json"
"""Beside ``dataset.json``: case -> its subject, what it was made from, and in step 2 whose discs mark it."""
DATASET_FILE: Final = "dataset.json"
"""nnU-Net's description; written last, so a dataset without it is unfinished."""
ENDING: Final = ".nii.gz"
IMAGES, LABELS = "imagesTr", "labelsTr"


@dataclass(frozen=True)
class Written:
    """What a dataset holds after a call.

    Attributes:
        cases: How many.
        removed: Cases of earlier calls that this one did not make.
    """

    cases: int
    removed: tuple[str, ...]


def read_cases(dataset: Path) -> dict[str, dict[str, str]]:
    """The record of a dataset's cases; empty when there is none.

    Raises:
        StorageError: It is damaged.
    """
    file = dataset / CASES_FILE
    return read_json(file, "Remove its folder, and prepare the dataset again.") if file.is_file() else {}


class RawFolder:
    """A dataset that is being written; killed at any moment, the next call goes on with the cases that are whole.

    Args:
        path: The dataset's folder. The caller holds its lock.
        channels: Images of a case.
    """

    def __init__(self, path: Path, channels: int) -> None:
        self.path = path
        self._channels = channels
        self._cases: dict[str, dict[str, str]] = {}
        self._made: set[str] = set()

    def check(self) -> None:
        """See what is there, and that all of it is ours.

        Raises:
            StorageError: There are files of others, or the record of the cases is damaged.
        """
        self._cases = read_cases(self.path)
        ours = {file for case in self._cases for file in self._files(case)}
        others = [file for file in self._present() if file not in ours and not file.name.startswith(PARTIAL_PREFIX)]
        if (self.path / DATASET_FILE).is_file() and not (self.path / CASES_FILE).is_file():
            others.append(self.path / DATASET_FILE)
        if others:
            raise StorageError(
                f"a folder with nothing but cases that 'totalspineseg prepare' wrote is required, got {len(others)} "
                f"other files in {str(self.path)!r}, such as {others[0].name!r}; move them away or write elsewhere"
            )

    def begin(self) -> None:
        """Mark the dataset as unfinished, and remove files that a killed call had begun.

        Raises:
            StorageError: It cannot be written.
        """
        with storage_errors(self.path):
            for name in (IMAGES, LABELS):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            (self.path / DATASET_FILE).unlink(missing_ok=True)
            for folder in (self.path, self.path / IMAGES, self.path / LABELS):
                remove_leftovers(folder, 0)

    def keep(self, case: str, subject: str, made_from: str) -> bool:
        """Keep a case as it is, if it is whole and was made from the same; False when it must be written."""
        if self._cases.get(case, {}).get("made_from") != made_from:
            return False
        if not all(file.is_file() for file in self._files(case)):
            return False
        self._cases[case]["subject"] = subject
        self._made.add(case)
        return True

    def write(
        self,
        case: str,
        subject: str,
        made_from: str,
        grid: Grid,
        channels: Sequence[Any],
        target: LabelArray,
        *,
        discs: str = "",
    ) -> None:
        """Write a case: known as ours before its first file is there, whole once its label is.

        Args:
            case: Its name.
            subject: Whose scan it is.
            made_from: Changes with what it is made from.
            grid: Of all arrays.
            channels: (X, Y, Z) each. Not modified.
            target: The step's classes. Not modified.
            discs: Where the discs of the second channel come from; empty without such a channel.

        Raises:
            StorageError: Disk full or no permission.
        """
        *images, label = self._files(case)
        with storage_errors(self.path):
            label.unlink(missing_ok=True)
        self._cases[case] = {"subject": subject, "made_from": made_from} | ({"discs": discs} if discs else {})
        write_json(self.path / CASES_FILE, self._cases)
        for file, channel in zip(images, channels, strict=True):
            write_volume(file, channel, grid)
        write_volume(label, target, grid)
        self._made.add(case)

    def finish(self, description: dict[str, Any]) -> Written:
        """Remove the cases of earlier calls, then write ``dataset.json`` with the number of those of this one.

        Raises:
            StorageError: It cannot be written.
        """
        removed = sorted(self._cases.keys() - self._made)
        with storage_errors(self.path):
            for case in removed:
                for file in self._files(case):
                    file.unlink(missing_ok=True)
        write_json(self.path / CASES_FILE, {case: self._cases[case] for case in self._made})
        # nnU-Net takes the regions in the order of the file.
        write_json(self.path / DATASET_FILE, description | {"numTraining": len(self._made)})
        return Written(len(self._made), tuple(removed))

    def _present(self) -> Iterator[Path]:
        for name in (IMAGES, LABELS):
            if (self.path / name).is_dir():
                yield from sorted((self.path / name).iterdir())

    def _files(self, case: str) -> list[Path]:
        """The images, then the label."""
        images = [self.path / IMAGES / f"{case}_{number:04d}{ENDING}" for number in range(self._channels)]
        return [*images, self.path / LABELS / f"{case}{ENDING}"]
