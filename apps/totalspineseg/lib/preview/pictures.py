"""The two pictures of a scan, and pictures as files."""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from PIL import Image

from lib.geometry import LabelArray, Volume
from lib.preview.course import Course, course_of
from lib.preview.palette import CODE_PALETTE, LEVEL_CODES, Palette
from lib.preview.plane import Picture, Plane
from lib.volume_io import write_atomic

JPEG_QUALITY: Final = 88
"""Small letters stay sharp."""


def mid_sagittal(
    volume: Volume,
    labels: LabelArray | None = None,
    *,
    paint: LabelArray | None = None,
    palette: Palette = CODE_PALETTE,
    points: LabelArray | None = None,
    tags: Collection[int] = LEVEL_CODES,
    doubtful: Collection[int] = (),
    course: Course | None = None,
) -> Picture:
    """The sagittal picture along the canal.

    Args:
        volume: Image, any orientation and spacing. Not modified.
        labels: Codes on the same grid: they say where the plane runs and what the tags say. Not modified.
        paint: What is painted over the image, in ``palette``'s values; ``labels`` when None. Not modified.
        palette: Value -> color; values without a color stay unpainted. An empty one paints nothing.
        points: Level points on the same grid, drawn as dots. Not modified.
        tags: Codes that get a tag with their name; none for ().
        doubtful: Codes whose level is not certain: striped, and "?" in the tag.
        course: From ``course_of(labels, volume.grid)`` when many pictures of one scan are made.

    Returns:
        (rows, columns, 3) uint8, square pixels, superior up, anterior left.
    """
    course = course or course_of(labels, volume.grid)
    return Plane(volume, course, sagittal=True).picture(
        labels, paint=paint, palette=palette, points=points, tags=tags, doubtful=doubtful
    )


def mid_coronal(
    volume: Volume,
    labels: LabelArray | None = None,
    *,
    paint: LabelArray | None = None,
    palette: Palette = CODE_PALETTE,
    points: LabelArray | None = None,
    tags: Collection[int] = LEVEL_CODES,
    doubtful: Collection[int] = (),
    course: Course | None = None,
) -> Picture:
    """The coronal picture through the discs and bodies; see ``mid_sagittal``. The patient's right is left."""
    course = course or course_of(labels, volume.grid)
    return Plane(volume, course, sagittal=False).picture(
        labels, paint=paint, palette=palette, points=points, tags=tags, doubtful=doubtful
    )


def save_picture(path: Path, rgb: Picture) -> None:
    """Write a picture as JPEG or PNG by the ending of ``path``, atomically.

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
        raise ValueError(f"a picture name ending in .jpg, .jpeg or .png is required, got {path.name!r}")
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    write_atomic(path, lambda temporary: Image.fromarray(rgb).save(temporary, kind, **options))
