"""Define the colors of map values, and the codes that get tags."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from totalspineseg_server.anatomy import (
    BY_CODE,
    C1,
    CODE_FROM_STEP1,
    CODE_FROM_STEP2,
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

Color = tuple[int, int, int]
Palette = Mapping[int, Color]

LEVEL_CODES: Final = (*VERTEBRAE, SACRUM, *DISCS)
"""Codes that get a tag by default."""
STEP1_TAGS: Final = (C1, *DISCS)
"""Codes that step 1 names: its other vertebrae are one class."""


def _palette(step: int) -> Palette:
    """Return the color of each class of a network: that of its structure; odd and even vertebrae have two."""
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
