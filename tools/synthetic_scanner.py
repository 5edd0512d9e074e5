"""Simulate a scanner that the starter weights do not know: inverted gray scale, thick slices, dark bands, ghosts,
noise.

The protocol is the same for everybody, as at a site, and a reader can correct the images: discs differ from vertebrae
by more than the noise, and fluid from the cord by at least twice the noise.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from totalspineseg_server.synthesis import RenderOptions, SyntheticSpine, render, thick_slices
from totalspineseg_server.synthesis.tissues import PRIORS, Tissue

FloatImage = npt.NDArray[np.float32]

DARK: Final = (Tissue.AIR, Tissue.LUNG)
"""Tissues that are black on the inverted scale, too."""
VARIATION: Final = 0.06
"""Relative difference of a tissue's signal between people, and between the structures of one person."""
BLUR_MM: Final = 0.5
"""Point spread within a slice."""
SLICE_MM: Final = 4.0
"""Thickness of the sagittal slices."""
BAND_MM: Final = (60.0, 30.0)
"""Distance of the dark bands front to back, and head to foot: steady-state bands of a badly shimmed magnet."""
BAND_SIGNAL: Final = 0.15
"""Share of the signal that is left in the middle of a band."""
GHOSTS: Final = 2
"""Number of ghosts from breathing, evenly spaced front to back."""
GHOST: Final = 0.25
"""Strength of each ghost."""
NOISE: Final = 0.05
"""Standard deviation of the noise in each channel, relative to the brightest tissue."""
BRIGHTEST: Final = 600.0


def new_scanner(rng: np.random.Generator, spine: SyntheticSpine) -> FloatImage:
    """Return an image of a spine by the new scanner.

    Args:
        rng: Source of all randomness.
        spine: Labels and tissues on a grid with sagittal first axis. Not modified.

    Returns:
        float32 on the spine's grid.
    """
    spacing = np.abs(np.diag(spine.affine)[:3])
    image = _tissue_signals(rng).take(spine.tissues) * _varied(rng).take(spine.labels)
    image = gaussian_filter(image, (0, BLUR_MM / spacing[1], BLUR_MM / spacing[2]))
    image = thick_slices(image, 0, round(SLICE_MM / spacing[0]))
    image /= np.quantile(image, 0.99)
    image *= _bands(rng, image.shape, spacing)
    image = _ghosted(image)
    real, imaginary = NOISE * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.asarray(BRIGHTEST * np.hypot(image + real, imaginary), dtype=np.float32)


def old_scanner(rng: np.random.Generator, spine: SyntheticSpine) -> FloatImage:
    """Return an image of the kind that the starter weights know; see ``new_scanner``."""
    return render(rng, spine, RenderOptions(contrast="T2", strength=0.5))


def _tissue_signals(rng: np.random.Generator) -> FloatImage:
    """Return the signal by tissue number: what is bright on T2 is dark, and vice versa, as bone is often imaged."""
    signals = np.zeros(256, np.float32)
    for tissue, value in PRIORS["T2"].items():
        signals[tissue] = 1 - value
    signals[list(DARK)] = 0
    return np.asarray(signals * _varied(rng), dtype=np.float32)


def _varied(rng: np.random.Generator) -> FloatImage:
    """Return factors near 1 for each tissue or label."""
    factors = np.exp(VARIATION * rng.standard_normal(256)).astype(np.float32)
    factors[0] = 1
    return factors


def _ghosted(image: FloatImage) -> FloatImage:
    """Return the image with its ghosts, which fold over at the front and the back."""
    length = image.shape[1]
    places = [(number * length) // (GHOSTS + 1) for number in range(1, GHOSTS + 1)]
    return np.asarray(image + GHOST * sum(np.roll(image, place, axis=1) for place in places))


def _bands(rng: np.random.Generator, shape: tuple[int, ...], spacing: npt.NDArray[np.float64]) -> FloatImage:
    """Return the share of the signal that the bands leave, float32 (1, Y, Z)."""
    y, z = (np.arange(n) * step / mm for n, step, mm in zip(shape[1:], spacing[1:], BAND_MM, strict=True))
    wave = np.abs(np.sin(np.pi * (y[:, None] + z[None, :] + rng.uniform())))
    return np.asarray(BAND_SIGNAL + (1 - BAND_SIGNAL) * wave, dtype=np.float32)[None]
