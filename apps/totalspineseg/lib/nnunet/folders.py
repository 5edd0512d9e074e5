"""Where nnU-Net keeps raw cases, what it makes of them, and its results."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT: Final = Path("nnUNet")
"""Below the working folder, where nothing else is said."""
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
        """The folders to use.

        Args:
            base: Folder that holds ``raw``, ``preprocessed`` and ``results``; None takes nnU-Net's environment
                variables, and ``DEFAULT`` for those that are not set.
        """
        found = []
        for variable in VARIABLES:
            stated = os.environ.get(variable) if base is None else None
            name = variable.removeprefix("nnUNet_")
            found.append(Path(stated).expanduser() if stated else (base or DEFAULT) / name)
        return cls(*(path.resolve() for path in found))

    def environment(self) -> dict[str, str]:
        """As nnU-Net's programs want to be told."""
        return dict(zip(VARIABLES, map(str, (self.raw, self.preprocessed, self.results)), strict=True))
