"""The belly: liver, spleen, kidneys, psoas and bowel in front of and beside the lumbar column."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.synthesis.shapes import Local, Mask
from lib.synthesis.tissues import Tissue

Tissues = NDArray[np.uint8]


@dataclass(frozen=True)
class BellySpace:
    """The part of the scan below the diaphragm.

    Attributes:
        local: mm to the right of the middle, in front of the canal, above S1's upper endplate.
        noise: Smooth random field of the same shape.
        inner: Where the body is under its skin and fat, the same shape.
        diaphragm: Its height, mm.
        scale: Size of this body against the average.
    """

    local: Local
    noise: NDArray[np.float32]
    inner: Mask
    diaphragm: float
    scale: float


def draw_belly(rng: np.random.Generator, out: Tissues, space: BellySpace) -> None:
    """Paint what lies before the lumbar column; the column itself comes later.

    Args:
        rng: Source of randomness.
        out: Tissue numbers of this part of the scan, (X, Y, Z); painted over.
        space: Where it is.
    """
    front = space.inner & (space.local.anterior > 24 * space.scale)
    _bowel(rng, out, space, front)
    cavity = space.inner & (space.local.anterior > -12 * space.scale)
    _psoas(rng, out, space)
    _organs(rng, out, space, cavity)


def _bowel(rng: np.random.Generator, out: Tissues, space: BellySpace, room: Mask) -> None:
    """Loops of different content in fat, some of them with gas."""
    out[room] = Tissue.FAT
    for tissue, low, high in (
        (Tissue.ORGAN_A, 0.3, 0.9),
        (Tissue.ORGAN_B, 0.9, 9.0),
        (Tissue.ORGAN_C, -0.9, -0.3),
        (Tissue.AIR, -9.0, -1.5 - rng.random()),
    ):
        out[room & (space.noise > low) & (space.noise < high)] = tissue


def _psoas(rng: np.random.Generator, out: Tissues, space: BellySpace) -> None:
    """A muscle on either side of the bodies, from T12 down, growing and drifting outward."""
    side, ahead, height = np.abs(space.local.right), space.local.anterior, space.local.superior
    top = space.diaphragm - 50 * space.scale
    down = np.clip((top - height) / 150, 0, 1)
    middle = (30 + 14 * down) * space.scale
    thick = (4 + 15 * down * rng.uniform(0.6, 1.1)) * space.scale
    muscle = ((side - middle) / thick) ** 2 + ((ahead - 22 * space.scale) / (1.15 * thick)) ** 2 < 1
    out[space.inner & muscle & (height < top)] = Tissue.MUSCLE


def _organs(rng: np.random.Generator, out: Tissues, space: BellySpace, room: Mask) -> None:
    """Kidneys beside T12 to L3 in their fat, the liver on the right and the spleen on the left below the diaphragm.

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
