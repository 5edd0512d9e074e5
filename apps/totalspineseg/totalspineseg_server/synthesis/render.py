"""Render MR-like images of random contrast from tissues, with artifacts: ringing, ghosts, wrap-around, metal."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from totalspineseg_server.synthesis.surroundings import smooth_noise
from totalspineseg_server.synthesis.synthetic_spine import SyntheticSpine
from totalspineseg_server.synthesis.tissues import PRIORS, Tissue

RINGING_ODDS, GHOST_ODDS, WRAP_ODDS, METAL_ODDS = 0.12, 0.12, 0.05, 0.03
"""Share of scans with each artifact at full strength. It is small, so that networks learn anatomy first."""
SAMPLED_SPECTRUM = (0.55, 0.8)
"""Share of the spectrum along one axis that a truncated acquisition samples."""
METAL_RADIUS_MM = (6.0, 22.0)
Image = NDArray[np.float32]
_MARROW = [Tissue.MARROW, Tissue.ARCH_MARROW, Tissue.OTHER_BONE]

SLICE_AXES = (0, 0, 0, 0, 0, 1, 2, 2)
"""Axes from which the direction across thick slices is chosen: mostly sagittal acquisitions, some axial, few
coronal."""
_CLINICAL_ODDS, _CLINICAL_MM = 0.45, (3.2, 5.2)
"""Share of the scans with slices of the usual clinical thickness, and that thickness; the others have any thickness."""
_MOTTLE, _STRONG_MOTTLE = 0.08, 0.3
"""Spread of the signal within marrow, usually and in a fifth of people, whose fatty and red marrow form spots."""
_DARK_MARROW_ODDS, _DARK_MARROW = 0.2, (0.35, 0.85)
"""Share of people whose marrow has less signal (the young, the anemic, smokers), and how much signal remains."""
_SATURATION_ODDS, _SATURATION_MM = 0.3, (4.0, 40.0)
"""Share of scans with a saturation band in front of the column, and how far from the bodies it begins."""
_COIL_REACH_MM = (60.0, 500.0)
"""Distance from a spine coil over which its signal falls to a third."""
FLOW_ODDS = 0.35
"""Share of scans in which pulsation takes signal from the fluid, as is usual on T2 of neck and chest."""
ODDS = {"T1": 0.17, "T2": 0.37, "STIR": 0.1, "T2star": 0.08, "T1gre": 0.08, "random": 0.2}
"""Share of each contrast among the scans, if the options do not choose one."""
WEIGHTING, WEIGHTING_ODDS = (0.8, 2.3), 0.75
"""Exponent on a contrast's signals, and the odds that it is not 1. With 1, fluid is twice as bright as the cord on T2,
as with short echo trains; with long echo times it is up to four times as bright (measured on public cervical and
whole-spine scans)."""


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


@dataclass(frozen=True)
class RenderOptions:
    """Options of an image.

    Attributes:
        contrast: "T1", "T2", "STIR", "T2star", "T1gre" or "random"; None chooses one at random.
        strength: Strength of noise, bias field, blur and thick slices; 0 gives a clean image, 1 the whole range.
        slice_mm: Slice thickness; None chooses one at random.
    """

    contrast: str | None = None
    strength: float = 1.0
    slice_mm: float | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: The contrast is unknown or the strength negative.
        """
        known = (*PRIORS, "random")
        if self.contrast is not None and self.contrast not in known:
            raise ValueError(f"expected contrast {known} or None for a random one, got {self.contrast!r}")
        if self.strength < 0:
            raise ValueError(f"expected strength of 0 or more (1 is the whole range), got {self.strength!r}")


def tissue_signals(rng: np.random.Generator, contrast: str) -> NDArray[np.float32]:
    """Return a random signal for each tissue number in a contrast, float32 of length 256; air is near 0."""
    table = np.zeros(256, np.float32)
    random = rng.uniform(0.02, 1.0, len(Tissue)).astype(np.float32)
    if contrast == "random":
        table[: len(Tissue)] = random
        table[[Tissue.AIR, Tissue.LUNG, Tissue.CORTICAL]] *= 0.25
    else:
        weighting = rng.uniform(*WEIGHTING) if rng.random() < WEIGHTING_ODDS else 1.0
        for tissue, value in PRIORS[contrast].items():
            table[tissue] = value**weighting
        jitter = rng.uniform(0.06, 0.25)
        table[: len(Tissue)] *= np.exp(jitter * rng.standard_normal(len(Tissue))).astype(np.float32)
        mix = 0.35 * rng.random() ** 2
        table[: len(Tissue)] = (1 - mix) * table[: len(Tissue)] + mix * random
    table[Tissue.AIR] *= 0.3
    return table


def render(
    rng: np.random.Generator,
    spine: SyntheticSpine,
    options: RenderOptions | None = None,
) -> Image:
    """Render an image of a spine.

    Args:
        rng: Source of all randomness.
        spine: Labels and tissues. Not modified.
        options: Options of the image.

    Returns:
        An image on the spine's grid, float32 (X, Y, Z), 0 to about 1000.
    """
    options = options or RenderOptions()
    contrast = options.contrast or str(rng.choice([*ODDS], p=[*ODDS.values()]))
    spacing = tuple(float(v) for v in np.abs(np.diag(spine.affine)[:3]))
    strength = options.strength
    signals = tissue_signals(rng, contrast)
    people = rng.spawn(1)[0]
    if people.random() < _DARK_MARROW_ODDS * strength:
        signals[_MARROW] *= people.uniform(*_DARK_MARROW)
    own = np.exp(0.06 * strength * rng.standard_normal(256)).astype(np.float32)
    own[0] = 1.0
    image = signals.take(spine.tissues)
    image *= own.take(spine.labels)
    image *= _flow(rng.spawn(1)[0], spine.tissues, strength)
    image *= _texture(rng, spine.tissues, strength)
    _saturate(rng.spawn(1)[0], image, spine, spacing, strength)
    image = _blur(rng, image, spacing, strength)
    image = _thick_slices(rng, image, spacing, options)
    image *= _coil(rng, image.shape, spacing, strength)
    image = _receive(rng, add_artifacts(rng.spawn(1)[0], image, spacing, strength), strength)
    image **= np.float32(np.exp(0.25 * strength * rng.uniform(-1, 1)))
    image *= np.float32(600.0)
    return image


def thick_slices(image: Image, axis: int, count: int) -> Image:
    """Return the average over slices, interpolated back, as resampling a thick-slice scan does.

    Args:
        image: float32 (X, Y, Z), with two slices or more. Not modified.
        axis: Axis across the slices.
        count: Voxels per slice; the last slice has the remaining ones.

    Returns:
        A new float32 array of the same shape.
    """
    length = image.shape[axis]
    starts = np.arange(0, length, count)
    counts = np.diff(np.r_[starts, length]).astype(np.float32)
    moved = np.add.reduceat(image, starts, axis=axis)
    shape = [-1 if k == axis else 1 for k in range(3)]
    moved /= counts.reshape(shape)
    centers = starts + (counts - 1) / 2
    place = np.interp(np.arange(length), centers, np.arange(len(starts)))
    low = np.minimum(place.astype(int), len(starts) - 2)
    weight = (place - low).astype(np.float32).reshape(shape)
    return np.asarray(np.take(moved, low, axis) * (1 - weight) + np.take(moved, low + 1, axis) * weight)


def _texture(rng: np.random.Generator, tissues: NDArray[np.uint8], strength: float) -> Image:
    """Return factors near 1 that make every tissue uneven: coarse clouds and finer ones, strongest in marrow."""
    shape = tissues.shape
    texture = smooth_noise(rng, shape, 40)
    texture *= np.float32(0.06 * strength)
    texture += 1
    fine = smooth_noise(rng, shape, 110)
    people = rng.spawn(1)[0]
    mottle = (_STRONG_MOTTLE if people.random() < 0.2 else _MOTTLE) * people.random()
    share = np.full(256, 0.03 * strength, np.float32)
    share[_MARROW] = 0.03 * strength + mottle * min(strength, 1.0)
    fine *= share.take(tissues)
    texture += fine
    return np.clip(texture, 0, None, out=texture)


def _saturate(
    rng: np.random.Generator, image: Image, spine: SyntheticSpine, spacing: tuple[float, ...], strength: float
) -> None:
    """Reduce the signal in front of the column in a few scans, like a saturation band over belly or throat."""
    if rng.random() >= _SATURATION_ODDS * strength:
        return
    column = spine.labels.max(0) > 0
    seen = column.any(0)
    if not seen.any():
        return
    front = column.shape[0] - 1 - np.argmax(column[::-1], axis=0)
    slope, base = np.polyfit(np.flatnonzero(seen), front[seen], 1) if seen.sum() > 1 else (0.0, float(front[seen][0]))
    line = slope * np.arange(column.shape[1]) + base
    begin = line + np.ptp(front[seen] - line[seen]) / 2 + rng.uniform(*_SATURATION_MM) / spacing[1]
    off = (np.arange(column.shape[0])[:, None] - begin[None, :]) * np.float32(spacing[1] / rng.uniform(2, 8))
    image *= (1 - rng.uniform(0.6, 0.97) / (1 + np.exp(-np.clip(off, -30, 30)))).astype(np.float32)


def _receive(rng: np.random.Generator, image: Image, strength: float) -> Image:
    """Return the magnitude of the signal with noise in both channels of the receiver."""
    level = np.float32(0.07 * strength * rng.random() ** 1.5)
    real, imaginary = (rng.standard_normal(image.shape, np.float32) for _ in range(2))
    real *= level
    real += image
    imaginary *= level
    return np.asarray(np.hypot(real, imaginary, out=real))


def _flow(rng: np.random.Generator, tissues: NDArray[np.uint8], strength: float) -> Image | float:
    """Return the share of the fluid's signal that remains after pulsation, uneven like clouds."""
    if rng.random() >= FLOW_ODDS * strength:
        return 1.0
    loss = np.clip(smooth_noise(rng, tissues.shape, 24), 0, 1) * np.float32(rng.uniform(0.2, 0.8))
    return np.asarray(1 - loss * (tissues == Tissue.CSF), dtype=np.float32)


def _blur(rng: np.random.Generator, image: Image, spacing: tuple[float, ...], strength: float) -> Image:
    """Return the image with an in-plane point spread of 0.3 to 1.2 mm."""
    sigma = rng.uniform(0.3, 0.5 + 0.7 * strength)
    for axis, step in enumerate(spacing):
        if sigma / step > 0.25:
            image = gaussian_filter1d(image, sigma / step, axis=axis, truncate=2.0)
    return image


def _thick_slices(rng: np.random.Generator, image: Image, spacing: tuple[float, ...], options: RenderOptions) -> Image:
    """Return the image with slices of up to 7 mm, or as thick as the options say."""
    axis = int(rng.choice(SLICE_AXES))
    any_mm = rng.uniform(0.8, 0.8 + 6.2 * min(options.strength, 1.0))
    clinic = rng.spawn(1)[0]
    if clinic.random() < _CLINICAL_ODDS * min(options.strength, 1.0):
        any_mm = clinic.uniform(*_CLINICAL_MM)
    thickness = options.slice_mm if options.slice_mm is not None else float(any_mm)
    step = round(thickness / spacing[axis])
    length = image.shape[axis]
    if step < 2 or length < 3 * step:
        return image
    return thick_slices(image, axis, step)


def _coil(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], strength: float) -> Image:
    """Return a smooth bias field: the signal falls off in front of a spine coil and at the ends of the scan."""
    field = 0.18 * strength * smooth_noise(rng, shape, 4)
    reach = np.exp(rng.uniform(*np.log(_COIL_REACH_MM))) / max(strength, 0.01)
    y = np.arange(shape[1], dtype=np.float32)[None, :, None] * spacing[1]
    falloff = np.exp(-y / np.float32(reach))
    ends = np.abs(np.linspace(-1, 1, shape[2], dtype=np.float32))[None, None, :]
    fade = 1 - np.float32(0.6 * strength * (rng.random() < 0.4)) * ends**6
    return np.asarray(np.exp(field) * falloff * fade, dtype=np.float32)
