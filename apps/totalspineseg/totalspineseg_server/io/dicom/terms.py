"""Look up the SNOMED CT terms and colors of structures by their names in the label table.

Source: DICOM PS3.16, CID 7603 (vertebrae) and CID 7604 (intervertebral discs), which give every usual level its own
concept; CID 7151 (spinal cord, sacrum, vertebra); CID 6115 (vertebral canal); CID 7150 (category). A thirteenth
thoracic and a sixth lumbar vertebra, and discs next to them, have no concept of their own there: they get the general
one, and only the segment's label states the level.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

SCHEME: Final = "SCT"


@dataclass(frozen=True)
class Term:
    """A SNOMED CT concept.

    Attributes:
        code: Concept identifier.
        meaning: Meaning in DICOM's words.
    """

    code: str
    meaning: str


ANATOMICAL_STRUCTURE: Final = Term("123037004", "Anatomical Structure")
VERTEBRA: Final = Term("51282000", "Vertebra")
DISC: Final = Term("360499006", "Intervertebral disc")
"""The concept of an intervertebral disc in general. It is in no context group of DICOM, but published SEG writers use
it."""

_VERTEBRAE: Final = {
    "C1": "14806007",
    "C2": "39976000",
    "C3": "113205007",
    "C4": "5329002",
    "C5": "36978003",
    "C6": "36054005",
    "C7": "87391001",
    "T1": "64864005",
    "T2": "53733008",
    "T3": "1626008",
    "T4": "73071006",
    "T5": "56401006",
    "T6": "45296009",
    "T7": "62487009",
    "T8": "11068009",
    "T9": "82687006",
    "T10": "7610001",
    "T11": "12989004",
    "T12": "23215003",
    "L1": "66794005",
    "L2": "14293000",
    "L3": "36470004",
    "L4": "11994002",
    "L5": "49668003",
}
_DISCS: Final = {
    "C2-C3": "1078209008",
    "C3-C4": "58820006",
    "C4-C5": "49400002",
    "C5-C6": "73959003",
    "C6-C7": "75095006",
    "C7-T1": "37414007",
    "T1-T2": "40908007",
    "T2-T3": "6004007",
    "T3-T4": "2620004",
    "T4-T5": "82965004",
    "T5-T6": "72692000",
    "T6-T7": "74401007",
    "T7-T8": "28693002",
    "T8-T9": "9188009",
    "T9-T10": "113209001",
    "T10-T11": "34959001",
    "T11-T12": "1537001",
    "T12-L1": "76206002",
    "L1-L2": "80064006",
    "L2-L3": "67459009",
    "L3-L4": "62551000",
    "L4-L5": "84020006",
}
_TERMS: Final[Mapping[str, Term]] = MappingProxyType(
    {
        "cord": Term("2748008", "Spinal cord"),
        "canal": Term("61853006", "Vertebral canal"),
        "sacrum": Term("54735007", "Sacrum"),
        "vertebrae": VERTEBRA,
        **{name: Term(code, f"{name} vertebra") for name, code in _VERTEBRAE.items()},
        **{name: Term(code, f"{name.replace('-', '/')} disc") for name, code in _DISCS.items()},
        "L5-S": Term("715056000", "L5/S1 disc"),
    }
)
_EXTRA_VERTEBRAE: Final = ("T13", "L6")
_EXTRA_DISCS: Final = ("T12-T13", "L5-L6")
_ABOVE: Final = {"L5-S": ("L5", "L6"), "T12-L1": ("T12", "T13")}
"""Discs whose label is the same below an extra vertebra: the usual vertebra above, and the extra one."""


def term_of(name: str, present: Collection[str] = ()) -> Term:
    """Return the concept of a structure.

    Args:
        name: Name of the label table, or "vertebrae".
        present: Names of all structures of the same label map. If they include a thirteenth thoracic or a sixth lumbar
            vertebra, or lack T12 or L5 between its neighbors, the disc below it is coded without a level.

    Raises:
        KeyError: There is no such name.
    """
    if name in _EXTRA_VERTEBRAE:
        return VERTEBRA
    if name in _EXTRA_DISCS or (name in _ABOVE and _unusual(name, present)):
        return DISC
    return _TERMS[name]


def _unusual(disc: str, present: Collection[str]) -> bool:
    usual, extra = _ABOVE[disc]
    neighbors = {"L5": ("L4", "sacrum"), "T12": ("T11", "L1")}[usual]
    return extra in present or (usual not in present and all(name in present for name in neighbors))


_TO_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE: Final = np.array([0.95047, 1.0, 1.08883])
"""White point D65 of sRGB. Viewers (OHIF, 3D Slicer) assume it for DICOM's CIELab, so that colors are shown as sent."""
_BEND: Final = 6 / 29


def cielab_of(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return the CIE L*a*b* values of an sRGB color.

    Args:
        rgb: 0-255 each.

    Returns:
        L* 0 to 100, a* and b* about -100 to 100.
    """
    encoded = np.array(rgb) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = _TO_XYZ @ linear / _WHITE
    x, y, z = np.where(ratio > _BEND**3, np.cbrt(ratio), ratio / (3 * _BEND**2) + 4 / 29)
    return float(116 * y - 16), float(500 * (x - y)), float(200 * (y - z))


def dicom_cielab_of(rgb: tuple[int, int, int]) -> list[int]:
    """Return an sRGB color as a RecommendedDisplayCIELabValue: three numbers from 0 to 65535.

    Source: DICOM PS3.3 C.10.7.1.1: L* 0..100 and a*, b* -128..127 over the whole range.
    """
    lightness, a, b = cielab_of(rgb)
    scaled = (lightness * 65535 / 100, (a + 128) * 65535 / 255, (b + 128) * 65535 / 255)
    return [round(min(max(value, 0), 65535)) for value in scaled]
