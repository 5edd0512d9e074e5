"""Convert the SPIDER data set (images/*.mha, masks/*.mha) to a BIDS folder with labels for ``totalspineseg prepare``.

What SPIDER does not show is marked as unreviewed, never as background: everything without a label below the top of the
lowest disc (the sacrum), and the canal down to the end of L2, which may have cord. Names count from the lowest vertebra
upward, so they are wrong for patients with four or six lumbar vertebrae: leave these patients out.

    python tools/spider_to_bids.py images masks bids
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Final

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CODE_OF, UNREVIEWED, column  # noqa: E402
from totalspineseg_server.bids import LABEL_SUFFIX  # noqa: E402
from totalspineseg_server.errors import TotalSpineSegError  # noqa: E402
from totalspineseg_server.geometry import LabelArray, Volume, on_grid, to_ras  # noqa: E402
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume  # noqa: E402

CANAL_VALUE: Final = 100
PARTIAL_FROM: Final = 100
"""Number that is added to that of a vertebra if the edge of the image cuts it."""
DISCS_FROM: Final = 200
NAME: Final = re.compile(r"(?P<subject>\d+)_(?P<contrast>t1|t2)(?P<space>_SPACE)?", re.IGNORECASE)
CONUS_ABOVE: Final = "L2"
"""The cord of nearly all adults ends at or above this vertebra."""


def spider_codes(mask: Volume) -> Volume:
    """Return a mask of SPIDER in codes.

    Args:
        mask: SPIDER's values on any grid. Not modified.

    Returns:
        Codes in nearest RAS; ``UNREVIEWED`` where SPIDER does not show it.
    """
    values = to_ras(mask)
    table = np.zeros(256, np.uint8)
    spine = column()
    for number, code in enumerate(reversed(spine.vertebrae), start=1):
        table[number] = table[PARTIAL_FROM + number] = code
    for number, disc in enumerate(reversed([disc for disc in spine.discs if disc is not None]), start=1):
        table[DISCS_FROM + number] = disc
    table[CANAL_VALUE] = CANAL
    codes: LabelArray = table[values.data]
    height = np.arange(codes.shape[2])[None, None, :]
    lowest = np.flatnonzero((codes == table[DISCS_FROM + 1]).any(axis=(0, 1)))
    if lowest.size:
        codes = np.where((codes == BACKGROUND) & (height <= lowest[-1]), UNREVIEWED, codes).astype(np.uint8)
    conus = np.flatnonzero((codes == CODE_OF[CONUS_ABOVE]).any(axis=(0, 1)))
    if conus.size:
        codes = np.where((codes == CANAL) & (height >= conus[0]), UNREVIEWED, codes).astype(np.uint8)
    return Volume(codes, values.affine)


def bids_name(file: Path) -> str:
    """Return the BIDS name of one of SPIDER's files.

    Raises:
        TotalSpineSegError: The file is not one of SPIDER's.
    """
    match = NAME.fullmatch(file.stem)
    if match is None:
        raise TotalSpineSegError(f"expected a name like 12_t2.mha, got {file.name!r}")
    acquisition = "_acq-SPACE" if match["space"] else ""
    return f"sub-{int(match['subject']):03d}{acquisition}_{match['contrast'].upper()}w"


def main() -> int:
    """Convert all scans; return 1 if one had to be left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of SPIDER's images")
    parser.add_argument("masks", type=Path, help="folder of SPIDER's masks")
    parser.add_argument("bids", type=Path, help="folder to write")
    arguments = parser.parse_args()
    files = sorted(arguments.images.glob("*.mha"))
    left_out = 0
    for file in files:
        try:
            name = bids_name(file)
            image = to_ras(read_image(file))
            codes = on_grid(spider_codes(read_labels(arguments.masks / file.name)), image.grid)
        except (TotalSpineSegError, OSError) as error:
            print(f"Left out {file.name}: {error}", file=sys.stderr)
            left_out += 1
            continue
        subject = name.split("_")[0]
        folders = [arguments.bids / part / subject / "anat" for part in ("", "derivatives/labels")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        write_volume(folders[0] / f"{name}.nii.gz", image.data, image.grid)
        write_volume(folders[1] / f"{name}{LABEL_SUFFIX}.nii.gz", codes.data, codes.grid)
    print(f"{len(files) - left_out} of {len(files)} scans written to {arguments.bids}")
    return 1 if left_out or not files else 0


if __name__ == "__main__":
    sys.exit(main())
