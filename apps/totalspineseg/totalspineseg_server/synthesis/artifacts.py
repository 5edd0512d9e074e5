"""Add artifacts of a scanner to an image: ringing, ghosts, wrap-around and the voids around metal."""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

RINGING_ODDS, GHOST_ODDS, WRAP_ODDS, METAL_ODDS = 0.12, 0.12, 0.05, 0.03
"""Share of scans with each artifact at full strength. It is small, so that networks learn anatomy first."""
SAMPLED_SPECTRUM = (0.55, 0.8)
"""Share of the spectrum along one axis that a truncated acquisition samples."""
METAL_RADIUS_MM = (6.0, 22.0)


def add_artifacts(rng: np.random.Generator, image: Image, spacing: tuple[float, ...], strength: float) -> Image:
    """Choose the artifacts of a scan at random and apply them.

    Args:
        rng: Source of all randomness.
        image: Signal, float32 (X, Y, Z), 0 or more. Not modified.
        spacing: Voxel size, mm.
        strength: 0 leaves the image as it is; 1 is the whole range.

    Returns:
        A new image, 0 or more; the same image if there is no artifact.
    """
    axis = int(rng.choice((1, 2)))  # The phase direction is front to back, or along the column.
    if rng.random() < RINGING_ODDS * strength:
        image = ringing(image, int(rng.choice((1, 2))), float(rng.uniform(*SAMPLED_SPECTRUM)))
    if rng.random() < GHOST_ODDS * strength:
        image = ghosts(image, axis, int(rng.integers(2, 6)), float(rng.uniform(0.04, 0.18) * strength))
    if rng.random() < WRAP_ODDS * strength:
        image = wrap(image, axis, float(rng.uniform(0.06, 0.2)), float(rng.uniform(0.3, 0.9)))
    if rng.random() < METAL_ODDS * strength:
        center = [float(rng.uniform(0.2, 0.8)) * n for n in image.shape]
        image = metal(image, spacing, center, float(rng.uniform(*METAL_RADIUS_MM)))
    return image


def ringing(image: Image, axis: int, sampled: float) -> Image:
    """Return an image with Gibbs ringing, by cutting off its spectrum along an axis.

    Args:
        image: Signal, float32 (X, Y, Z). Not modified.
        axis: Axis with too few samples.
        sampled: Share of the spectrum that was sampled, above 0; 1 leaves the image as it is.

    Returns:
        A new image, clipped at 0.
    """
    spectrum = np.fft.rfft(image, axis=axis)
    length = spectrum.shape[axis]
    keep = np.arange(length) < max(2, round(sampled * length))
    spectrum *= keep.reshape([-1 if k == axis else 1 for k in range(3)])
    back = np.fft.irfft(spectrum, n=image.shape[axis], axis=axis)
    return np.asarray(np.clip(back, 0, None), dtype=np.float32)


def ghosts(image: Image, axis: int, count: int, level: float) -> Image:
    """Return an image with evenly spaced copies of a pulsing or moving body along the phase direction.

    Args:
        image: Signal, float32 (X, Y, Z). Not modified.
        axis: Phase direction.
        count: Number of copies that fit into the side of the image.
        level: Strength of the first copies; each further copy is half as strong as the one before.

    Returns:
        A new image.
    """
    step = max(1, image.shape[axis] // count)
    result = image.copy()
    for order in (1, 2):
        for shift in (order * step, -order * step):
            result += np.float32(level / 2 ** (order - 1)) * np.roll(image, shift, axis)
    return result


def wrap(image: Image, axis: int, share: float, level: float) -> Image:
    """Return an image in which tissue beyond one end of the field of view appears at the other end.

    Args:
        image: Signal, float32 (X, Y, Z). Not modified.
        axis: Phase direction.
        share: Share of the side that is folded in.
        level: Strength of the folded part.

    Returns:
        A new image.
    """
    depth = max(1, round(share * image.shape[axis]))
    result = image.copy()
    near = tuple(slice(0, depth) if k == axis else slice(None) for k in range(3))
    far = tuple(slice(-depth, None) if k == axis else slice(None) for k in range(3))
    result[near] += np.float32(level) * image[far]
    return result


def metal(image: Image, spacing: tuple[float, ...], center: list[float], radius_mm: float) -> Image:
    """Return an image with a signal void and a bright rim around an implant.

    Args:
        image: Signal, float32 (X, Y, Z). Not modified.
        spacing: Voxel size, mm.
        center: Middle of the implant, voxels.
        radius_mm: Radius of the void.

    Returns:
        A new image.
    """
    axes = [((np.arange(n) - c) * s) ** 2 for n, c, s in zip(image.shape, center, spacing, strict=True)]
    distance = np.sqrt(axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]) / radius_mm
    void = np.clip((distance - 0.8) / 0.2, 0, 1)
    rim = np.exp(-(((distance - 1.1) / 0.12) ** 2)) * float(image.mean())
    return np.asarray(image * void + 2 * rim, dtype=np.float32)
