"""Make one sheet of a scan for a page: the sagittal picture beside an axial cut through each level, as SVG.

The image, the labels and the names are layers of their own, so that a page can switch the labels on and off, and names
stay sharp at any size.
"""

import base64
import html
import io
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from totalspineseg_server.color_tables import hex_of
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.preview.axial import LEVELS, Cut, axial_cuts
from totalspineseg_server.preview.palette import CODE_PALETTE, LEVEL_CODES
from totalspineseg_server.preview.plane import Plane, windowed
from totalspineseg_server.preview.planes import Course
from totalspineseg_server.preview.tags import DOUBTFUL_COLOR, LINE_PX, Tag, rows_of
from totalspineseg_server.segments import with_mark

Layer = npt.NDArray[np.uint8]

CUT_PX: Final = 132
"""Side of an axial cut."""
GAP_PX: Final = 4
"""Gap between two pictures."""
ROWS: Final = (4, 8)
"""Fewest and most rows of cuts; a whole spine fills the most."""
COLUMNS: Final = 6
MARGIN_PX: Final = 78
"""Room for names on each side of the sagittal picture."""
MAX_WIDTH_PX: Final = 560
"""Widest sagittal picture; a wide field of view is made smaller."""
LETTERS_PX: Final = 13
MAX_BYTES: Final = 62_000
"""Largest sheet before it becomes text, which takes a third more: 500 scans stay below 50 MB in one page."""
QUALITIES: Final = (80, 50, 25, 8, 1)
"""Qualities of the image's compression, tried from the best one on until the sheet is small enough."""
EFFORT: Final = 3
"""Effort of the compression, 0-6: half the time of the usual 4."""
FILL_ALPHA: Final = 70
"""Opacity of a structure in an axial cut, 0-255; its outline is opaque, and shows how far the canal reaches."""


def sheet_svg(
    volume: Volume,
    labels: LabelArray,
    course: Course,
    *,
    doubtful: Collection[int] = (),
    tags: Collection[int] = LEVEL_CODES,
) -> str:
    """Return the sheet of a scan.

    Args:
        volume: Image, any orientation and spacing. Not modified.
        labels: Codes on the same grid. Not modified.
        course: From ``course_of``.
        doubtful: Codes whose level is doubtful: striped, and with "?".
        tags: Codes that are named; of these, discs and vertebrae are cut.

    Returns:
        An SVG document with the groups ``scan``, ``labels`` and ``names``, whose pictures are inside it.
    """
    cuts = axial_cuts(volume, labels, course, size_px=CUT_PX, codes=set(tags) & set(LEVELS))
    rows = min(max(ROWS[0], -(-len(cuts) // COLUMNS)), ROWS[1])
    height = rows * (CUT_PX + GAP_PX) - GAP_PX
    plane = Plane(volume, course, sagittal=True, height_px=height)
    if plane.gray.shape[1] > MAX_WIDTH_PX:
        plane = Plane(volume, course, sagittal=True, height_px=round(height * MAX_WIDTH_PX / plane.gray.shape[1]))
    named = plane.tags_of(labels, tags, doubtful)
    left = MARGIN_PX + plane.gray.shape[1] + MARGIN_PX
    places = [(left + (k // rows) * (CUT_PX + GAP_PX), (k % rows) * (CUT_PX + GAP_PX)) for k in range(len(cuts))]
    width = max((x for x, _ in places), default=left) + (CUT_PX if places else 0)
    top = (height - plane.gray.shape[0]) // 2
    gray, painted = np.zeros((height, width), np.uint8), np.zeros((height, width, 4), np.uint8)
    inside = (slice(top, top + plane.gray.shape[0]), slice(MARGIN_PX, MARGIN_PX + plane.gray.shape[1]))
    gray[inside], painted[inside] = plane.gray, plane.overlay(labels, doubtful=doubtful)
    # One window for all cuts, so that a dark cut looks dark.
    bright = windowed(np.concatenate([cut.gray for cut in cuts])) if cuts else np.zeros((0, CUT_PX), np.uint8)
    for k, (cut, (x, y)) in enumerate(zip(cuts, places, strict=True)):
        inside = (slice(y, y + CUT_PX), slice(x, x + CUT_PX))
        gray[inside], painted[inside] = bright[k * CUT_PX : (k + 1) * CUT_PX], _outlined(cut.codes)
    names = [*_tags(named, top, height, plane.gray.shape[1]), *_captions(cuts, places, doubtful)]
    scan, label = _compressed(gray, painted)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{_described(cuts)}" font-family="system-ui, sans-serif" font-size="{LETTERS_PX}">'
        f'<rect width="{width}" height="{height}" fill="#000"/>'
        f'<g class="scan">{_image(scan, width, height)}</g><g class="labels">{_image(label, width, height)}</g>'
        f'<g class="names">{"".join(names)}</g></svg>\n'
    )


def _outlined(codes: LabelArray) -> Layer:
    """Return labels in colors, faint inside and opaque at their borders."""
    table = np.zeros((256, 4), np.uint8)
    for code, color in CODE_PALETTE.items():
        table[code] = (*color, FILL_ALPHA)
    painted = table[codes]
    border = np.zeros(codes.shape, np.bool_)
    for axis in (0, 1):
        for by in (-1, 1):
            border |= np.roll(codes, by, axis) != codes
    border[[0, -1]] = border[:, [0, -1]] = False
    painted[border & (codes > 0), 3] = 255
    return painted


def _compressed(gray: Layer, painted: Layer) -> tuple[bytes, bytes]:
    """Return both layers as WebP; the labels without loss, and the image as good as the remaining room allows."""
    label = _webp(Image.fromarray(painted), lossless=True, quality=40)
    scan = b""
    for quality in QUALITIES:
        scan = _webp(Image.fromarray(gray), quality=quality)
        if len(scan) + len(label) <= MAX_BYTES:
            break
    return scan, label


def _webp(image: Image.Image, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "WEBP", method=EFFORT, **options)
    return stream.getvalue()


def _image(content: bytes, width: int, height: int) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<image width="{width}" height="{height}" href="data:image/webp;base64,{data}"/>'


def _tags(tags: Sequence[Tag], top: int, height: int, width: int) -> list[str]:
    """Return names beside the sagittal picture, each with a line to its structure."""
    found = []
    for is_right in (False, True):
        side = sorted((tag for tag in tags if tag.right is is_right), key=lambda tag: tag.target[1])
        edge, way = (MARGIN_PX + width, 1) if is_right else (MARGIN_PX, -1)
        gap = min(LINE_PX, height / max(len(side), 1))
        for tag, row in zip(side, rows_of([tag.target[1] + top for tag in side], height, gap), strict=True):
            color = hex_of(DOUBTFUL_COLOR if tag.doubtful else tag.color)
            x, y = tag.target[0] + MARGIN_PX, tag.target[1] + top
            found.append(
                f'<g fill="{color}" stroke="{color}"><polyline fill="none" stroke-opacity=".5" '
                f'points="{edge + way * 12},{row:.1f} {edge},{row:.1f} {x:.1f},{y:.1f}"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/><text stroke="none" x="{edge + way * 15}" '
                f'y="{row + LETTERS_PX / 3:.1f}" text-anchor="{"start" if is_right else "end"}">'
                f"{html.escape(tag.display_text)}</text></g>"
            )
    return found


def _captions(cuts: Sequence[Cut], places: Sequence[tuple[int, int]], doubtful: Collection[int]) -> list[str]:
    """Return the name of each cut in its corner."""
    found = []
    for cut, (x, y) in zip(cuts, places, strict=True):
        color = hex_of(DOUBTFUL_COLOR if cut.code in doubtful else CODE_PALETTE[cut.code])
        text = html.escape(with_mark(cut.name) if cut.code in doubtful else cut.name)
        found.append(
            f'<text x="{x + 4}" y="{y + LETTERS_PX + 2}" fill="{color}" stroke="#000" stroke-width="3" '
            f'paint-order="stroke" font-weight="600">{text}</text>'
        )
    if places:
        x, y = places[0]
        found.append(
            f'<text x="{x + 3}" y="{y + CUT_PX / 2}" fill="#fff" stroke="#000" stroke-width="3" '
            'paint-order="stroke">R</text>'
        )
    return found


def _described(cuts: Sequence[Cut]) -> str:
    """Describe a sheet for people who cannot see it."""
    levels = ", ".join(cut.name for cut in cuts)
    return f"The spine from the side{f', and cross-sections of the canal through {levels}' if levels else ''}"
