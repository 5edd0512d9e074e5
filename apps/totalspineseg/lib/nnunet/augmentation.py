"""Random variations of a patch: where it lies, how it is bent, and what another scanner would make of it."""

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

from lib.anatomy import CANAL, CORD, DISCS, SACRUM, VERTEBRAE
from lib.nnunet.finetune_settings import Strength

Shape = tuple[int, int, int]

ROTATION_RAD: Final = np.deg2rad(20)
"""Largest rotation about each axis: more than patients tilt in a scanner."""
SCALING: Final = (0.8, 1.25)
"""Zoom: children to tall adults around what the cases show."""
FIELD_OF_STRUCTURES: Final = ((CORD,), (CANAL,), VERTEBRAE, DISCS, (SACRUM,))
"""Tissues that get a new gray value of their own when contrast is remapped."""
CONTROL_POINTS: Final = (4, 10)
"""Of the bent gray scale, drawn from this range."""
REMAP_STRENGTH: Final = 1.0
"""Standard deviation of a structure's new offset, in standard deviations of the image."""


class StructureContrastTransform(BasicTransform):  # type: ignore[misc]
    """Gives each structure a gray value offset of its own, as another sequence would.

    Args:
        groups: Values of the segmentation that belong together; a later group overrides an earlier one.
    """

    def __init__(self, groups: Sequence[Sequence[int]] = FIELD_OF_STRUCTURES) -> None:
        super().__init__()
        self.groups = groups

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """A new image where every structure of the segmentation is shifted by its own random offset."""
        # nnU-Net marks what a rotation turned in from outside by a negative value.
        image, codes = data_dict["image"], data_dict["segmentation"][0].long().clamp(min=0)
        offsets = torch.zeros(256)
        for group in self.groups:
            offsets[list(group)] = float(np.random.normal(0, REMAP_STRENGTH))  # noqa: NPY002 - as the library draws
        data_dict["image"] = image + offsets[codes][None] * image.std()
        return data_dict


class KSpaceTransform(ImageOnlyTransform):  # type: ignore[misc]
    """Ghosts (motion along the phase direction) or spikes (stripes), made where a scanner makes them: in k-space."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """What and where, drawn once per image."""
        rng = np.random.default_rng(np.random.randint(1 << 31))  # noqa: NPY002 - follows the library's seed
        return {"rng": rng, "spike": rng.random() < 0.5}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        rng: np.random.Generator = params["rng"]
        spectrum = torch.fft.fftn(img[0])
        if params["spike"]:
            place = tuple(int(rng.integers(0, n)) for n in spectrum.shape)
            spectrum[place] += spectrum.abs().max() * float(rng.uniform(0.1, 0.4))
        else:
            axis, every = int(rng.integers(3)), int(rng.integers(2, 5))
            lines = [slice(None)] * 3
            lines[axis] = slice(1, None, every)
            spectrum[tuple(lines)] *= float(rng.uniform(0.6, 0.9))
        return torch.fft.ifftn(spectrum).real[None].to(img.dtype)


class HistogramTransform(ImageOnlyTransform):  # type: ignore[misc]
    """Bends the gray scale at random points, bright staying above dark, as another reconstruction does."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """The seed of the curve, drawn once per image."""
        return {"seed": int(np.random.randint(1 << 31))}  # noqa: NPY002 - follows the library's seed

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        shift = RandHistogramShift(num_control_points=CONTROL_POINTS, prob=1.0)
        shift.set_random_state(params["seed"])
        # Contiguous: a flipped image has negative strides, which the interpolation does not take.
        return torch.as_tensor(np.asarray(shift(img.contiguous()))).to(img.dtype)


class FirstChannelTransform(BasicTransform):  # type: ignore[misc]
    """Applies a transform of gray values to the image alone: the odd discs stay what they are.

    Args:
        transform: Keeps the shape and leaves the segmentation as it is.
    """

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The first channel varied, the others as they were."""
        image = data_dict["image"]
        varied = self.transform(**{**data_dict, "image": image[:1].clone()})["image"]
        data_dict["image"] = torch.cat([varied, image[1:]])
        return data_dict


class FlipTransform(BasicTransform):  # type: ignore[misc]
    """Exchanges left and right with probability 1; no label of the spine has a side."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Image and segmentation mirrored along the axis."""
        for key in ("image", "segmentation", "regression_target"):
            if data_dict.get(key) is not None:
                data_dict[key] = torch.flip(data_dict[key], [self.axis + 1])
        return data_dict


def build_augmentation(patch: Shape, *, x_axis: int, strength: Strength) -> BasicTransform:
    """The chain of random variations for a crop around a patch.

    Args:
        patch: Voxels of the patch, network's axes.
        x_axis: Which of them runs from left to right.
        strength: How much is varied.

    Returns:
        Takes ``{"image": (1, ...) float32, "segmentation": (1, ...) int16 codes}`` of at least the patch's size,
        gives the same of exactly the patch's size. Draws from numpy's and torch's global generators.
    """
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=strength.elastic,
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
        (KSpaceTransform(), some),
        (InvertImageTransform(p_invert_image=1), strength.inversion),
    ]
    return ComposeTransforms([spatial, *(RandomTransform(t, p) for t, p in chain if p > 0)])


def scanner_variations(strength: Strength, groups: Sequence[Sequence[int]]) -> list[BasicTransform]:
    """What other scanners do and nnU-Net's own chain does not: new contrasts, bias fields, ghosts, spikes, inversion.

    Args:
        strength: How often.
        groups: See ``StructureContrastTransform``.
    """
    field = BrightnessGradientAdditiveTransform(_field_scale, max_strength=_field_strength, p_per_channel=1)
    return [
        RandomTransform(StructureContrastTransform(groups), strength.remap),
        RandomTransform(HistogramTransform(), strength.remap),
        RandomTransform(field, strength.artifacts),
        RandomTransform(KSpaceTransform(), strength.artifacts),
        RandomTransform(InvertImageTransform(p_invert_image=1), strength.inversion),
    ]


def _field_scale(shape: Any, axis: int) -> float:
    """Width of a bias field: half to twice the patch, as a coil's sensitivity falls off."""
    return float(shape[axis] * np.random.uniform(0.5, 2))  # noqa: NPY002 - follows the library's seed


def _field_strength(image: Any, *_: Any) -> float:
    return float(np.random.uniform(-1, 1))  # noqa: NPY002 - follows the library's seed
