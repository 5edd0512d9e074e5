"""The second channel of step 2: every other disc."""

import numpy as np

from lib.anatomy import DISCS
from lib.transforms.components import Labels, labels_present, look_up


def odd_discs(labels: Labels) -> Labels:
    """Mark every other disc, beginning with the most superior one present.

    Args:
        labels: uint8 (X, Y, Z), output codes. Not modified.

    Returns:
        A new uint8 map: 1 in the odd discs, else 0; all 0 without discs.
    """
    present = labels_present(labels)
    table = np.zeros(256, dtype=np.uint8)
    table[[code for code in DISCS if present[code]][::2]] = 1
    return look_up(labels, table)
