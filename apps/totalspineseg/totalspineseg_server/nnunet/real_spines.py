"""Read, resample and vary scans of people, as training patches for the starter weights.

Most labels of people are partial. A case has two readings of every voxel: its code, and another code that it may have.
A region is trained where both agree: a labeled canal, for example, is used to train the canal, but not the cord inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter1d, zoom

from totalspineseg_server import anatomy
from totalspineseg_server.errors import TrainingError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.synthesis import thick_slices

Image = NDArray[np.float32]
Spacing = tuple[float, float, float]

SUFFIX: Final = ".npz"
_PARTS: Final = ("image", "labels", "second", "spacing_mm")
_ZOOM: Final = (0.88, 1.14)
"""Range of the zoom: from small to tall adults."""
_STRETCH: Final = (0.94, 1.06)
"""Further zoom of each axis: narrow and wide, flat and high bodies."""
_TILT_DEG: Final = 7.0
"""Spread of a person's tilt, seen from the side, so that few patients show many lordoses."""
_BLUR_MM, _NOISE, _GAMMA, _BIAS = (0.0, 1.0), 0.08, 0.35, 0.35
"""Largest blur, noise relative to the image's mean, and spread of exponent and bias field, as in synthetic images."""
_THICK_ODDS, _THICK_MM = 0.4, (2.0, 5.5)
"""Share of patches whose sagittal slices get the usual clinical thickness."""
_FIELD_KNOTS = 4


@dataclass(frozen=True)
class RealSpine:
    """A labeled scan of a person.

    Attributes:
        labels: Output codes, uint8 (X, Y, Z), RAS; ``UNREVIEWED`` where nothing is known.
        second: The other code that a voxel may have; the same code if only one reading is possible.
        image: float32, the same shape.
        spacing_mm: Voxel size.
        vertebrae: Codes of the column, superior to inferior, in view or not.
        discs: Codes of its discs.
        sha256: Hash of the file.
    """

    labels: LabelArray
    second: LabelArray
    image: Image
    spacing_mm: Spacing
    vertebrae: tuple[int, ...]
    discs: tuple[int, ...]
    sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a case.

        Args:
            path: A file of ``save_case``.

        Raises:
            TrainingError: The file is not such a case.
        """
        try:
            with np.load(path, allow_pickle=False) as parts:
                image, labels, second, spacing = (parts[name] for name in _PARTS)
        except (OSError, KeyError, ValueError) as error:
            raise TrainingError(nnunet_messages.UNREADABLE_CASE.format(name=path.name)) from error
        if not image.shape == labels.shape == second.shape or image.ndim != 3 or spacing.shape != (3,):
            raise TrainingError(nnunet_messages.SHAPES_DIFFER.format(name=path.name))
        plan = anatomy.column()
        discs = tuple(disc for disc in plan.discs if disc is not None)
        x, y, z = map(float, spacing)
        return cls(labels, second, image.astype(np.float32), (x, y, z), plan.vertebrae, discs, sha256_of(path))

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine, voxel -> mm; the position in the scanner is not kept."""
        return np.diag([*self.spacing_mm, 1.0])

    @property
    def possible(self) -> LabelArray:
        """The codes of the column, certain or possible; 0 where nothing is known."""
        codes = np.maximum(self.labels, self.second)
        return np.where(codes == anatomy.UNREVIEWED, anatomy.BACKGROUND, codes).astype(np.uint8)

    def cut(self, window: tuple[slice, ...]) -> "RealSpine":
        """Return the part of the scan in a window."""
        parts = self.labels[window], self.second[window], self.image[window]
        return RealSpine(*parts, self.spacing_mm, self.vertebrae, self.discs, self.sha256)

    def posed(self, spacing_mm: Spacing, tilt_deg: float = 0.0) -> "RealSpine":
        """Return the scan on another grid, turned in the sagittal plane: the image by linear interpolation, labels by
        the nearest voxel. Nothing is known about the corners that come in from outside.

        Args:
            spacing_mm: Voxel size of the new grid.
            tilt_deg: Angle about the middle of the scan, from front to head.
        """
        have, want = np.asarray(self.spacing_mm), np.asarray(spacing_mm)
        shape = tuple(int(n) for n in np.maximum(np.round(np.array(self.labels.shape) * have / want), 1))
        sine, cosine = np.sin(np.radians(tilt_deg)), np.cos(np.radians(tilt_deg))
        turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
        matrix = turn * want[None, :] / have[:, None]
        offset = (np.array(self.labels.shape) - 1) / 2 - matrix @ ((np.array(shape) - 1) / 2)
        place = {"matrix": matrix, "offset": offset, "output_shape": shape}
        image = affine_transform(self.image, order=1, mode="nearest", **place)
        labels, second = (
            affine_transform(part, order=0, mode="grid-constant", cval=anatomy.UNREVIEWED, **place)
            for part in (self.labels, self.second)
        )
        return RealSpine(labels, second, image, spacing_mm, self.vertebrae, self.discs, self.sha256)


def save_case(path: Path, image: Image, labels: LabelArray, second: LabelArray, spacing_mm: Sequence[float]) -> None:
    """Write a case; see ``RealSpine`` for its parts.

    Args:
        path: A file that ends in ``SUFFIX``.
        image: float32 (X, Y, Z), RAS. Not modified.
        labels: uint8 codes, the same shape. Not modified.
        second: The second reading, the same shape. Not modified.
        spacing_mm: Voxel size.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    np.savez_compressed(path, image=image.astype(np.float16), labels=labels, second=second, spacing_mm=spacing)


def read_cases(folder: Path) -> tuple[RealSpine, ...]:
    """Read all cases of a folder, in the order of their names.

    Raises:
        TrainingError: There is none, or one cannot be read.
    """
    paths = sorted(Path(folder).glob(f"*{SUFFIX}"))
    if not paths:
        raise TrainingError(nnunet_messages.NO_TRAINING_CASES.format(folder=str(folder), suffix=SUFFIX))
    return tuple(RealSpine.read(path) for path in paths)


def draw_pose(rng: np.random.Generator, case: RealSpine, spacing_mm: Spacing) -> RealSpine:
    """Return a case resampled to a grid as if the person were smaller or larger, of another build, or turned."""
    size = float(rng.uniform(*_ZOOM)) * rng.uniform(*_STRETCH, 3)
    x, y, z = (step * float(part) for step, part in zip(spacing_mm, size, strict=True))
    return case.posed((x, y, z), _TILT_DEG * float(np.clip(rng.standard_normal(), -2, 2)))


def vary_scan(rng: np.random.Generator, image: Image, spacing_mm: Spacing, strength: float) -> Image:
    """Return an image as another scanner might have made it, with other slices, blur, coil, gray scale and noise.

    Args:
        rng: Source of all randomness.
        image: float32 (X, Y, Z). Not modified.
        spacing_mm: Voxel size.
        strength: 0 leaves the image as it is.

    Returns:
        A new image, 0 or more.
    """
    image = np.clip(image, 0, None) / np.float32(max(float(image.mean()), 1e-6))
    count = round(float(rng.uniform(*_THICK_MM)) / spacing_mm[0])
    if rng.random() < _THICK_ODDS * strength and 2 <= count <= image.shape[0] // 3:
        image = thick_slices(image, 0, count)
    blur = float(rng.uniform(*_BLUR_MM)) * strength
    for axis in (1, 2):
        if blur / spacing_mm[axis] > 0.25:
            image = gaussian_filter1d(image, blur / spacing_mm[axis], axis=axis, truncate=2.0)
    knots = rng.standard_normal([min(_FIELD_KNOTS, n) for n in image.shape]).astype(np.float32)
    factors = [n / k for n, k in zip(image.shape, knots.shape, strict=True)]
    field = zoom(knots, factors, order=1, mode="nearest", grid_mode=True)
    image = image * np.exp(np.float32(_BIAS * strength) * field)
    image = image ** np.float32(np.exp(_GAMMA * strength * rng.uniform(-1, 1)))
    level = np.float32(_NOISE * strength * rng.random() * float(image.mean()))
    real, imaginary = (rng.standard_normal(image.shape, np.float32) * level for _ in range(2))
    return np.asarray(np.hypot(image + real, imaginary), dtype=np.float32)
