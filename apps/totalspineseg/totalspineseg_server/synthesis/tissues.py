"""List the tissues of a synthetic scan and their signals in MRI contrasts.

Tissue numbers are private to the synthesis: they never leave it as labels.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Tissue(IntEnum):
    """The tissue of a voxel."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTICAL = 4
    MARROW = 5
    ARCH_MARROW = 6
    ANNULUS = 7
    NUCLEUS = 8
    CSF = 9
    CORD = 10
    CAUDA_EQUINA = 11
    EPIDURAL = 12
    LIGAMENT = 13
    LUNG = 14
    VESSEL = 15
    ORGAN_A = 16
    ORGAN_B = 17
    ORGAN_C = 18
    BRAIN = 19
    OTHER_BONE = 20
    VEIN = 21
    SACRAL_DISC = 22
    LESION = 23
    GRAY_MATTER = 24
    URINE = 25
    IMPLANT = 26


_T1 = {
    Tissue.SKIN: 0.6,
    Tissue.FAT: 0.95,
    Tissue.MUSCLE: 0.35,
    Tissue.CORTICAL: 0.08,
    Tissue.MARROW: 0.6,
    Tissue.ARCH_MARROW: 0.62,
    Tissue.ANNULUS: 0.3,
    Tissue.NUCLEUS: 0.38,
    Tissue.CSF: 0.15,
    Tissue.CORD: 0.45,
    Tissue.CAUDA_EQUINA: 0.28,
    Tissue.EPIDURAL: 0.85,
    Tissue.LIGAMENT: 0.15,
    Tissue.LUNG: 0.05,
    Tissue.VESSEL: 0.12,
    Tissue.ORGAN_A: 0.45,
    Tissue.ORGAN_B: 0.35,
    Tissue.ORGAN_C: 0.55,
    Tissue.BRAIN: 0.48,
    Tissue.OTHER_BONE: 0.6,
    Tissue.VEIN: 0.3,
    Tissue.SACRAL_DISC: 0.35,
    Tissue.GRAY_MATTER: 0.4,
    Tissue.URINE: 0.14,
    Tissue.IMPLANT: 0.02,
    Tissue.LESION: 0.4,
}
_T2 = {
    Tissue.SKIN: 0.45,
    Tissue.FAT: 0.75,
    Tissue.MUSCLE: 0.18,
    Tissue.CORTICAL: 0.06,
    Tissue.MARROW: 0.38,
    Tissue.ARCH_MARROW: 0.42,
    Tissue.ANNULUS: 0.14,
    Tissue.NUCLEUS: 0.55,
    Tissue.CSF: 0.97,
    Tissue.CORD: 0.42,
    Tissue.CAUDA_EQUINA: 0.68,
    Tissue.EPIDURAL: 0.7,
    Tissue.LIGAMENT: 0.1,
    Tissue.LUNG: 0.05,
    Tissue.VESSEL: 0.08,
    Tissue.ORGAN_A: 0.4,
    Tissue.ORGAN_B: 0.6,
    Tissue.ORGAN_C: 0.3,
    Tissue.BRAIN: 0.45,
    Tissue.OTHER_BONE: 0.4,
    Tissue.VEIN: 0.6,
    Tissue.SACRAL_DISC: 0.3,
    Tissue.GRAY_MATTER: 0.52,
    Tissue.URINE: 0.95,
    Tissue.IMPLANT: 0.02,
    Tissue.LESION: 0.7,
}
_STIR = {
    Tissue.SKIN: 0.35,
    Tissue.FAT: 0.1,
    Tissue.MUSCLE: 0.3,
    Tissue.CORTICAL: 0.05,
    Tissue.MARROW: 0.18,
    Tissue.ARCH_MARROW: 0.15,
    Tissue.ANNULUS: 0.14,
    Tissue.NUCLEUS: 0.55,
    Tissue.CSF: 0.97,
    Tissue.CORD: 0.45,
    Tissue.CAUDA_EQUINA: 0.7,
    Tissue.EPIDURAL: 0.12,
    Tissue.LIGAMENT: 0.1,
    Tissue.LUNG: 0.04,
    Tissue.VESSEL: 0.1,
    Tissue.ORGAN_A: 0.4,
    Tissue.ORGAN_B: 0.65,
    Tissue.ORGAN_C: 0.5,
    Tissue.BRAIN: 0.5,
    Tissue.OTHER_BONE: 0.18,
    Tissue.VEIN: 0.6,
    Tissue.SACRAL_DISC: 0.25,
    Tissue.GRAY_MATTER: 0.55,
    Tissue.URINE: 0.95,
    Tissue.IMPLANT: 0.02,
    Tissue.LESION: 0.8,
}
_T2STAR = _T2 | {
    Tissue.FAT: 0.5,
    Tissue.MARROW: 0.12,
    Tissue.ARCH_MARROW: 0.15,
    Tissue.ANNULUS: 0.5,
    Tissue.NUCLEUS: 0.75,
    Tissue.CSF: 0.9,
    Tissue.CORD: 0.6,
    Tissue.GRAY_MATTER: 0.76,
    Tissue.MUSCLE: 0.35,
    Tissue.OTHER_BONE: 0.12,
    Tissue.VESSEL: 0.85,
}

_T1GRE = _T1 | {
    Tissue.FAT: 0.9,
    Tissue.MUSCLE: 0.5,
    Tissue.MARROW: 0.5,
    Tissue.ARCH_MARROW: 0.5,
    Tissue.ANNULUS: 0.35,
    Tissue.CSF: 0.08,
    Tissue.CORD: 0.8,
    Tissue.GRAY_MATTER: 0.65,
    Tissue.CAUDA_EQUINA: 0.4,
    Tissue.EPIDURAL: 0.7,
    Tissue.BRAIN: 0.75,
    Tissue.VESSEL: 0.4,
    Tissue.OTHER_BONE: 0.5,
}

PRIORS: Final[Mapping[str, Mapping[Tissue, float]]] = MappingProxyType(
    {"T1": _T1, "T2": _T2, "STIR": _STIR, "T2star": _T2STAR, "T1gre": _T1GRE}
)
"""Contrast name -> relative signal by tissue, 0 to 1 (air 0).

Source: the ordering of signals in clinical spine sequences: fat and marrow bright on T1, fluid bright on T2, fat nulled
on STIR, marrow dark on gradient echo. On T1 of inverted or spoiled gradient echoes, the usual volume scans of the neck,
fluid is nearly black and white matter the brightest tissue but fat, because its T1 is the shortest (0.88 s at 3 T,
Smith et al., Magn Reson Med 2008). The values are ours, and each draw varies them.
"""
