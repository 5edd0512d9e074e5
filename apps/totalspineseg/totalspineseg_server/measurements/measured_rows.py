"""Measure each level, as the rows of a table."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, CODE_OF, DISCS, NAME_OF, VERTEBRAE
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.measurements.measured_spine import Spine, share
from totalspineseg_server.measurements.profile import MIN_VOLUME_MM3, Profile, profiles_of
from totalspineseg_server.trust import Certainty

ZONES: Final[Mapping[str, tuple[float, float]]] = {
    "anterior": (0.1, 0.3),
    "middle": (0.4, 0.6),
    "posterior": (0.7, 0.9),
}
"""Zones of a body's heights, as shares of its depth; the rounded corners are left out."""
DISC_ZONE: Final = (0.2, 0.8)
"""Zone of a disc's height, as shares of its depth: without the rims, which bulge and are thin."""
ANGLES: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "cervical_lordosis_deg": ("C2", "inferior", "C7", "inferior"),
    "thoracic_kyphosis_deg": ("T4", "superior", "T12", "inferior"),
    "lumbar_lordosis_deg": ("L1", "superior", "L5-S", "inferior"),
}
"""Endplates between which each curve is measured; the endplate of S1 is the lower surface of the disc above it."""
BODIES: Final = VERTEBRAE[2:]
"""Vertebrae whose body is measured: C1 has none, that of C2 carries the dens."""
KYPHOTIC: Final = frozenset({"thoracic_kyphosis_deg"})

EXTENT: Final = (
    "volume_ml",
    *(f"centroid_{axis}_mm" for axis in "xyz"),
    *(f"centroid_{axis}_vox" for axis in "ijk"),
    *(f"intensity_{name}" for name in ("mean", "sd", "median", "p5", "p95")),
)
"""Columns of every structure: volume, place, and the image within it."""
COLUMNS: Final = (
    "level",
    "kind",
    "label",
    "names",
    *EXTENT,
    "disc_height_mm",
    "body_anterior_mm",
    "body_middle_mm",
    "body_posterior_mm",
    "wedge_deg",
    "canal_ap_mm",
    "canal_area_mm2",
    "cord_area_mm2",
    *ANGLES,
    "note",
)
"""Columns of a row, after the scan's name."""
CORD_NOTE: Final = "cord area: not validated for cord cross-sectional area"
COLUMN_ROW: Final = "column"
"""Level of the row for the whole column."""

Row = dict[str, Any]


def measure(
    labels: LabelArray,
    spacing: Sequence[float],
    *,
    doubtful: Collection[int] = (),
    certainty: Certainty | None = None,
) -> list[Row]:
    """Measure the levels of a labeled spine: heights, wedge, canal and cord, and the curves of the column.

    Args:
        labels: uint8 (X, Y, Z) codes of a step-2 result, nearest RAS. Not modified.
        spacing: Voxel size, mm.
        doubtful: Codes whose level is doubtful: they are also measured, and marked in "names".
        certainty: How sure the other names are, for "names"; None if nothing is known.

    Returns:
        One row for each vertebra and disc, superior to inferior, then one for the whole column; keys are ``COLUMNS``,
        values rounded to 0.01, None for values that are not in view, and in ``EXTENT``. Empty without canal.
    """
    spine = Spine(labels, spacing)
    present = [code for code in (*VERTEBRAE, *DISCS) if len(spine.voxels(code))]
    if len(spine.line) == 0 or not present:
        return []
    profiles = profiles_of(spine, present)
    heights = {code: float(spine.voxels(code)[:, 2].mean()) for code in present}
    rows = [
        _row(spine, code, profiles.get(code), "doubtful" if code in doubtful else certainty)
        for code in sorted(present, key=lambda code: -heights[code])
    ]
    return [*rows, _column_row(profiles, doubtful, certainty)]


def empty_row(code: int, names: Certainty | None) -> Row:
    """Return the row of a structure before anything is measured.

    Args:
        code: The structure.
        names: How sure its name is.
    """
    known = {"level": NAME_OF[code], "kind": BY_CODE[code].kind.value, "label": code, "names": names}
    return {**dict.fromkeys(COLUMNS), **known}


def _row(spine: Spine, code: int, profile: Profile | None, names: Certainty | None) -> Row:
    row = empty_row(code, names)
    if profile is not None and code in DISCS:
        row["disc_height_mm"] = profile.height(*DISC_ZONE)
    elif profile is not None and code in BODIES:
        row |= {f"body_{zone}_mm": profile.height(*shares) for zone, shares in ZONES.items()}
        centers = {zone: sum(shares) / 2 for zone, shares in ZONES.items()}
        run = (centers["posterior"] - centers["anterior"]) * profile.depth
        row["wedge_deg"] = np.degrees(np.arctan2(row["body_posterior_mm"] - row["body_anterior_mm"], run))
    row |= across(spine, code)
    if row["cord_area_mm2"] is not None:
        row["note"] = CORD_NOTE
    return rounded(row)


def _column_row(profiles: Mapping[int, Profile], doubtful: Collection[int], certainty: Certainty | None) -> Row:
    """Return the angles of the curves whose two ends are in view; a note names ends whose name is doubtful."""
    row: Row = {**dict.fromkeys(COLUMNS), "level": COLUMN_ROW, "kind": COLUMN_ROW, "names": certainty}
    notes = []
    for name, (first, first_side, last, last_side) in ANGLES.items():
        upper, lower = CODE_OF[first], CODE_OF[last]
        if {upper, lower} <= profiles.keys():
            opening = profiles[upper].endplate_angle(superior=first_side == "superior")
            opening -= profiles[lower].endplate_angle(superior=last_side == "superior")
            row[name] = np.degrees(-opening if name in KYPHOTIC else opening)
            if unsure := [NAME_OF[code] for code in (upper, lower) if code in doubtful]:
                row["names"] = "doubtful"
                notes.append(f"{name}: {' and '.join(unsure)} doubtful")
    row["note"] = "; ".join(notes) or None
    return rounded(row)


def rounded(row: Row) -> Row:
    """Return a row whose fractions have two digits."""
    return {key: round(float(v), 2) if isinstance(v, (float, np.floating)) else v for key, v in row.items()}


SLAB_MM: Final = 2.5
"""Half the thickness of the slab across the canal."""
CHORD_MM: Final = 2.5
"""Half the width of the band in which the canal's sagittal diameter is measured."""
TANGENT_MM: Final = 10.0
"""Length of canal on either side that determines its direction."""


def across(spine: Spine, code: int) -> dict[str, float | None]:
    """Measure canal and cord across the canal's own direction, at the centerline point nearest to the level.

    Args:
        spine: The label map.
        code: A vertebra or disc.

    Returns:
        Sagittal diameter of the canal (mm), area of canal and of cord (mm2). None if the level's piece is a remnant, if
        the canal is missing, cut off or ends there, and for a missing cord.
    """
    points, _ = spine.band(code)
    empty: dict[str, float | None] = dict.fromkeys(("canal_ap_mm", "canal_area_mm2", "cord_area_mm2"))
    if len(points) * spine.voxel_mm3 < MIN_VOLUME_MM3:
        return empty
    at = int(np.argmin(((spine.line[:, 1:] - points.mean(axis=0)) ** 2).sum(axis=1)))
    reach = round(TANGENT_MM / spine.mm[2])
    low, high = max(at - reach, 0), min(at + reach, len(spine.line) - 1)
    direction = spine.line[high] - spine.line[low]
    length = float(np.linalg.norm(direction))
    if min(at - low, high - at) * spine.mm[2] < 2 * SLAB_MM or length == 0:
        return empty  # The canal ends within the slab.
    offset = spine.canal_mm - spine.line[at]
    direction = direction / length
    slab = share(offset @ direction, float(np.abs(direction) @ spine.mm), -SLAB_MM, SLAB_MM)
    here = spine.canal[slab > 0]
    if not spine.has_canal(float(spine.line[at, 2]), SLAB_MM) or not len(here) or not spine.in_view(here):
        return empty
    chord = slab * share(offset[:, 0], float(spine.mm[0]), -CHORD_MM, CHORD_MM)
    area = spine.voxel_mm3 / (2 * SLAB_MM)
    return {
        "canal_ap_mm": float(chord.sum()) * area / (2 * CHORD_MM),
        "canal_area_mm2": float(slab.sum()) * area,
        "cord_area_mm2": float(slab[spine.is_cord].sum()) * area or None,
    }
