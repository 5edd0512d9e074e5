"""Name the structures of a label file: the names that people use, segments, and maps that are sent to clients.

In these maps the ids are 1..N in the same order for every model, because clients give the k-th published name to voxel
value k. Step 1 does not distinguish vertebrae: it publishes "vertebrae" in place of the sacrum, so that a corrected
step-1 label is never mistaken for a finished one. ``UNREVIEWED`` marks what nobody checked.
"""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import (
    BACKGROUND,
    BY_CODE,
    CANAL,
    CORD,
    DISC_L5_S,
    DISC_T12_L1,
    L4,
    L5,
    L6,
    NAME_OF,
    SACRUM,
    STRUCTURES,
    T11,
    T12,
    T13,
    UNREVIEWED,
    WIRE_ID,
    WIRE_LABELS,
    Kind,
)
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Grid, LabelArray, Volume, on_grid

SEPARATORS: Final = re.compile(r"[\s_/\-\u2010-\u2015\u2212]+")
"""Separators between the parts of a name: space, underscore, slash, hyphen, and the dashes some programs write."""
KIND_WORDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "vertebra": Kind.VERTEBRA,
        "vertebrae": Kind.VERTEBRA,
        "disc": Kind.DISC,
        "disk": Kind.DISC,
        "intervertebral": Kind.DISC,
    }
)
"""Words beside a level -> the kind that they state."""
THORACIC: Final = re.compile(r"th(?=\d)")
"""Beginning of "Th12"."""
SHORT_DISC: Final = re.compile(r"(?<![a-z])(th|[ctl])(\d+)\s*[/\-\u2010-\u2015\u2212]\s*(\d+)(?!\d)")
"""A disc with one letter, such as "L4/5". An underscore or a space does not count, because 3D Slicer calls a part of L4
"L4_1"."""
NUMBER: Final = re.compile(r"\d+")
DOUBT_MARK: Final = "?"
"""The mark behind the name of a doubtful level, until a reader confirms it."""
MARKS: Final = re.compile(r"[\s?]+$")
S1: Final = "s1"
"""The first segment of the sacrum, which is one piece in the label table; some people mean all of it, some do not."""
ARROW: Final = re.compile(r"->|\u2192")
"""Sign between the former and the right name of a level."""
POINT_SEPARATORS: Final = re.compile(r"[\s@,]+")
"""Separators between a level and the coordinates of a point in it."""
SIMILAR: Final = 0.8
"""Smallest share of common letters with which one spelling may stand for another: "spinalcord" and "spinal-cord"."""


_PUBLISHED: Final[Mapping[str, int]] = MappingProxyType({s.name.casefold(): s.code for s in STRUCTURES})
_SPINAL: Final[Mapping[str, int]] = MappingProxyType({"spinal-cord": CORD, "spinal-canal": CANAL})
# These two discs keep their names, whichever vertebra is above them: there may be 11 or 13 thoracic, and 4 or 6 lumbar
# vertebrae.
_LAST_LUMBAR = {f"{NAME_OF[last].casefold()}-{below}": DISC_L5_S for last in (L4, L5, L6) for below in ("s", S1)}
_LAST_THORACIC = {f"{NAME_OF[last].casefold()}-l1": DISC_T12_L1 for last in (T11, T12, T13)}
_CODE_OF: Final[Mapping[str, int]] = MappingProxyType({**_PUBLISHED, **_SPINAL, **_LAST_LUMBAR, **_LAST_THORACIC})


def code_of_name(name: str) -> int | None:
    """Return the code that a segment name stands for, or None if the name is unknown.

    Case, surrounding space, separators and the mark of doubt do not matter. The usual spellings of the field are
    recognized ("L4", "vertebrae_L4", "Th12", "disc L4-L5", "L4/5", "L5/S1", "spinal cord"), and so are the names of the
    last discs below a missing or an extra vertebra ("L6-S1" is the disc on the sacrum, "L5-S").
    """
    key, kinds = _read(name)
    code = _CODE_OF.get(key)
    return None if code is None or kinds - {BY_CODE[code].kind} else code


def with_mark(name: str) -> str:
    """Return the name of a doubtful level as clients show it, such as "L4 ?"."""
    return f"{name} {DOUBT_MARK}"


def is_marked(name: str) -> bool:
    """Return whether a name ends with the mark of doubt."""
    return name.rstrip().endswith(DOUBT_MARK)


def without_mark(name: str) -> str:
    """Return a name without the mark of doubt; other names are returned as they are."""
    return MARKS.sub("", name) if is_marked(name) else name


def similar_name(name: str) -> str | None:
    """Return the published name that an unknown name probably stands for; None if none is similar."""
    key, kinds = _read(name)
    if key == S1:
        return NAME_OF[SACRUM]
    # A name with other numbers means another level, however similar it looks.
    candidates = [known for known in (*_PUBLISHED, *_SPINAL) if NUMBER.findall(known) == NUMBER.findall(key)]
    similar = difflib.get_close_matches(key, candidates, n=1, cutoff=SIMILAR)
    code = _CODE_OF[similar[0]] if similar else None
    return None if code is None or kinds - {BY_CODE[code].kind} else NAME_OF[code]


def level_at(text: str) -> tuple[int, tuple[float, float, float]] | None:
    """Return the code of a level and a point in it, RAS mm, from a text such as ``L5 3.5 -12 80`` or ``L5@3.5,-12,80``.

    Returns:
        None if the text names no vertebra, disc or sacrum, or no point.
    """
    *words, x, y, z = ["", "", "", *POINT_SEPARATORS.split(text.strip())]
    code = _level(" ".join(words))
    try:
        point = float(x), float(y), float(z)
    except ValueError:
        return None
    return None if code is None or not all(map(math.isfinite, point)) else (code, point)


def renamed_level(text: str) -> tuple[int, int] | None:
    """Return the codes of a level and of its right name, from a text such as ``L1 -> T12``.

    Returns:
        None if the text does not name two vertebrae (or the sacrum) or two discs.
    """
    codes = [_level(part) for part in ARROW.split(text)]
    if len(codes) != 2 or codes[0] is None or codes[1] is None:
        return None
    was, now = codes[0], codes[1]
    return (was, now) if (BY_CODE[was].kind is Kind.DISC) == (BY_CODE[now].kind is Kind.DISC) else None


def _level(name: str) -> int | None:
    """Return the code of a vertebra, a disc or the sacrum; None for other names."""
    code = code_of_name(name)
    return None if code is None or BY_CODE[code].kind in (Kind.CORD, Kind.CANAL) else code


def _read(name: str) -> tuple[str, set[Kind]]:
    """Return a name as spelled in ``_CODE_OF``, and the kinds that its words state."""
    text = SHORT_DISC.sub(_in_full, without_mark(name).strip().casefold())
    words = [THORACIC.sub("t", word) for word in SEPARATORS.split(text)]
    kinds = {KIND_WORDS[word] for word in words if word in KIND_WORDS}
    return "-".join(word for word in words if word not in KIND_WORDS), kinds


def _in_full(short: re.Match[str]) -> str:
    """Return a disc with the letters of both levels; other numbers than two that follow each other are left alone."""
    letter, upper, lower = short.groups()
    return f"{letter}{upper}-{letter}{lower}" if int(lower) == int(upper) + 1 else short[0]


MAX_SEGMENTS: Final = 255
"""Largest number of segments: as many as fit into a uint8 map. No spine has more."""


@dataclass(frozen=True)
class Segment:
    """One named structure of a submission.

    Attributes:
        name: Name that the client sent.
        value: Voxel value in its layer.
        layer: Index into ``Submission.layers``.
    """

    name: str
    value: int
    layer: int = 0


@dataclass(frozen=True)
class Submission:
    """The content of a label file.

    Attributes:
        layers: (X, Y, Z) uint8 maps; there are several if segments overlap.
        grid: Grid of the voxels.
        segments: Name of each value.
    """

    layers: tuple[LabelArray, ...]
    grid: Grid
    segments: tuple[Segment, ...]

    def on(self, image: Grid) -> "Submission":
        """Return the same submission in the index order of its image.

        Args:
            image: Grid of the image.

        Raises:
            GridError: The label does not lie on the voxels of the image.
        """
        layers = tuple(on_grid(Volume(layer, self.grid.affine), image).data for layer in self.layers)
        return Submission(layers, image, self.segments)


VERTEBRAE_NAME: Final = "vertebrae"
"""Name of the structure that contains all vertebrae and the sacrum in step 1."""
REVIEW_PREFIX: Final = "review"
"""Beginning of the names of segments that only mark places for a reader to look at."""
STEP1_WIRE_LABELS: Final[Mapping[str, int]] = MappingProxyType(
    {VERTEBRAE_NAME if name == NAME_OF[SACRUM] else name: wire_id for name, wire_id in WIRE_LABELS.items()}
)
"""Name -> wire id of step-1 label maps."""


def is_vertebrae(name: str) -> bool:
    """Return whether a segment's name is that of all vertebrae in one piece, which makes its map a step-1 map."""
    return name.strip().casefold() == VERTEBRAE_NAME


def _table(pairs: Mapping[int, int]) -> LabelArray:
    table = np.zeros(np.iinfo(np.uint8).max + 1, dtype=np.uint8)
    for source, target in pairs.items():
        table[source] = target
    return table


_TO_WIRE = _table(WIRE_ID)
_FROM_WIRE = _table({wire_id: code for code, wire_id in WIRE_ID.items()})


def to_wire(codes: LabelArray) -> LabelArray:
    """Convert a map of codes to wire ids.

    Args:
        codes: (X, Y, Z) uint8. Not modified.

    Returns:
        uint8 of the same shape; all 0 stays all 0.

    Raises:
        LabelError: A value is not a code.
    """
    wire: LabelArray = _TO_WIRE[codes]
    _require_known(codes, wire, "codes of the label table")
    return wire


def from_wire(wire: LabelArray) -> LabelArray:
    """Convert a map of wire ids to codes; see ``to_wire``.

    Raises:
        LabelError: A value is not a wire id.
    """
    codes: LabelArray = _FROM_WIRE[wire]
    _require_known(wire, codes, f"ids 0..{len(WIRE_ID)}")
    return codes


def from_names(values: LabelArray, names: Mapping[str, int]) -> LabelArray:
    """Convert a map with named values, such as that of a reply, to codes.

    Args:
        values: (X, Y, Z) uint8. Not modified.
        names: Published name, perhaps with the mark of doubt -> value, as ``label_names`` of a reply.

    Raises:
        LabelError: A value has no name.
    """
    published = {**WIRE_LABELS, VERTEBRAE_NAME: STEP1_WIRE_LABELS[VERTEBRAE_NAME]}
    wire: LabelArray = _table({value: published[without_mark(name)] for name, value in names.items()})[values]
    _require_known(values, wire, f"the values of {', '.join(names)}")
    return from_wire(wire)


def _require_known(source: LabelArray, mapped: LabelArray, expected: str) -> None:
    lost = (source != BACKGROUND) & (mapped == BACKGROUND)
    if lost.any():
        values = [int(value) for value in np.unique(source[lost])]
        raise LabelError(f"expected a label map with {expected}, got the values {values!r}")


def mark_unchecked(codes: LabelArray, unchecked: Collection[int]) -> LabelArray:
    """Return codes in which structures that nobody checked are unreviewed.

    Args:
        codes: uint8. Not modified.
        unchecked: Codes of these structures.
    """
    return np.where(np.isin(codes, sorted(unchecked)), UNREVIEWED, codes).astype(np.uint8)


def without_regions(codes: LabelArray) -> LabelArray:
    """Return codes as clients, checks and networks see them: regions that nobody checked are background.

    Args:
        codes: uint8. Not modified.
    """
    return np.where(codes == UNREVIEWED, BACKGROUND, codes).astype(np.uint8)
