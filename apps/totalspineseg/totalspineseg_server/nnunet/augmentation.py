"""Vary patches at random: their position, their shape, and their gray values, as another scanner would."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.local.brightness_gradient import BrightnessGradientAdditiveTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from monai.transforms import RandHistogramShift
from torch.nn.functional import affine_grid, grid_sample

from totalspineseg_server.anatomy import CANAL, CORD, DISCS, SACRUM, VERTEBRAE
from totalspineseg_server.nnunet.finetune_settings import Strength

Shape = tuple[int, int, int]

ROTATION_RAD: Final = np.deg2rad(20)
"""Largest rotation about each axis: more than patients tilt in a scanner."""
SCALING: Final = (0.8, 1.25)
"""Range of the zoom, from children to tall adults."""
SHEARED: Final = 0.5
"""Share of the rotated, zoomed and bent patches that are also sheared and shifted."""
SHEAR: Final = 0.1
"""Largest shear of each axis along each other axis: 6 degrees."""
SHIFT: Final = 0.1
"""Largest shift, as a share of the patch's edge: patches are placed at random, but often around a structure."""
BENDS: Final = (0.1, 0.25)
"""Width of elastic bends, as a share of the patch's edge: from a vertebra to a curve of the column."""
BEND: Final = 0.3
"""Largest displacement of a bend, as a share of its width; with three times as much, tissue would fold over itself."""
MOVE_RAD: Final = np.deg2rad(3)
"""Largest rotation of a patient who moves during the scan, about each axis."""
MOVE_SHARE: Final = 0.03
"""Largest shift of a patient who moves during the scan, as a share of the patch's edge."""
STILL: Final = 0.15
"""Share of the spatial frequencies that are measured before a patient moves. They determine where things are."""
SPIKE: Final = (0.1, 0.5)
"""Height of a spike's stripes, in standard deviations of the image."""
FIELD_OF_STRUCTURES: Final = ((CORD,), (CANAL,), VERTEBRAE, DISCS, (SACRUM,))
"""Tissues that get a new gray value of their own when contrast is remapped."""
CONTROL_POINTS: Final = (4, 10)
"""Number of control points of the bent gray scale, at random from this range."""
REMAP_STRENGTH: Final = 1.0
"""Standard deviation of a structure's new offset, in standard deviations of the image."""


class StructureContrastTransform(BasicTransform):  # type: ignore[misc]
    """Gives each structure its own offset of gray values, as another sequence would.

    Args:
        groups: Values of the segmentation that belong together; a later group overrides an earlier one.
    """

    def __init__(self, groups: Sequence[Sequence[int]] = FIELD_OF_STRUCTURES) -> None:
        super().__init__()
        self.groups = groups

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add a random offset to each structure of the segmentation."""
        # nnU-Net marks voxels from outside the image, which a rotation brought in, with a negative value.
        image, codes = data_dict["image"], data_dict["segmentation"][0].long().clamp(min=0)
        offsets = torch.zeros(256)
        for group in self.groups:
            offsets[list(group)] = float(np.random.normal(0, REMAP_STRENGTH))  # noqa: NPY002 - as the library draws
        data_dict["image"] = image + offsets[codes][None] * image.std()
        return data_dict


class ShearingTransform(SpatialTransform):  # type: ignore[misc]
    """Shears and shifts patches that the library rotates, zooms or bends, with a single interpolation.

    MONAI's ``RandAffine`` would blur the image a second time and take 140 ms for 96 x 128 x 96 voxels; this takes 14.
    """

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Return the library's parameters with the grid sheared and shifted."""
        parameters: dict[str, Any] = super().get_parameters(**data_dict)
        if parameters["grid"] is not None and np.random.uniform() < SHEARED:  # noqa: NPY002 - as the library draws
            matrix = np.random.uniform(-SHEAR, SHEAR, (3, 3))  # noqa: NPY002
            np.fill_diagonal(matrix, 1)
            shift = np.random.uniform(-SHIFT, SHIFT, 3) * self.patch_size  # noqa: NPY002
            half = np.array(data_dict["image"].shape[1:]) / 2
            # Each row of the grid is a point: last axis first, in units of half an edge of the crop.
            turned = torch.from_numpy((matrix * half / half[:, np.newaxis])[::-1, ::-1].T.copy()).float()
            parameters["grid"] = parameters["grid"] @ turned + torch.from_numpy((shift / half)[::-1].copy()).float()
        return parameters


class MotionTransform(ImageOnlyTransform):  # type: ignore[misc]
    """Simulates a patient who pulsates (ghosts) or moves once (blur and ringing), by changing lines of k-space.

    The lines are those of the phase encoding, so a Fourier transform along one direction is enough. The center of
    k-space is measured before the patient moves, so labels stay in place. Neither library offers this.
    """

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Return the kind of motion and its random generator, once per image."""
        rng = _library_generator()
        return {"rng": rng, "ghosts": rng.random() < 0.5}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        rng: np.random.Generator = params["rng"]
        axis = 1 + int(rng.integers(3))
        frequencies = img.shape[axis] // 2 + 1
        # Some lines of k-space see another image than the others; this is the difference.
        if params["ghosts"]:
            every = int(rng.integers(2, 5))
            change, lines = img * -float(rng.uniform(0.1, 0.4)), slice(every, None, every)
        else:
            first = int(np.ceil(frequencies * rng.uniform(STILL, 0.6)))
            # Some patients move back.
            change, lines = _moved(img, rng) - img, slice(first, int(rng.integers(first + 1, 2 * frequencies)))
        seen = torch.zeros(frequencies)
        seen[lines] = 1
        spectrum = torch.fft.rfft(change, dim=axis) * seen.reshape([-1 if k == axis else 1 for k in range(img.ndim)])
        return img + torch.fft.irfft(spectrum, img.shape[axis], dim=axis)


class SpikeTransform(ImageOnlyTransform):  # type: ignore[misc]
    """Adds a wave of stripes to the image, as a single wrong point of k-space does.

    MONAI's ``KSpaceSpikeNoise`` makes the same stripes by way of k-space and its logarithm in 195 ms for 96 x 128 x 96
    voxels; this takes 8. Its default height, relative to the mean logarithm, is invisible on smooth images.
    """

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Return a random wave, once per image."""
        rng = _library_generator()
        shape = data_dict["image"].shape[1:]
        place = [int(rng.integers(-n // 2 + 1, n // 2 + 1)) for n in shape]
        return {"place": place, "phase": float(rng.uniform(0, 2 * np.pi)), "height": float(rng.uniform(*SPIKE))}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        phases = [2 * np.pi * k / n * torch.arange(n) for k, n in zip(params["place"], img.shape[1:], strict=True)]
        phases[0] = phases[0] + params["phase"]
        first, second, third = (torch.polar(torch.ones_like(phase), phase) for phase in phases)
        return img + params["height"] * img.std() * (first[:, None, None] * (second[:, None] * third)).real


class HistogramTransform(ImageOnlyTransform):  # type: ignore[misc]
    """Bends the gray scale at random points, as another reconstruction might; brighter tissue stays brighter."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Return the random seed of the curve, once per image."""
        return {"seed": int(_library_generator().integers(1 << 31))}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        shift = RandHistogramShift(num_control_points=CONTROL_POINTS, prob=1.0)
        shift.set_random_state(params["seed"])
        # A flipped image has negative strides, which the interpolation does not accept, so make it contiguous.
        return torch.as_tensor(np.asarray(shift(img.contiguous()))).to(img.dtype)


class FirstChannelTransform(BasicTransform):  # type: ignore[misc]
    """Applies a transform of gray values to the image only, not to the channel of odd discs.

    Args:
        transform: A transform that keeps the shape and the segmentation.
    """

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Vary the first channel and keep the others."""
        image = data_dict["image"]
        varied = self.transform(**{**data_dict, "image": image[:1].clone()})["image"]
        data_dict["image"] = torch.cat([varied, image[1:]])
        return data_dict


class FlipTransform(BasicTransform):  # type: ignore[misc]
    """Exchanges left and right, always; no label of the spine has a side."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Mirror image and segmentation along the axis."""
        for key in ("image", "segmentation", "regression_target"):
            if data_dict.get(key) is not None:
                data_dict[key] = torch.flip(data_dict[key], [self.axis + 1])
        return data_dict


def build_augmentation(patch: Shape, *, x_axis: int, strength: Strength) -> BasicTransform:
    """Return the chain of random variations for a crop around a patch.

    Args:
        patch: Voxels of the patch, network's axes.
        x_axis: The axis that runs from left to right.
        strength: Probabilities of the variations.

    Returns:
        A transform from ``{"image": (1, ...) float32, "segmentation": (1, ...) int16 codes}`` of at least the patch's
        size to the same of exactly the patch's size. It uses numpy's and torch's global generators.
    """
    spatial = ShearingTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=strength.elastic,
        elastic_deform_scale=BENDS,
        elastic_deform_magnitude=_bend,
        p_rotation=strength.spatial,
        rotation=(-ROTATION_RAD, ROTATION_RAD),
        p_scaling=strength.spatial,
        scaling=SCALING,
        p_synchronize_scaling_across_axes=1,
        mode_seg="nearest",
    )
    everyone: dict[str, Any] = {"synchronize_channels": True, "p_per_channel": 1}
    some = strength.artifacts
    chain: list[tuple[BasicTransform, float]] = [
        (FlipTransform(x_axis), strength.flip),
        (StructureContrastTransform(), strength.remap),
        (HistogramTransform(), strength.remap),
        (GaussianNoiseTransform(noise_variance=(0, 0.1), **everyone), some),
        (GaussianBlurTransform(blur_sigma=(0.5, 1.0), synchronize_axes=False, **everyone), some),
        (MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), **everyone), strength.intensity),
        (ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, **everyone), strength.intensity),
        (SimulateLowResolutionTransform((0.5, 1), synchronize_axes=False, ignore_axes=(), **everyone), some),
        (GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=0, p_retain_stats=1, **everyone), strength.intensity),
        (BrightnessGradientAdditiveTransform(_field_scale, max_strength=_field_strength, p_per_channel=1), some),
        (MotionTransform(), some),
        (SpikeTransform(), some),
        (InvertImageTransform(p_invert_image=1), strength.inversion),
    ]
    return ComposeTransforms([spatial, *(RandomTransform(t, p) for t, p in chain if p > 0)])


def scanner_variations(strength: Strength, groups: Sequence[Sequence[int]]) -> list[BasicTransform]:
    """Return variations that nnU-Net's own chain lacks: new contrasts, bias fields, motion, spikes, inversion.

    Args:
        strength: Probabilities of the variations.
        groups: See ``StructureContrastTransform``.
    """
    field = BrightnessGradientAdditiveTransform(_field_scale, max_strength=_field_strength, p_per_channel=1)
    return [
        RandomTransform(StructureContrastTransform(groups), strength.remap),
        RandomTransform(HistogramTransform(), strength.remap),
        RandomTransform(field, strength.artifacts),
        RandomTransform(MotionTransform(), strength.artifacts),
        RandomTransform(SpikeTransform(), strength.artifacts),
        RandomTransform(InvertImageTransform(p_invert_image=1), strength.inversion),
    ]


def _library_generator() -> np.random.Generator:
    return np.random.default_rng(np.random.randint(1 << 31))  # noqa: NPY002 - follows the library's seed


def _moved(img: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return an image (C, A, B, C) that is rotated and shifted a little; its border is repeated."""
    x, y, z = rng.uniform(-MOVE_RAD, MOVE_RAD, 3)
    turn = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]])
    edges = np.array(img.shape[:0:-1])
    place = np.c_[turn * edges / edges[:, np.newaxis], 2 * rng.uniform(-MOVE_SHARE, MOVE_SHARE, 3)]
    grid = affine_grid(torch.from_numpy(place).float()[None], [1, *img.shape], align_corners=False)
    return grid_sample(img[None].contiguous(), grid, padding_mode="border", align_corners=False)[0]


def _bend(*_: Any, patch_size: Sequence[int], dim: int, deformation_scale: float, **__: Any) -> float:
    """Return a random displacement of a bend, voxels."""
    return float(patch_size[dim] * deformation_scale * np.random.uniform(0, BEND))  # noqa: NPY002


def _field_scale(shape: Any, axis: int) -> float:
    """Return a random width of a bias field: half to twice the patch, as the sensitivity of a coil falls off."""
    return float(shape[axis] * np.random.uniform(0.5, 2))  # noqa: NPY002 - follows the library's seed


def _field_strength(image: Any, *_: Any) -> float:
    return float(np.random.uniform(-1, 1))  # noqa: NPY002 - follows the library's seed
