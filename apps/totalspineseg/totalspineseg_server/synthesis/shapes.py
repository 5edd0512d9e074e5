"""Compute the shapes of a vertebra's parts in its own frame (right, anterior, superior; mm), and where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.column import Frame, Vertebra

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Reach = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Lowest and highest corner of a box in a frame, mm."""

EPIDURAL_MM = 1.6
"""Room between the dural sac and the bone of the arch."""
_BODY_POWER = 2.6
"""Exponent of the body's outline: between an ellipse (2) and a box."""

_WAIST = 0.12
"""Share by which a body is narrower at half height."""
_CORNER_SHARE, _CORNER_FROM = 0.09, 0.68
"""Share of the half height that a body loses at the rim, and where its endplates begin to round off. Old bodies with
osteophytes have sharp corners."""
_SPINOUS_POWER = 3.0
"""Exponent of a spinous process' cross-section and of its rounded tip."""

_SPINOUS_RISE = {"cervical": -0.25, "thoracic": -0.35, "lumbar": -0.22}
"""Height at which the spinous process begins, relative to the body's middle, as a share of the body's height."""
Box = tuple[slice, slice, slice]
Corner = Sequence[float] | NDArray[np.float64]
WORLD = Frame(np.zeros(3), np.eye(3))
"""The axes of the scanner."""


@dataclass(frozen=True)
class Local:
    """Coordinates of voxels in a frame, mm, as three arrays that broadcast to one shape."""

    right: Array
    anterior: Array
    superior: Array


def outline(local: Local, width: float, depth: float) -> Array:
    """Return a measure of the distance from the middle of the rounded body outline: 1 on its rim, less inside."""
    right = np.abs(local.right * np.float32(2 / width))
    anterior = np.abs(local.anterior * np.float32(2 / depth))
    return np.asarray(right**_BODY_POWER + anterior**_BODY_POWER, dtype=np.float32)


def capsule(local: Local, start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Mask:
    """Return the voxels within ``radius`` of the segment from ``start`` to ``end``."""
    a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
    d = b - a
    r, f, u = local.right - a[0], local.anterior - a[1], local.superior - a[2]
    t = np.clip((r * d[0] + f * d[1] + u * d[2]) / np.float32(d @ d + 1e-6), 0, 1)
    distance = (r - t * d[0]) ** 2 + (f - t * d[1]) ** 2 + (u - t * d[2]) ** 2
    return np.asarray(distance < np.float32(radius) ** 2)


def body(local: Local, vertebra: Vertebra) -> Mask:
    """Return the vertebral body: narrower at its waist, wedged, with hollow endplates, osteophytes and raised cervical
    edges."""
    size = vertebra.size
    relative = local.superior * np.float32(2 / size.height)
    waist = 1 - _WAIST * np.clip(1 - relative**2, 0, 1)
    waist = waist + vertebra.lip * np.clip(np.abs(relative) - 0.6, 0, 0.4) / 0.4
    rim = outline(local, size.width, size.depth)
    inside = rim < waist**_BODY_POWER
    half = size.height / 2 + vertebra.wedge * local.anterior
    hollow = (0.05 * size.height) * (1 - np.clip(rim, 0, 1))
    young = max(0.0, 1 - vertebra.lip / 0.08)
    young = 0.4 * young if vertebra.region == "cervical" else young  # These are the low bodies, whose edges rise.
    corner = _CORNER_SHARE * young * size.height * (np.clip(rim - _CORNER_FROM, 0, None) / (1 - _CORNER_FROM)) ** 2
    half = half - corner
    top = half - hollow
    if vertebra.region == "cervical":
        top = top + 2.2 * np.clip(np.abs(local.right) * 2 / size.width - 0.6, 0, 1) / 0.4
    return np.asarray(inside & (local.superior < top) & (local.superior > -(half - hollow)))


def canal_center(vertebra: Vertebra) -> float:
    """Return where the middle of the canal lies in the frame: anterior coordinate, mm (negative)."""
    return -(vertebra.size.depth / 2 + vertebra.size.canal_depth / 2 + 0.5)


def body_reach(vertebra: Vertebra) -> Reach:
    """Return a box in the vertebra's frame that holds its body."""
    size = vertebra.size
    side, front = (1.2 * v / 2 for v in (size.width, size.depth))
    up = size.height / 2 + abs(vertebra.wedge) * front + 2.5
    return (-side, -front, -up), (side, front, up)


def arch(local: Local, vertebra: Vertebra) -> Mask:
    """Return pedicles, laminae, articular pillars and transverse processes."""
    size, region, center = vertebra.size, vertebra.region, canal_center(vertebra)
    half_w, half_d, h = size.canal_width / 2 + 0.5, size.canal_depth / 2 + EPIDURAL_MM, size.height
    thick = {"cervical": 3.2, "thoracic": 5.0, "lumbar": 6.0}[region]
    flat_r, flat_a = local.right, local.anterior - center
    inner = (flat_r / half_w) ** 2 + (flat_a / half_d) ** 2
    outer = (flat_r / (half_w + thick)) ** 2 + (flat_a / (half_d + thick)) ** 2
    lamina_low = {"cervical": -0.45, "thoracic": -0.72, "lumbar": -0.55}[region] * h
    lamina_high = {"cervical": 0.35, "thoracic": 0.30, "lumbar": 0.22}[region] * h
    tilt = 0.25 * (flat_a + half_d)  # The laminae slope down toward the back.
    level = local.superior - tilt
    parts = (inner > 1) & (outer < 1) & (flat_a < 0) & (level > lamina_low) & (level < lamina_high)
    pedicle_w = size.pedicle_width
    pedicle_h = {"cervical": 6.5, "thoracic": 11.0, "lumbar": 14.0}[region] / 2
    side = np.abs(local.right)
    middle = min(half_w + pedicle_w / 2 - 1, size.width / 2 - 1 if region != "cervical" else size.width / 2 + 2)
    raised = 0.5 * h - pedicle_h - 0.08 * h if region != "cervical" else 0.0
    parts |= (
        ((side - middle) ** 2 / (pedicle_w / 2) ** 2 + (local.superior - raised) ** 2 / pedicle_h**2 < 1)
        & (local.anterior < -size.depth / 2 + 5)
        & (flat_a > -0.2 * half_d)
    )
    mirrored = Local(side, local.anterior, local.superior)
    parts |= _articular(mirrored, vertebra, half_w, half_d, center)
    parts |= _transverse(mirrored, vertebra, half_w, center, raised)
    return np.asarray(parts & (inner > 1))


def arch_reach(vertebra: Vertebra) -> Reach:
    """Return a box in the vertebra's frame that holds its arch."""
    size = vertebra.size
    side = max(size.transverse_width, size.canal_width + 28.0) / 2 + 2.0
    back = canal_center(vertebra) - max(size.canal_depth / 2 + 8.0, 22.0)
    up = max(0.7 * (size.height + size.disc_height) + 6.0, 0.75 * size.height + 8.0)
    return (-side, back, -up), (side, 8.0 - size.depth / 2, up)


def _articular(mirrored: Local, vertebra: Vertebra, half_w: float, half_d: float, center: float) -> Mask:
    """Return the articular pillars: continuous in the neck, thin in the chest, stout in the lumbar spine."""
    h = vertebra.size.height + vertebra.size.disc_height
    if vertebra.region == "cervical":
        r = half_w + 5.5
        return capsule(mirrored, (r, center + 1.5, 0.30 * h), (r, center - 3.5, -0.32 * h), 5.0)
    if vertebra.region == "thoracic":
        r = half_w + 2.5
        return capsule(mirrored, (r, center - 1.0, 0.42 * h), (r - 1, center - half_d, -0.5 * h), 4.0)
    r = half_w + 4.0
    upper = capsule(mirrored, (r + 1.0, center - 2.0, 0.0), (r + 3, center - 3.0, 0.48 * h), 5.0)
    return upper | capsule(mirrored, (r, center - 5.0, 0.0), (r - 3, center - 8.0, -0.62 * h), 5.0)


def _transverse(mirrored: Local, vertebra: Vertebra, half_w: float, center: float, raised: float) -> Mask:
    """Return the transverse processes: forward in the neck, back and up in the chest, lateral in the lumbar spine."""
    tip = vertebra.size.transverse_width / 2
    root = half_w + {"cervical": 4.0, "thoracic": 4.0, "lumbar": 7.0}[vertebra.region]
    if vertebra.region == "cervical":
        forward = 6.0 if tip < 30 else -1.0
        return capsule(mirrored, (root, center + 4, 0), (tip - 3, center + 3 + forward, -2.5), 3.0)
    if vertebra.region == "thoracic":
        back = 14.0 if tip > 25 else 8.0
        return capsule(mirrored, (root, center - 3, 0.1), (tip - 4, center - 3 - back, raised + 3), 4.2)
    return capsule(mirrored, (root, center, raised), (tip - 3.5, center - 4, raised + 2), 3.6)


def spinous_ends(vertebra: Vertebra) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return where the spinous process begins and ends in the vertebra's frame, mm."""
    size = vertebra.size
    back = canal_center(vertebra) - size.canal_depth / 2 - EPIDURAL_MM
    rise = _SPINOUS_RISE[vertebra.region] * size.height
    fall = size.spinous_length * size.spinous_slope
    return (0.0, back, rise), (0.0, back - size.spinous_length, rise - fall)


def spinous(local: Local, vertebra: Vertebra) -> Mask:
    """Return the spinous process: a slab that falls by the level's slope and grows taller toward a lumbar tip."""
    size = vertebra.size
    start = canal_center(vertebra) - size.canal_depth / 2 - EPIDURAL_MM
    along = (start - local.anterior) / np.float32(size.spinous_length)
    rise = _SPINOUS_RISE[vertebra.region] * size.height
    middle = rise - along * np.float32(size.spinous_length * size.spinous_slope)
    grows = {"cervical": 0.25, "thoracic": -0.35, "lumbar": 0.05}[vertebra.region]
    half_height = size.spinous_height / 2 * (1 + grows * along)
    half_width = {"cervical": 3.0, "thoracic": 3.2, "lumbar": 3.8}[vertebra.region] * (1.15 - 0.3 * along)
    if vertebra.region == "cervical" and vertebra.index < 6:
        half_width = half_width + 3.5 * np.clip(along - 0.75, 0, 1)  # The tip is forked.
    blunt = 1 - np.clip((along - 0.55) / 0.45, 0, 1) ** _SPINOUS_POWER
    across, up = np.abs(local.right) / half_width, np.abs(local.superior - middle) / half_height
    inside = (along > -0.15) & (along < 1)
    return np.asarray(inside & (across**_SPINOUS_POWER + up**_SPINOUS_POWER < blunt))


def spinous_reach(vertebra: Vertebra) -> Reach:
    """Return a box in the vertebra's frame that holds its spinous process."""
    (_, root, high), (_, tip, low) = spinous_ends(vertebra)
    more = 0.15 * (root - tip), 0.15 * (high - low) + 0.7 * vertebra.size.spinous_height
    return (-6.0, tip, low - more[1]), (6.0, root + more[0], high + more[1])


def atlas(local: Local, vertebra: Vertebra, dens_radius: float) -> Mask:
    """Return C1: a ring around dens and canal, with lateral masses and wide transverse processes."""
    size = vertebra.size
    back = canal_center(vertebra) - size.canal_depth / 2 - EPIDURAL_MM
    front = dens_radius + 2.5
    middle, half_d = (front + back) / 2, (front - back) / 2
    half_w, thick = size.canal_width / 2 + 2.0, 5.0
    a = local.anterior - middle
    inner = (local.right / half_w) ** 2 + (a / half_d) ** 2
    outer = (local.right / (half_w + thick)) ** 2 + (a / (half_d + thick)) ** 2
    tall = np.where(a > 0.5 * half_d, 5.5, 4.0)
    ring = (inner > 1) & (outer < 1) & (np.abs(local.superior) < tall)
    side = Local(np.abs(local.right), local.anterior, local.superior)
    mass = capsule(side, (half_w + 1.0, 0.0, -4.0), (half_w + 1.0, -1.0, 5.0), 6.5)
    wing = capsule(side, (half_w + 4.0, -3.0, 0.0), (size.transverse_width / 2 - 4, -6.0, -1.0), 4.0)
    hole = (local.right / (half_w - 1)) ** 2 + (a / half_d) ** 2 < 1
    return np.asarray(ring | ((mass | wing) & ~hole))


@dataclass(frozen=True)
class Raster:
    """An axis-aligned RAS grid.

    Attributes:
        shape: Voxels along x, y, z.
        spacing: Voxel size, mm.
        origin: RAS mm of the first voxel's center.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """The (4, 4) affine, voxel -> RAS mm."""
        matrix = np.diag([*self.spacing, 1.0])
        matrix[:3, 3] = self.origin
        return matrix

    def axis(self, number: int) -> NDArray[np.float32]:
        """Return the RAS mm of the voxel centers along one axis."""
        return (self.origin[number] + self.spacing[number] * np.arange(self.shape[number])).astype(np.float32)

    def box(self, frame: Frame, low: Corner, high: Corner) -> Box | None:
        """Return the part of the grid around a frame's box from ``low`` to ``high`` (mm); None if that is outside."""
        corners = np.array([[(low, high)[(n >> k) & 1][k] for k in range(3)] for n in range(8)])
        world = frame.origin + corners @ frame.axes.T
        first = np.floor((world.min(0) - self.origin) / self.spacing).astype(int)
        last = np.ceil((world.max(0) - self.origin) / self.spacing).astype(int) + 1
        first, last = np.maximum(first, 0), np.minimum(last, self.shape)
        if (first >= last).any():
            return None
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))  # type: ignore[return-value]

    def around(self, frame: Frame, start: Corner, end: Corner, radius: float) -> Box | None:
        """Return the part of the grid around a frame's capsule (mm), with a margin of 1 mm; None if that is outside."""
        low, high = np.minimum(start, end) - radius - 1, np.maximum(start, end) + radius + 1
        return self.box(frame, low, high)

    def local(self, frame: Frame, box: Box) -> Local:
        """Return the coordinates of the box's voxels in the frame, mm."""
        offsets = [
            (self.axis(k)[box[k]] - np.float32(frame.origin[k])).reshape([-1 if i == k else 1 for i in range(3)])
            for k in range(3)
        ]
        axes = frame.axes.astype(np.float32)
        right, anterior, superior = (
            (offsets[0] * axes[0, k] + offsets[1] * axes[1, k]) + offsets[2] * axes[2, k] for k in range(3)
        )
        return Local(right, anterior, superior)


def overlap(one: Box, other: Box) -> Box:
    """Return the overlap of two boxes; it is empty if they do not meet."""
    pairs = zip(one, other, strict=True)
    x, y, z = (slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop))) for a, b in pairs)
    return x, y, z
