"""Put real and synthetic lumbar spines side by side, for docs/synthesis.md.

    python tools/synthesis_pictures.py SLABS docs/images

SLABS has slabs of the SPIDER data set, as for spider_cases.py (CC BY 4.0: name the source beside the pictures).
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from totalspineseg_server.anatomy import CANAL, CORD, DISC_L5_S  # noqa: E402
from totalspineseg_server.geometry import to_ras  # noqa: E402
from totalspineseg_server.io.volumes import read_image, read_labels  # noqa: E402
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render  # noqa: E402

PATIENTS: Final = ("005", "057", "110", "146", "166")
SEED: Final = 4242
PIXEL_MM: Final = 0.9
HEIGHT_MM, DEPTH_MM, AXIAL_DEPTH_MM = 260.0, 190.0, 120.0
QUALITY: Final = 80
FloatArray = NDArray[np.float32]


def picture(plane: FloatArray, spacing_mm: tuple[float, float], size_mm: tuple[float, float]) -> Image.Image:
    """Return a plane (across, up) as gray values in a frame of a fixed size."""
    low, high = np.percentile(plane, (1, 99.3))
    gray = (np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
    wide, tall = (max(1, round(n * mm / PIXEL_MM)) for n, mm in zip(plane.shape, spacing_mm, strict=True))
    scaled = Image.fromarray(np.ascontiguousarray(gray.T[::-1])).resize((wide, tall), Image.Resampling.BILINEAR)
    frame = Image.new("L", (round(size_mm[0] / PIXEL_MM), round(size_mm[1] / PIXEL_MM)))
    frame.paste(scaled, (min(0, (frame.width - wide) // 2) if wide > frame.width else 0, (frame.height - tall) // 2))
    return frame


def views(image: FloatArray, canal: NDArray[np.bool_], level: int, spacing_mm: tuple[float, ...]) -> list[Image.Image]:
    """Return the sagittal slice with most canal, and the axial slice at a height."""
    x, y, z = spacing_mm
    middle = int(np.argmax(canal.sum((1, 2))))
    sagittal = picture(image[middle], (y, z), (DEPTH_MM, HEIGHT_MM))
    at = int(np.median(np.nonzero(canal[:, :, level])[1])) if canal[:, :, level].any() else image.shape[1] // 2
    reach = round(AXIAL_DEPTH_MM / 2 / y)
    axial = picture(image[:, max(0, at - reach) : at + reach, level], (x, y), (80.0, AXIAL_DEPTH_MM))
    return [sagittal, axial]


def real_views(slabs: Path, patient: str) -> list[Image.Image]:
    """Return the views of one patient."""
    image, label = (
        to_ras(read_image(slabs / f"{patient}_image.nii.gz")),
        to_ras(read_labels(slabs / f"{patient}_label.nii.gz")),
    )
    spacing = tuple(float(v) for v in np.linalg.norm(image.affine[:3, :3], axis=0))
    canal = label.data == 3
    level = int(np.percentile(np.nonzero(canal)[2], 30))
    return views(image.data.astype(np.float32), canal, level, spacing)


def synthetic_views(number: int, field: Field, contrast: str, slice_mm: float) -> list[Image.Image]:
    """Return the views of one synthetic spine."""
    rng = np.random.default_rng([SEED, number])
    deep = DEPTH_MM if field is Field.LUMBAR else 220.0
    spine = random_spine(rng, SpineOptions(field=field, width_mm=80.0, depth_mm=deep))
    image = render(rng, spine, RenderOptions(contrast=contrast, strength=0.5, slice_mm=slice_mm))
    canal = np.isin(spine.labels, (CANAL, CORD))
    discs = np.nonzero(spine.labels == DISC_L5_S)[2]
    level = int(discs.max()) + 25 if discs.size and discs.max() + 25 < image.shape[2] else image.shape[2] // 2
    return views(image, canal, level, (1.0, 1.0, 1.0))


def row(parts: Iterable[Image.Image]) -> Image.Image:
    """Put pictures beside one another."""
    pictures = list(parts)
    whole = Image.new("L", (sum(p.width + 4 for p in pictures), max(p.height for p in pictures)))
    left = 0
    for part in pictures:
        whole.paste(part, (left, 0))
        left += part.width + 4
    return whole


def main() -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slabs", type=Path, help="folder of NNN_image.nii.gz and NNN_label.nii.gz")
    parser.add_argument("out", type=Path, help="folder to write the pictures to")
    arguments = parser.parse_args()
    real = row(part for patient in PATIENTS for part in real_views(arguments.slabs, patient))
    synthetic = row(
        part for k in range(len(PATIENTS)) for part in synthetic_views(k, Field.LUMBAR, "T2", (1.0, 1.0, 4.0)[k % 3])
    )
    both = Image.new("L", (max(real.width, synthetic.width), real.height + synthetic.height + 6))
    both.paste(real, (0, 0))
    both.paste(synthetic, (0, real.height + 6))
    both.save(arguments.out / "synthesis_lumbar.jpg", quality=QUALITY)
    contrasts = ("T2", "T1", "T2", "T2star", "STIR")
    neck = row(part for k, c in enumerate(contrasts) for part in synthetic_views(k, Field.CERVICAL, c, 1.0))
    neck.save(arguments.out / "synthesis_neck.jpg", quality=QUALITY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
