"""Draw one curved plane of a scan as a picture (image, translucent labels, points and tags), and save pictures."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from totalspineseg_server.anatomy import BY_CODE, DISCS
from totalspineseg_server.files import write_file
from totalspineseg_server.geometry import AnyArray, LabelArray, Volume, to_ras
from totalspineseg_server.preview.palette import CODE_PALETTE, LEVEL_CODES, POINT_PALETTE, Palette
from totalspineseg_server.preview.planes import Course, course_of
from totalspineseg_server.preview.tags import Tag, add_tags

Picture = npt.NDArray[np.uint8]

WINDOW_PERCENTILES: Final = (1.0, 99.5)
"""Percentiles of the gray values that become black and white: fat and coils are brighter than a T2 spine."""
JPEG_QUALITY: Final = 88
"""Quality at which small letters stay sharp."""
OPACITY: Final = 0.45
"""Opacity of the labels: the edges of bodies and cord stay visible through them."""
DOUBTFUL_STRIPE_PX: Final = 6
"""Period of the stripes that mark a doubtful level, pixels."""
PIXEL_MM: Final = (0.3, 0.5)
"""Finest and coarsest size of a pixel: a vertebra of 20 mm has at least 40 pixels."""
WANTED_HEIGHT_PX: Final = 800
"""Height to which a small field of view is enlarged, as far as the finest pixel allows."""
SIDE_PX: Final = 18
"""Height of the letter for the patient's side."""
POINT_RADIUS_MM: Final = 2.5
"""Radius of a level point in the picture."""


class Plane:
    """One curved plane of a scan, cut and windowed once for any number of pictures.

    Attributes:
        gray: (rows, columns) uint8, the image in the plane, as high as the picture.

    Args:
        volume: Image, any orientation and spacing. Not modified.
        course: From ``course_of``.
        sagittal: Whether to cut along the canal; else the coronal plane through the discs.
        height_px: Height of the image, pixels; None for one that fits the field of view.
    """

    def __init__(self, volume: Volume, course: Course, *, sagittal: bool, height_px: int | None = None) -> None:
        self._affine = volume.affine
        self._sagittal = sagittal
        self._first, self._last = course.y_range if sagittal else course.x_range
        ras = to_ras(volume)
        data = self._visible(ras.data)
        self._index = course.x if sagittal else course.y
        self._canal_y = course.canal_y - self._first
        across, height = ras.spacing[1 if sagittal else 0], ras.spacing[2]
        depth, rows = data.shape[1 if sagittal else 0], data.shape[2]
        size_mm = (rows * height, depth * across)
        fitting = float(np.clip(size_mm[0] / WANTED_HEIGHT_PX, *PIXEL_MM))
        self._pixel_mm = fitting if height_px is None else size_mm[0] / height_px
        self._size_px = (round(size_mm[1] / self._pixel_mm), round(size_mm[0] / self._pixel_mm))
        self._voxel_px = (across / self._pixel_mm, height / self._pixel_mm)
        self.gray = _resized(windowed(self._cut_linear(data)), self._size_px)

    def _visible(self, data: AnyArray) -> AnyArray:
        """Return the part of a nearest-RAS array that is in the picture."""
        part = slice(self._first, self._last + 1)
        return data[:, part] if self._sagittal else data[part]

    def _columns(self, data: AnyArray, index: npt.NDArray[np.intp]) -> AnyArray:
        """Return the (Z, Y) or (Z, X) values of the curved plane."""
        z = np.arange(data.shape[2])
        return data[index, :, z] if self._sagittal else data[:, index, z].T

    def _cut_linear(self, data: AnyArray) -> npt.NDArray[np.float32]:
        last = data.shape[0 if self._sagittal else 1] - 1
        position = np.clip(self._index, 0, last)
        lower = position.astype(np.intp)
        weight = (position - lower).astype(np.float32)[:, np.newaxis]
        first = self._columns(data, lower).astype(np.float32)
        second = self._columns(data, np.minimum(lower + 1, last)).astype(np.float32)
        return self._oriented(first + (second - first) * weight)

    def cut(self, labels: LabelArray) -> LabelArray:
        """Return labels (on the grid of the volume) in the plane, oriented as the picture, one value for each voxel."""
        data = self._visible(to_ras(Volume(labels, self._affine)).data)
        last = data.shape[0 if self._sagittal else 1] - 1
        return self._oriented(self._columns(data, np.clip(np.rint(self._index), 0, last).astype(np.intp)))

    @staticmethod
    def _oriented(plane: AnyArray) -> AnyArray:
        """Orient a plane with superior up, and anterior (or the patient's right) on the left."""
        return plane[::-1, ::-1]

    def picture(
        self,
        labels: LabelArray | None = None,
        *,
        paint: LabelArray | None = None,
        palette: Palette = CODE_PALETTE,
        points: LabelArray | None = None,
        tags: Collection[int] = LEVEL_CODES,
        doubtful: Collection[int] = (),
    ) -> Picture:
        """Return a picture of the image, paint, points and tags.

        Args:
            labels: Codes on the grid of the volume, named by the tags. Not modified.
            paint: Map to paint over the image, in ``palette``'s values; None for ``labels``. Not modified.
            palette: Value -> color; values without a color stay unpainted. An empty one paints nothing.
            points: Level points on the same grid, drawn as dots. Not modified.
            tags: Codes that get a tag with their name; none for ().
            doubtful: Codes whose level is doubtful: striped, and "?" in the tag.

        Returns:
            (rows, columns, 3) uint8, square pixels, superior up, anterior left (coronal: the right side, marked R).
        """
        gray = self.gray
        named = None if labels is None else self.cut(labels)
        painted = named if paint is None else self.cut(paint)
        if painted is not None and palette:
            rgb = _blend(gray, self._enlarge(painted), palette, doubtful if paint is None else ())
        else:
            rgb = np.repeat(gray[..., np.newaxis], 3, axis=2)
        if points is not None:
            rgb = self._dots(rgb, points)
        if not self._sagittal:
            rgb = _with_side(rgb)
        if named is None or not tags:
            return rgb
        return add_tags(rgb, self._tags(named, tags, doubtful))

    def overlay(self, labels: LabelArray, *, doubtful: Collection[int] = ()) -> npt.NDArray[np.uint8]:
        """Return the labels alone, to be laid over ``gray``.

        Args:
            labels: Codes on the grid of the volume. Not modified.
            doubtful: Codes whose level is doubtful: striped.

        Returns:
            (rows, columns, 4) uint8, color and opacity.
        """
        table = np.zeros((256, 4), dtype=np.uint8)
        for code, color in CODE_PALETTE.items():
            table[code] = (*color, round(255 * OPACITY))
        result: npt.NDArray[np.uint8] = table[_striped(self._enlarge(self.cut(labels)), doubtful)]
        return result

    def tags_of(self, labels: LabelArray, tags: Collection[int], doubtful: Collection[int] = ()) -> list[Tag]:
        """Return a tag for each of these codes that is in the picture, pointing at its body; see ``picture``."""
        return self._tags(self.cut(labels), tags, doubtful)

    def _enlarge(self, plane: LabelArray) -> LabelArray:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize(self._size_px, Image.Resampling.NEAREST), dtype=np.uint8)

    def _tags(self, plane: LabelArray, codes: Collection[int], doubtful: Collection[int]) -> list[Tag]:
        """Return a tag for each of the codes that is in the plane, pointing at its body."""
        rows, columns = np.nonzero(plane)
        values = plane[rows, columns].astype(np.intp)
        if self._sagittal:
            canal_column = plane.shape[1] - 1 - self._canal_y[::-1]
            body = columns < canal_column[rows]
            # The tag of a structure that lies completely behind the canal points there.
            body |= np.bincount(values[body], minlength=256)[values] == 0
            rows, columns, values = rows[body], columns[body], values[body]
        counts = np.bincount(values, minlength=256)
        x = (np.bincount(values, columns, 256) / np.maximum(counts, 1) + 0.5) * self._voxel_px[0]
        y = (np.bincount(values, rows, 256) / np.maximum(counts, 1) + 0.5) * self._voxel_px[1]
        found = []
        for code in sorted(set(np.flatnonzero(counts).tolist()) & set(codes)):
            structure = BY_CODE[code]
            target = (float(x[code]), float(y[code]))
            found.append(Tag(structure.name, target, structure.color, code in DISCS, code in doubtful))
        return found

    def _dots(self, rgb: Picture, points: LabelArray) -> Picture:
        """Draw level points, including those beside the plane."""
        data = self._visible(to_ras(Volume(points, self._affine)).data)
        image = Image.fromarray(rgb)
        draw = ImageDraw.Draw(image)
        radius = POINT_RADIUS_MM / self._pixel_mm
        font = _font(max(10, round(1.6 * radius)))
        for voxel in np.argwhere(data):
            value = int(data[tuple(voxel)])
            across = data.shape[1] - 1 - voxel[1] if self._sagittal else data.shape[0] - 1 - voxel[0]
            x = (across + 0.5) * self._voxel_px[0]
            y = (data.shape[2] - 1 - voxel[2] + 0.5) * self._voxel_px[1]
            color = POINT_PALETTE.get(value, (255, 255, 255))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=(0, 0, 0))
            place = (x + radius + 3, y)
            draw.text(place, str(value), fill=color, font=font, anchor="lm", stroke_width=1, stroke_fill=(0, 0, 0))
        return np.asarray(image)


def _with_side(rgb: Picture) -> Picture:
    """Write an "R" on the patient's right, because left and right look alike and programs show them on different
    sides."""
    image = Image.fromarray(rgb)
    place, font = (SIDE_PX // 4, image.height / 2), _font(SIDE_PX)
    ImageDraw.Draw(image).text(
        place, "R", fill=(255, 255, 255), font=font, anchor="lm", stroke_width=1, stroke_fill=(0, 0, 0)
    )
    return np.asarray(image)


def _present(labels: LabelArray) -> set[int]:
    return set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _blend(gray: npt.NDArray[np.uint8], labels: LabelArray, palette: Palette, doubtful: Collection[int]) -> Picture:
    """Blend the image with translucent colors, with stripes for doubtful codes; a table gives the color of (label,
    gray)."""
    ramp = np.arange(256, dtype=np.float32)[:, np.newaxis]
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], 3, axis=1)[np.newaxis].repeat(256, axis=0)
    for value in _present(labels) & palette.keys():
        color = np.array(palette[value], dtype=np.float32)
        table[value] = (ramp * (1 - OPACITY) + color * OPACITY + 0.5).astype(np.uint8)
    result: Picture = table[_striped(labels, doubtful), gray]
    return result


def _striped(labels: LabelArray, doubtful: Collection[int]) -> LabelArray:
    """Return labels with gaps in doubtful ones, so that they look striped."""
    if not doubtful:
        return labels
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    gap = (rows + columns) % DOUBTFUL_STRIPE_PX < DOUBTFUL_STRIPE_PX // 2
    unsure = np.zeros(256, dtype=np.bool_)
    unsure[list(doubtful)] = True
    result: LabelArray = np.where(unsure[labels] & gap, np.uint8(0), labels)
    return result


def windowed(gray: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return gray values between black and white, see ``WINDOW_PERCENTILES``."""
    inside = gray[gray != gray.min()]
    low, high = np.percentile(inside if inside.size else gray, WINDOW_PERCENTILES)
    scaled = np.clip((gray - low) * (255.0 / max(high - low, 1e-6)), 0, 255)
    return np.asarray(scaled, dtype=np.uint8)


def _resized(gray: npt.NDArray[np.uint8], size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(gray).resize(size_px, Image.Resampling.BICUBIC), dtype=np.uint8)


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
