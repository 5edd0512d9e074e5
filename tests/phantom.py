"""Make a small lumbar column of boxes, and an image of it in which each voxel's brightness is its code."""

import hashlib

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import CANAL, CORD, DISC_L5_S, DISC_T12_L1, SACRUM, STEP1_FROM_CODE, STEP2_FROM_CODE
from totalspineseg_server.geometry import Grid
from totalspineseg_server.prediction import Prediction

GRAY_PER_CODE = 10.0
SHAPE = (48, 80, 252)
RAS = Grid(SHAPE, np.eye(4))
PIR = np.array([[0, 0, 1, 0], [-1, 0, 0, 79], [0, -1, 0, 251], [0, 0, 0, 1.0]])
LUMBAR_TOP_DOWN = ((DISC_T12_L1, 41), (92, 42), (93, 43), (94, 44), (95, 45), (DISC_L5_S, SACRUM))
"""A disc, and the vertebra below it."""
VERTEBRA_MM, DISC_MM = 27, 10


def lumbar_codes() -> npt.NDArray[np.uint8]:
    """Return codes (X, Y, Z) RAS at 1 mm: T12 to sacrum with canal and cord."""
    codes = np.zeros(SHAPE, dtype=np.uint8)
    top = SHAPE[2] - 4
    codes[14:34, 20:34, 4:top] = CANAL
    codes[20:28, 23:31, 110:top] = CORD
    z = top
    z = _box(codes, z, 14, 32)
    for disc, vertebra in LUMBAR_TOP_DOWN:
        z = _box(codes, z, DISC_MM, disc)
        z = _box(codes, z, VERTEBRA_MM, vertebra)
    return codes


def _box(codes: npt.NDArray[np.uint8], top: int, height: int, code: int) -> int:
    codes[4:44, 34:66, max(top - height, 2) : top] = code
    return top - height


def image_of(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the image whose codes ``CodeReader`` reads."""
    return codes.astype(np.float32) * GRAY_PER_CODE


def own_image(name: str, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a copy of an image with unique content, because a server knows images by content and tests share one."""
    marks = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint8).astype(np.float32) / 1000
    own = np.array(image, order="C")
    places = np.flatnonzero(own)[: len(marks)]
    own.flat[places] += marks[: len(places)]
    return own


def sagittal_image() -> tuple[npt.NDArray[np.float32], Grid]:
    """Return the image with its axes to the posterior, inferior and right, as in sagittal series."""
    data = np.ascontiguousarray(image_of(lumbar_codes()).transpose(1, 2, 0)[::-1, ::-1])
    return data, Grid((80, 252, 48), PIR)


class CodeReader:
    """A predictor that reads the codes from the brightness and answers with the classes of its step."""

    def __init__(self, step: int) -> None:
        self.version = f"reader-{step}"
        classes = STEP1_FROM_CODE if step == 1 else STEP2_FROM_CODE
        self._table = np.zeros(256, dtype=np.uint8)
        for code, value in classes.items():
            self._table[code] = value

    def predict(self, channels: npt.NDArray[np.float32], *, soft: object = ()) -> Prediction:
        codes = np.clip(np.rint(channels[0] / GRAY_PER_CODE), 0, 255).astype(np.uint8)
        labels = self._table[codes]
        return Prediction(labels, {name: (labels > 0).astype(np.float32) for name in soft})  # type: ignore[attr-defined]
