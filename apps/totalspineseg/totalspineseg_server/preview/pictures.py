"""Make the picture most readers want, and save pictures as files."""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from PIL import Image

from totalspineseg_server.files import write_file
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.preview.plane import Picture, Plane
from totalspineseg_server.preview.planes import course_of

JPEG_QUALITY: Final = 88
"""Quality at which small letters stay sharp."""


def mid_sagittal(
    volume: Volume, labels: LabelArray | None = None, *, doubtful: Collection[int] = (), height_px: int | None = None
) -> Picture:
    """Return the sagittal picture along the canal, with labels and names; ``Plane`` makes other pictures.

    Args:
        volume: Image, any orientation and spacing. Not modified.
        labels: Codes on the same grid; None for the plain image in the middle. Not modified.
        doubtful: Codes whose level is doubtful.
        height_px: See ``Plane``.

    Returns:
        (rows, columns, 3) uint8; see ``Plane.picture``.
    """
    plane = Plane(volume, course_of(labels, volume.grid), sagittal=True, height_px=height_px)
    return plane.picture(labels, doubtful=doubtful)


def save_picture(path: Path, rgb: Picture) -> None:
    """Write a picture as JPEG or PNG, depending on the ending of ``path``; it appears complete or not at all.

    Args:
        path: Final name, ending in .jpg, .jpeg or .png; its folder exists.
        rgb: (rows, columns, 3) uint8. Not modified.

    Raises:
        ValueError: Another ending.
        StorageError: The file could not be written.
    """
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"expected a picture name ending in .jpg, .jpeg or .png, got {path.name!r}")
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    write_file(path, lambda temporary: Image.fromarray(rgb).save(temporary, kind, **options))
