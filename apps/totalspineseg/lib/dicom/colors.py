"""Convert colors to DICOM's encoding."""

from typing import Final

import numpy as np

_TO_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE: Final = np.array([0.95047, 1.0, 1.08883])
"""White point D65 of sRGB. Viewers (OHIF, 3D Slicer) assume it for DICOM's CIELab, so that colors return as sent."""
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
    """Return an sRGB color as RecommendedDisplayCIELabValue: three numbers 0 to 65535.

    Source: DICOM PS3.3 C.10.7.1.1: L* 0..100 and a*, b* -128..127 over the whole range.
    """
    lightness, a, b = cielab_of(rgb)
    scaled = (lightness * 65535 / 100, (a + 128) * 65535 / 255, (b + 128) * 65535 / 255)
    return [round(min(max(value, 0), 65535)) for value in scaled]
