"""Draw names beside a picture without overlap: vertebrae on the left, discs on the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from totalspineseg_server.segments import with_mark

FONT_PX: Final = 13
"""Height of the letters: readable in a thumbnail of half the size."""
LINE_PX: Final = 16
"""Smallest distance between two tags, pixels: the letters and a gap."""
PADDING_PX: Final = 5
LEADER_PX: Final = 14
"""Length of the line from a tag to the edge of the image."""
LEADER_ALPHA: Final = 130
"""Opacity of the line inside the image, 0-255, so that structures below it, such as the cord, stay visible."""
BACKGROUND: Final = (14, 17, 22)
DOUBTFUL_COLOR: Final = (255, 176, 0)
"""Color of doubtful levels: amber, which is used for nothing else."""


@dataclass(frozen=True)
class Tag:
    """A name that points into a picture.

    Attributes:
        text: The name.
        target: (x, y) pixel to which it points.
        color: Color of the structure.
        right: Whether it is on the right side of the picture (discs), else on the left.
        doubtful: Whether it is marked by amber and "?".
    """

    text: str
    target: tuple[float, float]
    color: tuple[int, int, int]
    right: bool
    doubtful: bool = False

    @property
    def display_text(self) -> str:
        """The text as drawn."""
        return with_mark(self.text) if self.doubtful else self.text


def spaced(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions as near as possible to the wanted ones (least squares), but no two nearer than ``gap``.

    Args:
        wanted: Positions, rising.
        gap: Smallest distance between neighbors.

    Returns:
        One position for each wanted one, in the same order; empty for none.

    Source:
        Isotonic regression by pooling adjacent violators, on the positions less their minimal offsets.
    """
    blocks: list[tuple[float, int]] = []
    for k, position in enumerate(wanted):
        mean, size = position - k * gap, 1
        while blocks and blocks[-1][0] > mean:
            previous, count = blocks.pop()
            mean, size = (previous * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [value + k * gap for k, value in enumerate(flat)]


def rows_of(wanted: Sequence[float], height: float, gap: float) -> list[float]:
    """Return the positions of names beside a picture: as near as possible to their structures, without overlap.

    Args:
        wanted: Rows of their structures, rising.
        height: Height of the picture, in the same unit.
        gap: Smallest distance between two names.
    """
    return _within(spaced(wanted, gap), height, gap)


def _within(positions: list[float], height: float, gap: float) -> list[float]:
    """Move positions into 0..height without bringing any two closer, if there is room."""
    lower = [max(value, gap / 2 + k * gap) for k, value in enumerate(positions)]
    last = len(lower) - 1
    return [min(value, height - gap / 2 - (last - k) * gap) for k, value in enumerate(lower)]


def add_tags(rgb: npt.NDArray[np.uint8], tags: Sequence[Tag]) -> npt.NDArray[np.uint8]:
    """Return the picture with a margin on both sides for the tags.

    Args:
        rgb: (rows, columns, 3) uint8. Not modified.
        tags: Tags in any order.

    Returns:
        A wider picture (and higher, if there are more tags on a side than fit beside it).
    """
    if not tags:
        return rgb
    font = _font(FONT_PX)
    left, right = [t for t in tags if not t.right], [t for t in tags if t.right]
    margins = [_margin(side, font) for side in (left, right)]
    height = max(rgb.shape[0], LINE_PX * (max(len(left), len(right)) + 1))
    top = (height - rgb.shape[0]) // 2
    canvas = np.empty((height, margins[0] + rgb.shape[1] + margins[1], 3), dtype=np.uint8)
    canvas[:] = BACKGROUND
    canvas[top : top + rgb.shape[0], margins[0] : margins[0] + rgb.shape[1]] = rgb
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image, "RGBA")
    for side, edge, way in ((left, margins[0], -1), (right, margins[0] + rgb.shape[1], 1)):
        ordered = sorted(side, key=lambda tag: tag.target[1])
        rows = rows_of([tag.target[1] + top for tag in ordered], height, LINE_PX)
        for tag, row in zip(ordered, rows, strict=True):
            _draw(draw, tag, (tag.target[0] + margins[0], tag.target[1] + top), (edge, row), way, font)
    return np.asarray(image)


def _margin(tags: Sequence[Tag], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    widths = [font.getlength(tag.display_text) for tag in tags]
    return round(max(widths)) + LEADER_PX + 2 * PADDING_PX if widths else 0


def _draw(
    draw: ImageDraw.ImageDraw,
    tag: Tag,
    target: tuple[float, float],
    anchor: tuple[float, float],
    way: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    edge, row = anchor
    color = DOUBTFUL_COLOR if tag.doubtful else tag.color
    start = edge + way * LEADER_PX
    # Bend the line at the edge of the image, so that its part inside the image is short and points at the structure.
    draw.line([(start, row), (edge, row)], fill=color, width=1)
    draw.line([(edge, row), target], fill=(*color, LEADER_ALPHA), width=1)
    draw.ellipse((target[0] - 2, target[1] - 2, target[0] + 2, target[1] + 2), fill=color)
    place = (start + way * PADDING_PX, row)
    if tag.doubtful:
        box = draw.textbbox(place, tag.display_text, font=font, anchor="rm" if way < 0 else "lm")
        draw.rectangle((box[0] - 3, row - LINE_PX / 2 + 1, box[2] + 3, row + LINE_PX / 2 - 1), outline=color)
    draw.text(place, tag.display_text, fill=color, font=font, anchor="rm" if way < 0 else "lm")


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
