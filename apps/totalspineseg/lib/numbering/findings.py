"""What the linter reports."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that cannot be right.

    Attributes:
        kind: "gap", "duplicate", "fragment", "order", "disc_between", "cord_outside_canal", "unknown_code",
            "step_code", or of a numbering "left_out".
        code: The code concerned; 0 for a piece that was left out.
        message: One sentence for the reader.
        voxels: How many voxels are concerned; 0 for a gap.
        point_vox: Where to look (x, y, z), or None.
    """

    kind: str
    code: int
    message: str
    voxels: int = 0
    point_vox: tuple[int, int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON native."""
        return {
            "kind": self.kind,
            "code": self.code,
            "message": self.message,
            "voxels": self.voxels,
            "point_vox": None if self.point_vox is None else list(self.point_vox),
        }
