"""Define the one label table, from which every code, name, class and color of the project is derived.

No other module of ``totalspineseg_server`` contains a label number. Codes are those of TotalSpineSeg, extended by
T13 and its disc. Column positions count vertebrae from C1 = 1.
"""

import colorsys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Final


class Kind(Enum):
    """Kind of a structure."""

    CORD = "cord"
    CANAL = "canal"
    VERTEBRA = "vertebra"
    SACRUM = "sacrum"
    DISC = "disc"


class Parity(Enum):
    """Step-2 class of a vertebra by its position in the column; C1 is odd."""

    ODD = "odd"
    EVEN = "even"


@dataclass(frozen=True)
class Structure:
    """One labeled structure.

    Attributes:
        code: TotalSpineSeg output code.
        name: Canonical name, as users see it ("L4", "L4-L5", "cord").
        kind: Its kind.
        color: sRGB color, 0-255 each; neighbors in the column differ clearly.
    """

    code: int
    name: str
    kind: Kind
    color: tuple[int, int, int]


BACKGROUND: Final = 0
CORD: Final = 1
CANAL: Final = 2
SACRUM: Final = 50
UNREVIEWED: Final = 255
"""Value in training labels for voxels that nobody checked: they have no loss and no score."""
UNREVIEWED_NAME: Final = "unreviewed"
"""Name of the segment that marks a region that nobody checked."""

_CERVICAL = tuple((11 + i, f"C{i + 1}") for i in range(7))
_THORACIC = tuple((21 + i, f"T{i + 1}") for i in range(13))
_LUMBAR = tuple((41 + i, f"L{i + 1}") for i in range(6))

CERVICAL: Final = tuple(code for code, _ in _CERVICAL)
THORACIC: Final = tuple(code for code, _ in _THORACIC)
LUMBAR: Final = tuple(code for code, _ in _LUMBAR)
VERTEBRAE: Final = CERVICAL + THORACIC + LUMBAR
C1, C2, C3, C7, T1, T12, T13, L1, L4, L5, L6 = 11, 12, 13, 17, 21, 32, 33, 41, 44, 45, 46
T11: Final = 31

_CERVICAL_DISCS = tuple((63 + i, f"C{i + 2}-C{i + 3}") for i in range(5))
_THORACIC_DISCS = ((71, "C7-T1"), *((72 + i, f"T{i + 1}-T{i + 2}") for i in range(12)))
_LUMBAR_DISCS = ((91, "T12-L1"), *((92 + i, f"L{i + 1}-L{i + 2}") for i in range(5)), (100, "L5-S"))

DISCS: Final = tuple(code for code, _ in _CERVICAL_DISCS + _THORACIC_DISCS + _LUMBAR_DISCS)
DISC_C2_C3, DISC_C7_T1, DISC_T12_L1, DISC_L5_S = 63, 71, 91, 100
DISC_T11_T12, DISC_T12_T13 = 82, 83
DISC_L2_L3, DISC_L3_L4, DISC_L4_L5, DISC_L5_L6 = 93, 94, 95, 96
LANDMARK_DISCS: Final = (DISC_C2_C3, DISC_C7_T1, DISC_T12_L1, DISC_L5_S)


def _palette() -> Mapping[int, tuple[int, int, int]]:
    """Return colors by code: hues step by the golden ratio along the column, discs lighter than vertebrae."""

    def rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
        red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
        return round(255 * red), round(255 * green), round(255 * blue)

    golden = 0.61803398875
    colors = {CORD: (255, 214, 10), CANAL: (64, 156, 255), SACRUM: (178, 102, 76)}
    colors |= {code: rgb(0.03 + golden * i, 0.72, 0.90) for i, code in enumerate(VERTEBRAE)}
    colors |= {code: rgb(0.33 + golden * i, 0.38, 1.00) for i, code in enumerate(DISCS)}
    return colors


_COLORS = _palette()


def _structures() -> tuple[Structure, ...]:
    rows = [(CORD, "cord", Kind.CORD), (CANAL, "canal", Kind.CANAL)]
    rows += [(code, name, Kind.VERTEBRA) for code, name in _CERVICAL + _THORACIC + _LUMBAR]
    rows += [(SACRUM, "sacrum", Kind.SACRUM)]
    rows += [(code, name, Kind.DISC) for code, name in _CERVICAL_DISCS + _THORACIC_DISCS + _LUMBAR_DISCS]
    return tuple(Structure(code, name, kind, _COLORS[code]) for code, name, kind in rows)


STRUCTURES: Final = _structures()
"""All structures in fixed order (ascending code)."""
BY_CODE: Final[Mapping[int, Structure]] = MappingProxyType({s.code: s for s in STRUCTURES})
NAME_OF: Final[Mapping[int, str]] = MappingProxyType({s.code: s.name for s in STRUCTURES})
CODE_OF: Final[Mapping[str, int]] = MappingProxyType({s.name: s.code for s in STRUCTURES})

WIRE_ID: Final[Mapping[int, int]] = MappingProxyType({s.code: i for i, s in enumerate(STRUCTURES, start=1)})
"""Code -> contiguous id 1..N in fixed order, used in label maps for clients."""
WIRE_LABELS: Final[Mapping[str, int]] = MappingProxyType({s.name: WIRE_ID[s.code] for s in STRUCTURES})
"""Name -> wire id, in wire order, deliberately without "background"."""


@dataclass(frozen=True)
class Column:
    """One anatomical variant of the column, superior to inferior.

    Attributes:
        vertebrae: Codes from C1 to the last lumbar vertebra.
        discs: ``discs[i]`` is the code of the disc below ``vertebrae[i]``, None below C1.
        name: "normal", "T11", "T13", "L4", "L6" or two of them joined by "+".
    """

    vertebrae: tuple[int, ...]
    discs: tuple[int | None, ...]
    name: str


@cache
def column(thoracic: int = 12, lumbar: int = 5) -> Column:
    """Return the column with this many thoracic (11-13) and lumbar (4-6) vertebrae.

    The last thoracic disc is always "T12-L1" (91) and the disc on the sacrum always "L5-S" (100),
    whatever vertebra is above them.

    Raises:
        ValueError: The counts are outside the variants that have codes.
    """
    if thoracic not in (11, 12, 13) or lumbar not in (4, 5, 6):
        raise ValueError(f"expected 11-13 thoracic and 4-6 lumbar vertebrae, got {thoracic} and {lumbar}")
    vertebrae = CERVICAL + THORACIC[:thoracic] + LUMBAR[:lumbar]
    cervical_discs: tuple[int | None, ...] = (None, *(code for code, _ in _CERVICAL_DISCS), DISC_C7_T1)
    thoracic_discs = (*(code for code, _ in _THORACIC_DISCS[1:thoracic]), DISC_T12_L1)
    lumbar_discs = (*(code for code, _ in _LUMBAR_DISCS[1:lumbar]), DISC_L5_S)
    variants = [f"T{thoracic}"] * (thoracic != 12) + [f"L{lumbar}"] * (lumbar != 5)
    return Column(vertebrae, cervical_discs + thoracic_discs + lumbar_discs, "+".join(variants) or "normal")


PARITY: Final[Mapping[int, Parity]] = MappingProxyType(
    {
        code: Parity.ODD if position % 2 else Parity.EVEN
        for position, code in [
            *enumerate(CERVICAL + THORACIC[:12] + LUMBAR, start=1),
            (len(CERVICAL) + 13, T13),
        ]
    }
)
"""Odd/even class of each vertebra in training maps (T13 follows T12; L1 keeps its class)."""


class Step1(Enum):
    """Step-1 classes: values in the step-1 label map."""

    DISC = 1
    DISC_C2_C3 = 2
    DISC_C7_T1 = 3
    DISC_T12_L1 = 4
    DISC_L5_S = 5
    VERTEBRAE = 6
    C1 = 7
    CANAL = 8
    CORD = 9


class Step2(Enum):
    """Step-2 classes: values in the step-2 label map."""

    DISC = 1
    DISC_C2_C3 = 2
    DISC_C7_T1 = 3
    DISC_T12_L1 = 4
    DISC_L5_S = 5
    VERTEBRA = 6
    VERTEBRA_ODD = 7
    VERTEBRA_EVEN = 8
    SACRUM = 9
    CANAL = 10
    CORD = 11


LANDMARK_CLASS: Final[Mapping[int, int]] = MappingProxyType({2: 63, 3: 71, 4: 91, 5: 100})
"""Landmark class (same in both steps) -> disc code."""
DISC_CLASSES: Final = (1, 2, 3, 4, 5)
"""Classes of either step that are discs."""

STEP1_REGIONS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "disc": (1, 2, 3, 4, 5),
        "disc_C2_C3": (2,),
        "disc_C7_T1": (3,),
        "disc_T12_L1": (4,),
        "disc_L5_S": (5,),
        "vertebrae": (6, 7),
        "vertebrae_C1": (7,),
        "canal": (8, 9),
        "cord": (9,),
    }
)
"""Region name -> step-1 classes, in the order of the network's output channels."""
STEP2_REGIONS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "disc": (1, 2, 3, 4, 5),
        "disc_C2_C3": (2,),
        "disc_C7_T1": (3,),
        "disc_T12_L1": (4,),
        "disc_L5_S": (5,),
        "vertebrae": (6, 7, 8, 9),
        "vertebrae_O": (7,),
        "vertebrae_E": (8,),
        "sacrum": (9,),
        "canal": (10, 11),
        "cord": (11,),
    }
)
"""Region name -> step-2 classes, in the order of the network's output channels."""


def _training_map(vertebra_class: Mapping[int, int], rest: Mapping[int, int]) -> Mapping[int, int]:
    classes = dict.fromkeys(DISCS, 1)
    classes |= {disc: value for value, disc in LANDMARK_CLASS.items()}
    return MappingProxyType(classes | dict(vertebra_class) | dict(rest))


STEP1_FROM_CODE: Final = _training_map(dict.fromkeys(VERTEBRAE, 6), {C1: 7, SACRUM: 6, CANAL: 8, CORD: 9})
"""Output code -> step-1 class (training target of Dataset101)."""
STEP2_FROM_CODE: Final = _training_map(
    {code: 7 if PARITY[code] is Parity.ODD else 8 for code in VERTEBRAE}, {SACRUM: 9, CANAL: 10, CORD: 11}
)
"""Output code -> step-2 class (training target of Dataset102)."""
CODE_FROM_STEP1: Final[Mapping[int, int]] = MappingProxyType({7: C1, 6: SACRUM, 8: CANAL, 9: CORD})
"""Step-1 class -> output code, for the classes that labeling does not change."""
CODE_FROM_STEP2: Final[Mapping[int, int]] = MappingProxyType({9: SACRUM, 10: CANAL, 11: CORD})
"""Step-2 class -> output code, for the classes that labeling does not change."""

LEVEL_POINT: Final[Mapping[int, int]] = MappingProxyType(
    {code: value for value, code in enumerate((c for c in column().discs if c is not None), start=3)}
)
"""Disc code -> SCT disc convention (3 = C2-C3 .. 25 = L5-S) for the normal column."""
POINT_C1_TOP, POINT_C1_C2 = 1, 2
"""SCT values above C2-C3: the top of C1 / tip of the dens, and the level between C1 and C2."""


@dataclass(frozen=True)
class NumberTable:
    """The numbers of another program's label maps.

    Attributes:
        codes: Number -> code, of everything but discs.
        disc_below: Number of a disc -> code of the vertebra above it.
        others: Numbers for which this project has no structure.
    """

    codes: Mapping[int, int]
    disc_below: Mapping[int, int] = field(default_factory=dict)
    others: frozenset[int] = frozenset()

    def codes_of(self, present: Collection[int]) -> Mapping[int, int]:
        """Return number -> code for the numbers in a map; background for those of ``others``.

        The name of a disc above or below an extra or a missing vertebra depends on the vertebrae in the map.

        Args:
            present: The numbers in the map, without that of the background. Numbers the table lacks are left out.
        """
        vertebrae = {self.codes[number] for number in present if number in self.codes}
        thoracic = 13 if T13 in vertebrae else 11 if {T11, L1} <= vertebrae and T12 not in vertebrae else 12
        lumbar = 6 if L6 in vertebrae else 4 if {L4, SACRUM} <= vertebrae and L5 not in vertebrae else 5
        spine = column(thoracic, lumbar)
        below = {vertebra: disc for vertebra, disc in zip(spine.vertebrae, spine.discs, strict=True) if disc}
        discs = {number: below.get(vertebra, BACKGROUND) for number, vertebra in self.disc_below.items()}
        known = {**dict.fromkeys(self.others, BACKGROUND), **discs, **self.codes}
        return {number: known[number] for number in present if number in known}


def _number_tables() -> dict[str, NumberTable]:
    """Return the tables, each from its program's documentation."""
    upward = tuple(reversed(column().vertebrae))
    # From the feet: sacrum, the first sacral vertebra, L5 .. C1; of the other organs only the cord is known here.
    total = {25: SACRUM, 26: SACRUM, 79: CORD, **dict(enumerate(upward, start=27))}
    # From the head: C1 .. T12, L1 .. L6, then the sacrum; the coccyx and T13 have numbers of their own.
    verse = {**dict(enumerate(CERVICAL + THORACIC[:12] + LUMBAR, start=1)), 26: SACRUM, 28: T13}
    discs = {100 + number: code for number, code in verse.items() if code != SACRUM}
    endplates = frozenset(range(201, 229))
    return {
        "totalsegmentator": NumberTable(total, others=frozenset(range(1, 118)) - total.keys()),
        "totalsegmentator-mr": NumberTable({1: SACRUM, **dict(enumerate(upward, start=2))}),
        "spineps": NumberTable({**verse, 60: CORD, 61: CANAL}, discs, endplates | {27, 62, 126}),
        "verse": NumberTable(verse, others=frozenset({27})),
    }


OWN_NUMBERS: Final = "totalspineseg"
"""Name of the codes of this project among the tables of numbers."""
NUMBER_TABLES: Final[Mapping[str, NumberTable]] = MappingProxyType(_number_tables())
"""Name -> numbers of other programs: TotalSegmentator's tasks ``total`` and ``vertebrae_mr``, the vertebra masks of
SPINEPS, and VerSe."""
