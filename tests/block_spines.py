"""Make columns of blocks: label maps in output codes with a known right answer, small enough for every test."""

import numpy as np

from totalspineseg_server.anatomy import CANAL, CODE_OF, CORD, SACRUM, STEP1_FROM_CODE, STEP2_FROM_CODE, column

BODY_MM, DISC_MM = 10, 4
SHAPE_XY = (24, 48)


def block_spine(first: str = "C1", last: str = "S", *, thoracic: int = 12, lumbar: int = 5) -> np.ndarray:
    """Return codes (X, Y, Z) RAS of a column of blocks from one vertebra to another ("S": the sacrum)."""
    variant = column(thoracic, lumbar)
    vertebrae = (*variant.vertebrae, SACRUM)
    discs = (*variant.discs, None)
    start, stop = position(first), len(vertebrae) - 1 if last == "S" else position(last)
    names = range(start, stop + 1)
    labels = np.zeros((*SHAPE_XY, 4 + len(names) * (BODY_MM + DISC_MM)), dtype=np.uint8)
    labels[8:16, 14:24, :] = CANAL
    labels[10:14, 17:21, :] = CORD
    top = labels.shape[2] - 2
    for k in names:
        low = top - BODY_MM
        labels[4:20, 26:42, low:top] = vertebrae[k]
        labels[10:14, 4:13, low:top] = vertebrae[k]
        labels[4:6, 10:27, low:top] = vertebrae[k]
        labels[4:12, 10:13, low:top] = vertebrae[k]
        if discs[k] is not None and k != names[-1]:
            labels[5:19, 27:41, low - DISC_MM : low] = discs[k]
        top = low - DISC_MM
    return labels


def position(name: str) -> int:
    """Return the index of a vertebra in the normal column."""
    return column().vertebrae.index(CODE_OF[name])


def classes_of(labels: np.ndarray, step: int) -> np.ndarray:
    """Return the classes of a perfect network for these codes."""
    table = np.zeros(256, dtype=np.uint8)
    for code, value in (STEP1_FROM_CODE if step == 1 else STEP2_FROM_CODE).items():
        table[code] = value
    return table[labels]


def step1_answer(labels: np.ndarray) -> np.ndarray:
    """Return step 1's map of these codes: all vertebrae but C1 together with the sacrum."""
    answer = labels.copy()
    answer[(labels > 11) & (labels < 50)] = SACRUM
    return answer
