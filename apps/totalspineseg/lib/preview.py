"""Pictures a reader can check at a glance: the spine unrolled along its canal, labels and names on it.

The sagittal picture follows the canal (its x at every height), the coronal one the bodies and discs
(their y), so that a scoliotic or rotated spine stays in the picture. Anterior is on the left of the
sagittal picture and the patient's right on the left of the coronal one, as radiologists hang them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lib.anatomy import (
    BACKGROUND,
    BY_CODE,
    C1,
    CANAL,
    CODE_FROM_STEP1,
    CODE_FROM_STEP2,
    CORD,
    DISCS,
    LANDMARK_CLASS,
    LANDMARK_DISCS,
    LEVEL_POINT,
    POINT_C1_C2,
    POINT_C1_TOP,
    SACRUM,
    VERTEBRAE,
    Step1,
    Step2,
)
from lib.geometry import AnyArray, Grid, LabelArray, Volume, to_ras
from lib.tags import Tag, add_tags
from lib.volume_io import write_atomic

Picture = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
Palette = Mapping[int, Color]

LEVEL_CODES: Final = (*VERTEBRAE, SACRUM, *DISCS)
"""What gets a tag when nothing else is said."""
STEP1_TAGS: Final = (C1, *DISCS)
"""What step 1 names: its other vertebrae are one class."""

WINDOW_PERCENTILES: Final = (1.0, 99.5)
"""Gray values below and above are black and white: fat and coils outshine a T2 spine."""
OPACITY: Final = 0.45
"""Of the labels: the edges of bodies and cord stay visible below."""
DOUBTFUL_STRIPE_PX: Final = 6
"""Period of the stripes that mark a doubtful level, pixels."""
PIXEL_MM: Final = (0.3, 0.5)
"""Finest and coarsest size of a pixel: a vertebra of 20 mm has at least 40 pixels."""
WANTED_HEIGHT_PX: Final = 800
"""Height a small field of view is enlarged to, as far as the finest pixel allows."""
MARGIN_MM: Final = 50.0
"""Shown before and behind the spine (and beside it): the picture holds what a reader needs, large."""
SMOOTHING_MM: Final = 8.0
"""Standard deviation of the smoothing of the plane: less than a vertebra, more than a voxel's steps."""
POINT_RADIUS_MM: Final = 2.5
"""Radius a level point is drawn with."""
JPEG_QUALITY: Final = 88


def _palette(step: int) -> Palette:
    """Colors of a network's classes: those of the structures they stand for, two for odd and even."""
    plain = [code for code in DISCS if code not in LANDMARK_DISCS]
    colors = {Step1.DISC.value: BY_CODE[plain[0]].color}
    colors |= {value: BY_CODE[code].color for value, code in LANDMARK_CLASS.items()}
    colors |= {value: BY_CODE[c].color for value, c in (CODE_FROM_STEP1 if step == 1 else CODE_FROM_STEP2).items()}
    if step == 2:
        remnant, odd, even = (BY_CODE[code].color for code in VERTEBRAE[1:4])
        colors |= {Step2.VERTEBRA.value: remnant, Step2.VERTEBRA_ODD.value: odd, Step2.VERTEBRA_EVEN.value: even}
    return MappingProxyType(colors)


CODE_PALETTE: Final[Palette] = MappingProxyType({code: s.color for code, s in BY_CODE.items()})
STEP_PALETTE: Final[Mapping[int, Palette]] = MappingProxyType({1: _palette(1), 2: _palette(2)})
"""Colors of raw step maps, by step."""
POINT_PALETTE: Final[Palette] = MappingProxyType(
    {value: BY_CODE[code].color for code, value in LEVEL_POINT.items()}
    | {POINT_C1_TOP: BY_CODE[VERTEBRAE[0]].color, POINT_C1_C2: BY_CODE[VERTEBRAE[1]].color}
)


@dataclass(frozen=True)
class Course:
    """Where the two curved planes run, on the nearest-RAS form of a grid.

    Attributes:
        x: (Z,) sagittal plane, voxel index along x at every height.
        y: (Z,) coronal plane, voxel index along y at every height.
        canal_y: (Z,) the canal, voxel index along y; bodies are anterior to it.
        x_range: First and last voxel along x that the coronal picture shows.
        y_range: First and last voxel along y that the sagittal picture shows.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    canal_y: npt.NDArray[np.float64]
    x_range: tuple[int, int]
    y_range: tuple[int, int]


def course_of(labels: LabelArray | None, grid: Grid) -> Course:
    """The planes through a labeled spine; compute once for all pictures of a scan.

    Args:
        labels: Codes on ``grid``, any orientation; None when there are none yet. Not modified.
        grid: Grid of the image.

    Returns:
        The course. Without canal (or discs) the middle of the image; without labels all of its width.
    """
    ras = to_ras(Volume(np.broadcast_to(np.uint8(0), grid.shape) if labels is None else labels, grid.affine))
    middle_x, middle_y = ((n - 1) / 2 for n in ras.data.shape[:2])
    width, depth, height = ras.data.shape
    if labels is None:
        flat_y = np.full(height, middle_y)
        return Course(np.full(height, middle_x), flat_y, flat_y, (0, width - 1), (0, depth - 1))
    kinds = _KIND_OF_CODE[np.ascontiguousarray(ras.data)]
    sigma = SMOOTHING_MM / ras.spacing[2]
    canal, disc = kinds == 1, kinds == 2
    canal_y = _mean_index(canal, 1, sigma, middle_y)
    outline = kinds.any(axis=2)
    return Course(
        _mean_index(canal, 0, sigma, middle_x),
        _mean_index(disc, 1, sigma, float(canal_y.mean())),
        canal_y,
        _shown(outline.any(axis=1), MARGIN_MM / ras.spacing[0]),
        _shown(outline.any(axis=0), MARGIN_MM / ras.spacing[1]),
    )


def _shown(occupied: npt.NDArray[np.bool_], margin_vox: float) -> tuple[int, int]:
    """First and last index to show: the spine and a margin; everything where there is no spine."""
    at = np.flatnonzero(occupied)
    if at.size == 0:
        return 0, occupied.size - 1
    return max(int(at[0] - margin_vox), 0), min(int(at[-1] + margin_vox), occupied.size - 1)


def _kinds() -> npt.NDArray[np.uint8]:
    table = np.full(256, 3, dtype=np.uint8)
    table[BACKGROUND] = 0
    table[[CANAL, CORD]] = 1
    table[list(DISCS)] = 2
    return table


_KIND_OF_CODE: Final = _kinds()


def _mean_index(mask: npt.NDArray[np.bool_], axis: int, sigma: float, default: float) -> npt.NDArray[np.float64]:
    """Mean index of a mask along an axis at every height, gaps interpolated, smoothed."""
    counts = mask.sum(axis=1 - axis, dtype=np.int32)
    total = counts.sum(axis=0)
    z = np.flatnonzero(total)
    if z.size == 0:
        return np.full(mask.shape[2], default)
    mean = (np.arange(mask.shape[axis]) @ counts[:, z]) / total[z]
    line = np.interp(np.arange(mask.shape[2]), z, mean)
    smooth: npt.NDArray[np.float64] = ndimage.gaussian_filter1d(line, sigma, mode="nearest")
    return smooth


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


class Plane:
    """One curved plane of a scan, cut and windowed once for any number of pictures.

    Args:
        volume: Image, any orientation and spacing. Not modified.
        course: From ``course_of``.
        sagittal: Along the canal; else the coronal plane through the discs.
    """

    def __init__(self, volume: Volume, course: Course, *, sagittal: bool) -> None:
        self._affine = volume.affine
        self._sagittal = sagittal
        self._first, self._last = course.y_range if sagittal else course.x_range
        ras = to_ras(volume)
        data = self._shown(ras.data)
        self._index = course.x if sagittal else course.y
        self._canal_y = course.canal_y - self._first
        across, height = ras.spacing[1 if sagittal else 0], ras.spacing[2]
        depth, rows = data.shape[1 if sagittal else 0], data.shape[2]
        size_mm = (rows * height, depth * across)
        self._pixel_mm = float(np.clip(size_mm[0] / WANTED_HEIGHT_PX, *PIXEL_MM))
        self._size_px = (round(size_mm[1] / self._pixel_mm), round(size_mm[0] / self._pixel_mm))
        self._voxel_px = (across / self._pixel_mm, height / self._pixel_mm)
        self._gray = self._windowed(self._cut_linear(data))

    def _shown(self, data: AnyArray) -> AnyArray:
        """The part of a nearest-RAS array that the picture shows."""
        part = slice(self._first, self._last + 1)
        return data[:, part] if self._sagittal else data[part]

    def _columns(self, data: AnyArray, index: npt.NDArray[np.intp]) -> AnyArray:
        """(Z, Y) or (Z, X) values of the curved plane."""
        z = np.arange(data.shape[2])
        return data[index, :, z] if self._sagittal else data[:, index, z].T

    def _cut_linear(self, data: AnyArray) -> npt.NDArray[np.float32]:
        last = data.shape[0 if self._sagittal else 1] - 1
        position = np.clip(self._index, 0, last)
        lower = position.astype(np.intp)
        weight = (position - lower).astype(np.float32)[:, np.newaxis]
        first = self._columns(data, lower).astype(np.float32)
        second = self._columns(data, np.minimum(lower + 1, last)).astype(np.float32)
        return self._hung(first + (second - first) * weight)

    def cut(self, labels: LabelArray) -> LabelArray:
        """Labels (on the grid of the volume) in the plane, as hung, one value a voxel."""
        data = self._shown(to_ras(Volume(labels, self._affine)).data)
        last = data.shape[0 if self._sagittal else 1] - 1
        return self._hung(self._columns(data, np.clip(np.rint(self._index), 0, last).astype(np.intp)))

    @staticmethod
    def _hung(plane: AnyArray) -> AnyArray:
        """Superior up; anterior (or the patient's right) left."""
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
        """Image, paint, points and tags; the arguments and the result are those of ``mid_sagittal``."""
        gray = self._gray
        named = None if labels is None else self.cut(labels)
        painted = named if paint is None else self.cut(paint)
        if painted is not None and palette:
            rgb = _blend(gray, self._enlarge(painted), palette, doubtful if paint is None else ())
        else:
            rgb = np.repeat(gray[..., np.newaxis], 3, axis=2)
        if points is not None:
            rgb = self._dots(rgb, points)
        if named is None or not tags:
            return rgb
        return add_tags(rgb, self._tags(named, tags, doubtful))

    def _windowed(self, gray: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        inside = gray[gray != gray.min()]
        low, high = np.percentile(inside if inside.size else gray, WINDOW_PERCENTILES)
        scaled = np.clip((gray - low) * (255.0 / max(high - low, 1e-6)), 0, 255)
        resized = Image.fromarray(scaled.astype(np.uint8)).resize(self._size_px, Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.uint8)

    def _enlarge(self, plane: LabelArray) -> LabelArray:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize(self._size_px, Image.Resampling.NEAREST), dtype=np.uint8)

    def _tags(self, plane: LabelArray, codes: Collection[int], doubtful: Collection[int]) -> list[Tag]:
        """A tag for every wanted code in the plane, pointing at its body."""
        rows, columns = np.nonzero(plane)
        values = plane[rows, columns].astype(np.intp)
        if self._sagittal:
            canal_column = plane.shape[1] - 1 - self._canal_y[::-1]
            body = columns < canal_column[rows]
            # What lies behind the canal altogether is pointed at where it is.
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
        """Level points, wherever they lie beside the plane."""
        data = self._shown(to_ras(Volume(points, self._affine)).data)
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


def _present(labels: LabelArray) -> set[int]:
    return set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _blend(gray: npt.NDArray[np.uint8], labels: LabelArray, palette: Palette, doubtful: Collection[int]) -> Picture:
    """Translucent colors; a doubtful code in stripes. One table lookup a pixel: (label, gray) -> color."""
    ramp = np.arange(256, dtype=np.float32)[:, np.newaxis]
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], 3, axis=1)[np.newaxis].repeat(256, axis=0)
    for value in _present(labels) & palette.keys():
        color = np.array(palette[value], dtype=np.float32)
        table[value] = (ramp * (1 - OPACITY) + color * OPACITY + 0.5).astype(np.uint8)
    if doubtful:
        rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
        gap = (rows + columns) % DOUBTFUL_STRIPE_PX < DOUBTFUL_STRIPE_PX // 2
        unsure = np.zeros(256, dtype=np.bool_)
        unsure[list(doubtful)] = True
        labels = np.where(unsure[labels] & gap, 0, labels)
    result: Picture = table[labels, gray]
    return result


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
