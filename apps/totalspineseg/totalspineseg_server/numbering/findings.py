"""Describe findings: what a reader should check in a numbering or a label map."""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.transforms.pieces import Piece

IMAGE: Final = "image"
"""Kind of a finding about the image, not its labels."""


@dataclass(frozen=True)
class Finding:
    """Something for a reader to check.

    Attributes:
        kind: "gap", "duplicate", "fragment", "order", "disc_between", "reach", "wide", "cord_outside_canal", "size",
            "not_checked", "unknown_code" or "step_code" for a label map; "left_out", "below_l5_s", "pin_unmet",
            "localizer_elsewhere", "landmark_differs", "steps_differ" or "image" for a numbering; "image_replaced",
            "finished_meanwhile", "incomplete", "unchanged" or "renamed" for a submission.
        code: The code concerned; 0 for a piece that was left out.
        message: What to check, in a sentence or two for the reader.
        voxels: Number of voxels concerned; 0 for a gap.
        point_vox: Where to look (x, y, z), or None.
    """

    kind: str
    code: int
    message: str
    voxels: int = 0
    point_vox: tuple[int, int, int] | None = None

    def as_dict(self, affine: npt.NDArray[np.float64]) -> dict[str, Any]:
        """Return plain JSON values, with the place as ``point_mm``.

        Args:
            affine: (4, 4) voxel -> RAS mm of the map that ``point_vox`` belongs to.
        """
        point = None if self.point_vox is None else (affine @ [*self.point_vox, 1.0])[:3].round(1).tolist()
        return {"kind": self.kind, "code": self.code, "message": self.message, "voxels": self.voxels, "point_mm": point}

    def moved(self, by_vox: tuple[int, int, int]) -> "Finding":
        """Return the finding on a larger grid, which begins this many voxels earlier."""
        if self.point_vox is None:
            return self
        x, y, z = (a + b for a, b in zip(self.point_vox, by_vox, strict=True))
        return replace(self, point_vox=(x, y, z))


def found_at(piece: Piece, kind: str, code: int, text: str) -> Finding:
    """Return a finding about a piece, at its middle."""
    x, y, z = (round(value) for value in piece.body_centroid_vox or piece.centroid_vox)
    return Finding(kind, code, text, piece.voxels, (x, y, z))
