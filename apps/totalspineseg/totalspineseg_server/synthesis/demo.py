"""Write synthetic studies as files, for trying the server without a patient's scan."""

from pathlib import Path

import nibabel as nib
import numpy as np

from totalspineseg_server.synthesis.render import RenderOptions, render
from totalspineseg_server.synthesis.synthetic_spine import Field, SpineOptions, SyntheticSpine, random_spine

DEMO_FIELDS = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.WHOLE, Field.THORACOLUMBAR, Field.CERVICAL)
DEMO_WIDTH_MM = 72.0
"""Extent right to left, as in a sagittal series of about eighteen slices."""
DEMO_CONTRASTS = ("T2", "T1", "T2", "STIR", "T2")


def demo_studies(
    folder: Path, n: int = 3, seed: int = 0, *, labels: bool = False, spacing_mm: float = 1.0
) -> tuple[Path, ...]:
    """Write a few synthetic scans.

    Args:
        folder: Folder for the images; it is made if it does not exist.
        n: Number of scans.
        seed: Seed; the same seed gives the same scans.
        labels: Whether to write also the true label maps, into ``folder / "truth"``.
        spacing_mm: Voxel size.

    Returns:
        The written images ("demo_01_lumbar_T2.nii.gz", ..).
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        field = DEMO_FIELDS[number % len(DEMO_FIELDS)]
        contrast = DEMO_CONTRASTS[number % len(DEMO_CONTRASTS)]
        options = SpineOptions(
            field=field,
            thoracic=12,
            lumbar=5,
            spacing_mm=(spacing_mm,) * 3,
            width_mm=DEMO_WIDTH_MM,
            jitter=0.7,
        )
        spine = random_spine(rng, options)
        image = render(rng, spine, RenderOptions(contrast=contrast, strength=0.5))
        name = f"demo_{number + 1:02d}_{field.value.replace(' ', '_')}_{contrast}.nii.gz"
        _write(folder / name, np.round(image).astype(np.int16), spine)
        if labels:
            (folder / "truth").mkdir(exist_ok=True)
            _write(folder / "truth" / name, spine.labels, spine)
        written.append(folder / name)
    return tuple(written)


def _write(path: Path, data: np.ndarray, spine: SyntheticSpine) -> None:  # type: ignore[type-arg]
    image = nib.Nifti1Image(data, spine.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
