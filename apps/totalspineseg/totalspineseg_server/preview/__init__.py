"""Make pictures that a reader can check at a glance: the spine unrolled along its canal, with labels and names.

The sagittal picture follows the canal (its x at every height), the coronal one the bodies and discs
(their y), so that a scoliotic or rotated spine stays in the picture. Anterior is on the left of the
sagittal picture and the patient's right on the left of the coronal one, as radiologists hang them.
"""

from totalspineseg_server.preview.palette import (
    CODE_PALETTE,
    LEVEL_CODES,
    POINT_PALETTE,
    STEP1_TAGS,
    STEP_PALETTE,
    Palette,
)
from totalspineseg_server.preview.plane import JPEG_QUALITY, OPACITY, Picture, Plane, mid_sagittal, save_picture
from totalspineseg_server.preview.planes import Course, course_of
from totalspineseg_server.preview.sheet import sheet_svg

__all__ = [
    "CODE_PALETTE",
    "JPEG_QUALITY",
    "LEVEL_CODES",
    "OPACITY",
    "POINT_PALETTE",
    "STEP1_TAGS",
    "STEP_PALETTE",
    "Course",
    "Palette",
    "Picture",
    "Plane",
    "course_of",
    "mid_sagittal",
    "save_picture",
    "sheet_svg",
]
