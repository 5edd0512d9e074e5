"""Define the options of a synthetic spine."""

from dataclasses import dataclass
from enum import Enum


class Field(Enum):
    """The part of the column that the scan shows."""

    WHOLE = "whole"
    CERVICAL = "cervical"
    CERVICOTHORACIC = "cervicothoracic"
    THORACIC = "thoracic"
    THORACOLUMBAR = "thoracolumbar"
    LUMBAR = "lumbar"
    LOWER_LUMBAR = "lower lumbar"


@dataclass(frozen=True)
class SpineOptions:
    """Options of a synthetic spine; None leaves the choice to the random generator.

    Attributes:
        field: Part of the column in view.
        thoracic: Number of thoracic vertebrae, 11 to 13.
        lumbar: Number of lumbar vertebrae, 4 to 6.
        spacing_mm: Voxel size along x, y, z.
        width_mm: Extent of the scan right to left.
        depth_mm: Extent front to back.
        jitter: Strength of the individual variation; 0 is the average body, 1 a broad population.
    """

    field: Field | None = None
    thoracic: int | None = None
    lumbar: int | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    width_mm: float | None = None
    depth_mm: float | None = None
    jitter: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A spacing or extent is not positive, or the jitter is negative.
        """
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise ValueError(f"expected spacing_mm of three positive lengths, got {self.spacing_mm!r}")
        for name in ("width_mm", "depth_mm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"expected {name} above 0, or None for a usual one, got {value!r}")
        if self.jitter < 0:
            raise ValueError(f"expected jitter of 0 or more (1 is a broad population), got {self.jitter!r}")
