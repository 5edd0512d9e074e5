"""Write the label table as the color tables of viewers: 3D Slicer, ITK-SNAP, FSLeyes, Spinal Cord Toolbox, BIDS."""

import json
from collections.abc import Mapping
from typing import Final

from totalspineseg_server.anatomy import BACKGROUND, STRUCTURES

NAME: Final = "totalspineseg"
"""Name of the files, before their endings."""
OPAQUE: Final = 255
BIDS_TABLE: Final = "dseg.tsv"
"""BIDS's name for the table of all label maps of a data set."""


def color_tables() -> Mapping[str, str]:
    """Return file name -> content, for every viewer."""
    return {
        f"{NAME}.ctbl": slicer_table(),
        f"{NAME}_itksnap.txt": itksnap_table(),
        f"{NAME}.lut": fsleyes_table(),
        f"{NAME}_sct.json": sct_table(),
        BIDS_TABLE: bids_table(),
    }


def slicer_table() -> str:
    """Return a color table for 3D Slicer: number, name, and color with opacity."""
    rows = [f"{s.code} {s.name} {_bytes(s.color)} {OPAQUE}" for s in STRUCTURES]
    return _lines("# Color table file for 3D Slicer", f"{BACKGROUND} background 0 0 0 0", *rows)


def itksnap_table() -> str:
    """Return label descriptions for ITK-SNAP: number, color, opacity, two flags of visibility, and name."""
    rows = [f'{s.code} {_bytes(s.color)} 1 1 1 "{s.name}"' for s in STRUCTURES]
    head = "# ITK-SnAP Label Description File: IDX R G B A VIS MSH LABEL"
    return _lines(head, f'{BACKGROUND} 0 0 0 0 0 0 "Clear Label"', *rows)


def fsleyes_table() -> str:
    """Return a lookup table for FSLeyes: number, color as fractions of 1, and name."""
    return _lines(*(f"{s.code} {' '.join(f'{c / OPAQUE:.4f}' for c in s.color)} {s.name}" for s in STRUCTURES))


def sct_table() -> str:
    """Return the names of the numbers as the Spinal Cord Toolbox reads them: JSON, number -> name."""
    return json.dumps({str(s.code): s.name for s in STRUCTURES}, indent=1) + "\n"


def bids_table() -> str:
    """Return BIDS's table of the numbers in label maps: index, name and color."""
    rows = [f"{s.code}\t{s.name}\t{hex_of(s.color)}" for s in STRUCTURES]
    return _lines("index\tname\tcolor", f"{BACKGROUND}\tbackground\t#000000", *rows)


def hex_of(color: tuple[int, int, int]) -> str:
    """Return a color as HTML and BIDS write it, such as "#ff8000"; each part is 0..255."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _bytes(color: tuple[int, int, int]) -> str:
    return " ".join(map(str, color))


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"
