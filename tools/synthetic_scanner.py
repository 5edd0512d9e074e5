"""A scanner the starter weights have not seen: dark bands, a folded contrast, thick slices, ghosts, noise.

The starter weights are trained on random contrasts, bias fields, thick slices and noise; what they have never
seen are dark bands across the body (a balanced steady-state sequence in a badly shimmed magnet).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from lib.synthesis import RenderOptions, SyntheticSpine, render

FloatImage = npt.NDArray[np.float32]

NULL_QUANTILE: Final = 0.8
"""Quantile of the gray values that becomes black: tissues darker and brighter than it look alike."""
BAND_MM: Final = (60.0, 30.0)
"""Distance of the dark bands front to back, and head to foot."""
GHOST: Final = 0.2
"""Strength of the ghost from breathing, half a field of view away along front to back."""
NOISE: Final = 0.12
"""Standard deviation of the noise in each channel, of the brightest tissue."""
SLICE_MM: Final = 4.0
"""Slice thickness."""
BRIGHTEST: Final = 600.0


def new_scanner(rng: np.random.Generator, spine: SyntheticSpine) -> FloatImage:
    """An image of a spine by the new scanner.

    Args:
        rng: Source of all randomness.
        spine: Labels and tissues at about 1 mm. Not modified.

    Returns:
        float32 on the spine's grid.
    """
    plain = _scaled(render(rng, spine, RenderOptions(contrast="T2", strength=0.2, slice_mm=SLICE_MM)))
    image = _scaled(np.abs(plain - np.quantile(plain[plain > 0.05], NULL_QUANTILE)))
    y, z = (np.arange(n) / mm for n, mm in zip(image.shape[1:], BAND_MM, strict=True))
    bands = np.abs(np.sin(np.pi * (y[:, None] + z[None, :] + rng.uniform())))
    image = image * bands[None].astype(np.float32)
    image += GHOST * np.roll(image, image.shape[1] // 2, axis=1)
    real, imaginary = NOISE * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.asarray(BRIGHTEST * np.hypot(image + real, imaginary), dtype=np.float32)


def old_scanner(rng: np.random.Generator, spine: SyntheticSpine) -> FloatImage:
    """An image as the starter weights know them; see ``new_scanner``."""
    return render(rng, spine, RenderOptions(contrast="T2", strength=0.5))


def _scaled(image: FloatImage) -> FloatImage:
    return np.asarray(np.clip(image / np.quantile(image, 0.99), 0, 1.2), dtype=np.float32)
