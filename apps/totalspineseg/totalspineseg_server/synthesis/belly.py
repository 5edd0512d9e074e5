"""Draw the belly: liver, spleen, kidneys, psoas and bowel in front of and beside the lumbar column."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.shapes import Local, Mask
from totalspineseg_server.synthesis.tissues import Tissue

Tissues = NDArray[np.uint8]
_LOOPS = (18, 44)
"""Number of bowel loops in the whole belly."""
_LOOP_MM, _WALL_MM = (9.0, 24.0), 2.0
_CONTENTS = (Tissue.ORGAN_A, Tissue.ORGAN_B, Tissue.ORGAN_C, Tissue.AIR, Tissue.URINE, Tissue.CORTICAL)
"""Possible contents of a loop: chyme, stool, gas, or water."""


@dataclass(frozen=True)
class BellySpace:
    """The part of the scan below the diaphragm.

    Attributes:
        local: mm to the right of the middle, in front of the canal, above S1's upper endplate.
        noise: Smooth random field of the same shape.
        inner: The body without skin and subcutaneous fat, the same shape.
        diaphragm: Height of the diaphragm, mm.
        scale: Size of this body relative to the average.
    """

    local: Local
    noise: NDArray[np.float32]
    inner: Mask
    diaphragm: float
    scale: float


def draw_belly(rng: np.random.Generator, out: Tissues, space: BellySpace) -> None:
    """Paint the belly; the column is painted over it later.

    Args:
        rng: Source of randomness.
        out: Tissue numbers of this part of the scan, (X, Y, Z). Modified.
        space: The part of the scan.
    """
    front = space.inner & (space.local.anterior > 24 * space.scale)
    _bowel(rng, out, space, front)
    cavity = space.inner & (space.local.anterior > -12 * space.scale)
    _psoas(rng, out, space)
    _organs(rng, out, space, cavity)


def _bowel(rng: np.random.Generator, out: Tissues, space: BellySpace, room: Mask) -> None:
    """Draw bowel loops of different content with walls of muscle, in fat; some lie directly in front of the column."""
    out[room] = Tissue.FAT
    out[room & (space.noise > 1.2)] = Tissue.ORGAN_A
    for _ in range(int(rng.integers(*_LOOPS))):
        center = rng.normal(0, 45), rng.uniform(30, 110), rng.uniform(-130, space.diaphragm)
        half = rng.uniform(*_LOOP_MM) * space.scale * rng.uniform(0.7, 1.4, 3)
        _loop(out, space, room, center, half, Tissue(int(rng.choice(_CONTENTS))))
    bladder = rng.normal(0, 6), rng.uniform(80, 105) * space.scale, rng.uniform(-115, -80) * space.scale
    _loop(out, space, room, bladder, rng.uniform(14, 42, 3), Tissue.URINE)


def _loop(
    out: Tissues,
    space: BellySpace,
    room: Mask,
    center: tuple[float, float, float],
    half: NDArray[np.float64],
    content: Tissue,
) -> None:
    """Draw an ellipsoid with a wall."""
    parts = space.local.right, space.local.anterior, space.local.superior
    near = [np.abs(part - c) < h for part, c, h in zip(parts, center, half, strict=True)]
    spans = [np.flatnonzero(n.any(axis=tuple(k for k in range(3) if k != axis))) for axis, n in enumerate(near)]
    if not all(span.size for span in spans):
        return
    box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    cut = [part[tuple(b if n > 1 else slice(None) for b, n in zip(box, part.shape, strict=True))] for part in parts]
    offsets = [(part - c) / h for part, c, h in zip(cut, center, half, strict=True)]
    distance = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2)
    free = room[box]
    out[box][free & (distance < 1)] = Tissue.MUSCLE
    out[box][free & (distance < 1 - _WALL_MM / float(half.min()))] = content


def _psoas(rng: np.random.Generator, out: Tissues, space: BellySpace) -> None:
    """Draw a muscle on either side of the bodies, from T12 down, growing and drifting outward."""
    side, ahead, height = np.abs(space.local.right), space.local.anterior, space.local.superior
    top = space.diaphragm - 50 * space.scale
    down = np.clip((top - height) / 150, 0, 1)
    middle = (30 + 14 * down) * space.scale
    thick = (4 + 15 * down * rng.uniform(0.6, 1.1)) * space.scale
    muscle = ((side - middle) / thick) ** 2 + ((ahead - 22 * space.scale) / (1.15 * thick)) ** 2 < 1
    out[space.inner & muscle & (height < top)] = Tissue.MUSCLE


def _organs(rng: np.random.Generator, out: Tissues, space: BellySpace, room: Mask) -> None:
    """Draw the kidneys beside T12 to L3 in their fat, and liver (right) and spleen (left) below the diaphragm.

    Source of the kidneys' height: renal arteries at L1 and L1-L2 (Tokgoz et al., Korean J Radiol 15(2), 2014, 258-266);
    sizes: ours.
    """

    def lump(center: tuple[float, float, float], half: tuple[float, float, float]) -> Mask:
        at = [c * space.scale + rng.normal(0, 4) for c in center[:2]]
        parts = (space.local.right - at[0], space.local.anterior - at[1], space.local.superior - center[2])
        return np.asarray(sum((p / (h * space.scale)) ** 2 for p, h in zip(parts, half, strict=True)) < 1)

    under = space.diaphragm
    out[room & lump((85, 70, under - 45 * space.scale), (62, 72, 72))] = Tissue.ORGAN_A
    out[room & lump((-105, 25, under - 35 * space.scale), (28, 38, 50))] = Tissue.ORGAN_C
    for side, low in ((1, 105.0), (-1, 95.0)):
        center = (side * 62.0, 12.0, under - low * space.scale + rng.normal(0, 8))
        out[room & lump(center, (36, 32, 64))] = Tissue.FAT
        out[room & lump(center, (27, 23, 54))] = Tissue.ORGAN_B
