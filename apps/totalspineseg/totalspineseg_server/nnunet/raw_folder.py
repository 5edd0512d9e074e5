"""Locate nnU-Net's folders and write raw datasets: earlier complete cases stay, and foreign files are never touched."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import PARTIAL_PREFIX, read_json_if_there, remove_leftovers, storage_errors, write_json
from totalspineseg_server.geometry import Grid, LabelArray
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.places import COMMAND

CASES_FILE: Final = "cases.json"
"""File beside ``dataset.json`` with the subject of each case, a digest of its sources, and in step 2 the origin of its
discs."""
DATASET_FILE: Final = "dataset.json"
"""nnU-Net's description of a dataset; it is written last, so a dataset without it is unfinished."""
ENDING: Final = ".nii.gz"
IMAGES, LABELS = "imagesTr", "labelsTr"
DEFAULT: Final = Path("nnUNet")
"""Folder below the working folder that is used by default."""
VARIABLES: Final = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Written:
    """The content of a dataset after a call.

    Attributes:
        cases: Number of cases.
        removed: Names of cases of earlier calls that were removed.
    """

    cases: int
    removed: tuple[str, ...]


def read_cases(dataset: Path) -> dict[str, dict[str, str]]:
    """Return the record of a dataset's cases; empty if there is none.

    Raises:
        StorageError: It is damaged.
    """
    return read_json_if_there(dataset / CASES_FILE, nnunet_messages.PREPARE_AGAIN)


class RawFolder:
    """A dataset that is being written; if it is killed, the next call keeps the complete cases.

    Args:
        path: The dataset's folder. The caller holds its lock.
        channels: Number of images in a case.
    """

    def __init__(self, path: Path, channels: int) -> None:
        self.path = path
        self._channels = channels
        self._cases: dict[str, dict[str, str]] = {}
        self._made: set[str] = set()

    def check(self) -> None:
        """Read the record of cases, and check that the folder has no foreign files.

        Raises:
            StorageError: There are foreign files, or the record of the cases is damaged.
        """
        self._cases = read_cases(self.path)
        ours = {file for case in self._cases for file in self._files(case)}
        others = [file for file in self._present() if file not in ours and not file.name.startswith(PARTIAL_PREFIX)]
        if (self.path / DATASET_FILE).is_file() and not (self.path / CASES_FILE).is_file():
            others.append(self.path / DATASET_FILE)
        if others:
            raise StorageError(
                nnunet_messages.FOREIGN_FILES.format(
                    folder=str(self.path),
                    count=len(others),
                    plural="s" * (len(others) != 1),
                    command=COMMAND,
                    name=others[0].name,
                )
            )

    def begin(self) -> None:
        """Mark the dataset as unfinished, and remove partial files that a killed call left.

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
        """Return whether a case is complete and from the same sources, so that it is kept; False if it must be
        written."""
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
        """Write a case: it is recorded before its first file is written, and complete once its label is written.

        Args:
            case: Name of the case.
            subject: Subject of the scan.
            made_from: Digest of its sources.
            grid: Grid of all arrays.
            channels: (X, Y, Z) each. Not modified.
            target: The step's classes. Not modified.
            discs: Origin of the discs in the second channel; empty without such a channel.

        Raises:
            StorageError: The disk is full, or permission is missing.
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
        """Remove the cases of earlier calls, then write ``dataset.json`` with the number of present cases.

        Raises:
            StorageError: It cannot be written.
        """
        removed = sorted(self._cases.keys() - self._made)
        with storage_errors(self.path):
            for case in removed:
                for file in self._files(case):
                    file.unlink(missing_ok=True)
        write_json(self.path / CASES_FILE, {case: self._cases[case] for case in self._made})
        # nnU-Net reads the regions in the order of the file.
        write_json(self.path / DATASET_FILE, description | {"numTraining": len(self._made)})
        return Written(len(self._made), tuple(removed))

    def _present(self) -> Iterator[Path]:
        for name in (IMAGES, LABELS):
            if (self.path / name).is_dir():
                yield from sorted((self.path / name).iterdir())

    def _files(self, case: str) -> list[Path]:
        """Return the files of a case: the images, then the label."""
        images = [self.path / IMAGES / f"{case}_{number:04d}{ENDING}" for number in range(self._channels)]
        return [*images, self.path / LABELS / f"{case}{ENDING}"]


@dataclass(frozen=True)
class NnunetFolders:
    """nnU-Net's three folders.

    Attributes:
        raw: Datasets as ``totalspineseg prepare`` writes them.
        preprocessed: Plans and preprocessed cases.
        results: Trained models.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def at(cls, base: Path | None = None) -> "NnunetFolders":
        """Return the folders to use.

        Args:
            base: Folder with ``raw``, ``preprocessed`` and ``results``; None for nnU-Net's environment variables, with
                ``DEFAULT`` for those that are not set.
        """
        found = []
        for variable in VARIABLES:
            stated = os.environ.get(variable) if base is None else None
            name = variable.removeprefix("nnUNet_")
            found.append(Path(stated).expanduser() if stated else (base or DEFAULT) / name)
        return cls(*(path.resolve() for path in found))

    def environment(self) -> dict[str, str]:
        """Return the environment variables for nnU-Net's programs."""
        return dict(zip(VARIABLES, map(str, (self.raw, self.preprocessed, self.results)), strict=True))
