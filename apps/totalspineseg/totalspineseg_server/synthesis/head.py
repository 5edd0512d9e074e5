"""Draw head and throat: they surround the top of the column, and parts of them look like more vertebrae."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.shapes import Local, Mask, capsule
from totalspineseg_server.synthesis.tissues import Tissue

Tissues = NDArray[np.uint8]
LOWEST_MM = -60.0
"""Lowest height of the head relative to the atlas."""
_SHELL_MM = 1.2
_SYNCHONDROSIS_ODDS = 0.5
"""Odds that a line crosses the clivus. Source: the spheno-occipital synchondrosis closes between childhood and the
mid-twenties; its scar stays longer (McDonald et al., Clin Anat 35, 2022). Drawn often, because it looks like a disc."""


@dataclass(frozen=True)
class HeadSpace:
    """The part of the scan around the head.

    Attributes:
        local: mm to the right of the middle, in front of the canal, above the atlas.
        noise: Smooth random field of the same shape.
        inner: The body without skin and subcutaneous fat, the same shape.
        scale: Size of this body relative to the average.
    """

    local: Local
    noise: NDArray[np.float32]
    inner: Mask
    scale: float


def draw_head(rng: np.random.Generator, out: Tissues, space: HeadSpace) -> None:
    """Paint throat, face, jaw, skull base, brainstem and cerebellum.

    Args:
        rng: Source of randomness.
        out: Tissue numbers of this part of the scan, (X, Y, Z). Modified.
        space: The part of the scan.
    """
    bone = Tissue.MARROW if rng.random() < 0.6 else Tissue.OTHER_BONE
    _face(out, space)
    _jaw(rng, out, space, bone)
    _throat(rng, out, space)
    _skull(out, space, bone)
    _clivus(rng, out, space, bone)


def _throat(rng: np.random.Generator, out: Tissues, space: HeadSpace) -> None:
    """Draw the air from the nose down to C3, with some 8 mm of soft tissue between it and the bone.

    Source: Rojas et al., AJNR 30, 2009, 136-141: upper limits of 8.5, 6 and 7 mm at C1, C2 and C3.
    """
    side, ahead, height, scale = np.abs(space.local.right), space.local.anterior, space.local.superior, space.scale
    back = np.where(height > -8, 38, 32) * scale  # The arch of C1 protrudes.
    throat = (side < 12) & (ahead > back) & (ahead < back + 9 * scale) & (height < 25) & (height > -48)
    out[space.inner & throat] = Tissue.AIR if rng.random() < 0.8 else Tissue.MUSCLE


def _face(out: Tissues, space: HeadSpace) -> None:
    """Draw the face as lumps of bone, fat and air."""
    face = space.inner & (space.local.anterior > 36 * space.scale) & (space.local.superior > -25)
    for tissue, low, high in ((Tissue.OTHER_BONE, 0.7, 9.0), (Tissue.FAT, 0.2, 0.7), (Tissue.AIR, -9.0, -1.3)):
        out[face & (space.noise > low) & (space.noise < high)] = tissue


def _jaw(rng: np.random.Generator, out: Tissues, space: HeadSpace, bone: Tissue) -> None:
    """Draw tongue, palate and nose, and the jaw around them, tilted with the head."""
    scale, tip = space.scale, float(rng.normal(0, 6))
    shifted = space.local.anterior + rng.normal(0, 4), space.local.superior - tip
    local = Local(np.abs(space.local.right) / scale, shifted[0] / scale, shifted[1] / scale)
    tongue = (local.right / 20) ** 2 + ((local.anterior - 64) / 20) ** 2 + ((local.superior + 6) / 16) ** 2 < 1
    out[space.inner & tongue] = Tissue.MUSCLE
    out[space.inner & tongue & (space.noise > 0.6)] = Tissue.FAT
    nose = (local.right < 12) & (local.anterior > 44) & (local.superior > 14) & (local.superior < 36)
    out[space.inner & nose] = Tissue.AIR if rng.random() < 0.7 else Tissue.ORGAN_A
    palate = (local.right < 18) & (local.anterior > 46) & (np.abs(local.superior - 12.5) < 1.8)
    out[space.inner & palate] = Tissue.CORTICAL
    for start, end, radius in (
        ((47.0, 14.0, 24.0), (43.0, 22.0, -8.0), 5.0),  # The ramus.
        ((43.0, 22.0, -8.0), (14.0, 68.0, -26.0), 6.5),  # body
        ((14.0, 68.0, -26.0), (0.0, 73.0, -26.0), 8.0),  # chin
    ):
        out[space.inner & capsule(local, start, end, radius + _SHELL_MM)] = Tissue.CORTICAL
        out[space.inner & capsule(local, start, end, radius)] = bone
    teeth = capsule(local, (34, 36, -2), (9, 66, -12), 4.0) | capsule(local, (9, 66, -12), (0, 69, -12), 4.0)
    out[space.inner & teeth] = Tissue.CORTICAL


def _skull(out: Tissues, space: HeadSpace, bone: Tissue) -> None:
    """Draw the vault with its opening, cerebellum and brain, and the brainstem from medulla to pons in its fluid."""
    right, ahead, height = space.local.right, space.local.anterior, space.local.superior
    vault = (right / 70) ** 2 + ((ahead + 8) / 88) ** 2 + ((height - 76) / 66) ** 2
    out[space.inner & (vault < 1)] = Tissue.CORTICAL
    out[space.inner & (vault < 0.97)] = bone
    out[space.inner & (vault < 0.88)] = Tissue.CORTICAL
    out[space.inner & (vault < 0.86)] = Tissue.CSF
    brain = (vault < 0.80) & ((ahead < -14 - 0.1 * np.clip(30 - height, 0, 30)) | (height > 62))
    out[space.inner & brain] = Tissue.BRAIN
    rise = np.clip(height + 4, 0, 24)
    funnel = (right / (9 + 0.35 * rise)) ** 2 + ((ahead + 0.3 * rise) / (8 + 0.5 * rise)) ** 2 < 1
    out[space.inner & funnel & (height > -4) & (height < 20)] = Tissue.CSF  # The cistern behind the medulla.
    medulla = (right / 8.5) ** 2 + ((ahead - 0.5) / (6.5 + 0.04 * rise)) ** 2 < 1
    pons = (right / 17) ** 2 + ((ahead - 8) / 13) ** 2 + ((height - 45) / 15) ** 2 < 1
    out[space.inner & ((medulla & (height > 2) & (height < 45)) | pons)] = Tissue.BRAIN


def _clivus(rng: np.random.Generator, out: Tissues, space: HeadSpace, bone: Tissue) -> None:
    """Draw the clivus from above the dens up and forward: marrow like a vertebra's, behind air and bone of the face."""
    side, ahead, height = np.abs(space.local.right), space.local.anterior, space.local.superior
    low = 14 + rng.normal(0, 2)
    front = 11 * space.scale + (0.68 + rng.normal(0, 0.06)) * (height - low)
    within = (height > low) & (height < low + 38) & (side < 15)
    thick = 4 + 0.12 * (height - low)
    before = space.inner & within & (ahead > front)
    out[before] = Tissue.MUSCLE
    out[before & (space.noise > 0.3)] = Tissue.OTHER_BONE
    out[before & (height > low + 16) & (ahead > front + 10) & (space.noise < 0.2)] = Tissue.AIR
    out[space.inner & within & (np.abs(ahead - front) < thick + _SHELL_MM)] = Tissue.CORTICAL
    wedge = space.inner & within & (np.abs(ahead - front) < thick) & (height > low + _SHELL_MM)
    out[wedge] = bone
    if rng.random() < _SYNCHONDROSIS_ODDS:
        line = np.abs(height + 0.7 * (ahead - front) - low - rng.uniform(12, 24)) < rng.uniform(0.8, 1.8)
        out[wedge & line] = Tissue.ANNULUS if rng.random() < 0.5 else Tissue.CORTICAL
