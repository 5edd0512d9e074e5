"""Locate nnU-Net's folders for raw cases, preprocessed cases and results."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT: Final = Path("nnUNet")
"""Folder below the working folder that is used by default."""
VARIABLES: Final = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


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
