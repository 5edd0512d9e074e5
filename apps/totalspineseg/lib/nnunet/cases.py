"""From a labeled scan to what a network is trained on: plan spacing, network axes, normalized, in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from lib.agreement import NOTHING_LEFT, Left
from lib.anatomy import BACKGROUND, BY_CODE, DISCS, UNREVIEWED
from lib.errors import ImageError, LabelError, MemoryShortageError, TotalSpineSegError, TrainingError
from lib.geometry import LabelArray, Volume, image_to_iso, labels_to_iso, on_grid
from lib.nnunet.found_discs import found_discs
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.preprocessing import nonzero_box, normalize
from lib.nnunet.resampling import resample, resampled_shape
from lib.nnunet.targets import Step, present_codes, region_shares, step_target
from lib.plausible import require_plausible
from lib.prediction import Predictor
from lib.transforms.crop import CROP_MARGIN_MM, crop_box

FloatArray = npt.NDArray[np.float32]

ISO_MM: Final = (1.0, 1.0, 1.0)
"""Spacing at which cases are cut, mm: that of the pipeline."""
MIN_LABELED_VOXELS: Final = 100
"""A label with fewer voxels at 1 mm (a tenth of a milliliter) is a slip of the mouse, not a spine."""


class Origin(Enum):
    """Where a case comes from; ``EARLIER`` and ``SYNTHETIC`` are replay, and ``ACCEPTED`` has a share of its own."""

    CORRECTION = "correction"
    ACCEPTED = "accepted"
    EARLIER = "earlier"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class LabeledScan:
    """An image with its finished label, as people see them.

    Attributes:
        name: Case id; no patient name.
        subject: Whom it belongs to.
        origin: Where it comes from.
        image: On any grid.
        codes: Output codes on the same voxels, in the index order of the image whatever it was; ``UNREVIEWED`` where
            nobody has looked.
        unreviewed: Structures of ``codes`` that nobody checked: not taught, but known to be there.
        left: Structures that are as weights of the line in use predicted them; ``left.untouched`` are no news to a
            network that is trained from these.

    Raises:
        GridError: The label lies on other voxels than its image.
    """

    name: str
    subject: str
    origin: Origin
    image: Volume
    codes: Volume
    unreviewed: frozenset[int] = frozenset()
    left: Left = NOTHING_LEFT

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", on_grid(self.codes, self.image.grid))


@dataclass(frozen=True)
class ScanSource:
    """A labeled scan that has not been read yet.

    Attributes:
        name: Case id; no patient name.
        origin: Where it comes from.
        read: Reads it; may raise what files raise.
        provenance: What the registry keeps about it: hashes, annotator, time.
        steps: The networks this label can teach; a step-1 map (vertebrae in one piece) teaches step 1 alone.
    """

    name: str
    origin: Origin
    read: Callable[[], LabeledScan]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class TrainingCase:
    """A scan ready to be cut into patches.

    Attributes:
        name: Case id.
        origin: Where it comes from.
        image: (A, B, C) float32, normalized, network's axes and spacing.
        codes: uint8 output codes, the same shape.
        unreviewed: See ``LabeledScan``.
        shares: (R + 1, A, B, C) uint8, see ``targets.region_shares``, 255 for all of a voxel; None on a grid as fine as
            labels are. On a coarser one a thin structure fills its voxels in part.
        found: uint8, the discs that a step-1 network found, under the codes of the true ones; the same shape.
        untouched: See ``LabeledScan.left``.
    """

    name: str
    origin: Origin
    image: FloatArray
    codes: LabelArray
    unreviewed: frozenset[int] = frozenset()
    shares: LabelArray | None = None
    found: LabelArray | None = None
    untouched: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Skipped:
    """A case that was left out, and why."""

    name: str
    reason: str


def prepare_case(scan: LabeledScan, folder: ModelFolder, *, finder: Predictor | None = None) -> TrainingCase:
    """Bring a labeled scan to what one step's network sees.

    Args:
        scan: Image and codes. Not modified.
        folder: The model whose plans apply; step 2 sees the crop around the spine.
        finder: The step-1 network that finds the discs of a step-2 case.

    Returns:
        The case, its arrays its own.

    Raises:
        LabelError: The label is empty, holds values that are no codes, or (step 2) no disc.
        ImageError: The image is empty there.
    """
    image, codes = image_to_iso(scan.image).data, labels_to_iso(scan.codes).data
    check_codes(codes, step=folder.step)
    found = None
    if folder.step == 2:
        box = crop_box(np.where(codes == UNREVIEWED, BACKGROUND, codes).astype(np.uint8), margin=CROP_MARGIN_MM)
        if finder is not None:
            found = found_discs(image, codes, finder)[box]
        image, codes = image[box], codes[box]
    # (X, Y, Z) -> (Z, Y, X), then the plans' own order: as the predictor turns its input.
    axes = [2 - axis for axis in folder.transpose]
    image, codes = image.transpose(axes), codes.transpose(axes)
    inner = nonzero_box(image[np.newaxis])
    if inner is None:
        raise ImageError("an image with contrast is required where the spine is, got zeros; check the series")
    image, codes = image[inner], codes[inner]
    configuration = folder.configuration
    inside_only = configuration.get("use_mask_for_norm") or [False]
    channel = normalize(image[np.newaxis], configuration["normalization_schemes"][:1], inside_only[:1])
    shape = resampled_shape(image.shape, ISO_MM, folder.spacing_mm)
    resampled = resample(torch.from_numpy(channel), shape)[0].numpy()
    return TrainingCase(
        name=scan.name,
        origin=scan.origin,
        image=resampled,
        codes=_nearest(codes, shape),
        unreviewed=scan.unreviewed,
        shares=_shares(codes, shape, folder, scan.unreviewed),
        found=None if found is None else _nearest(found.transpose(axes)[inner], shape),
        untouched=scan.left.untouched,
    )


def _shares(
    codes: LabelArray, shape: Sequence[int], folder: ModelFolder, unreviewed: frozenset[int]
) -> LabelArray | None:
    a, b, c = (max(1, round(mm / iso)) for mm, iso in zip(folder.spacing_mm, ISO_MM, strict=True))
    if max(a, b, c) == 1:
        return None
    step = cast(Step, folder.step)
    finely = _nearest(codes, [n * f for n, f in zip(shape, (a, b, c), strict=True)])
    classes = torch.from_numpy(step_target(finely, step, unreviewed=unreviewed))
    shares: LabelArray = (region_shares(classes, step, (a, b, c)) * 255).round().to(torch.uint8).numpy()
    return shares


def _nearest(codes: LabelArray, shape: Sequence[int]) -> LabelArray:
    """Another number of voxels over the same box."""
    values = torch.from_numpy(np.ascontiguousarray(codes))[None, None].float()
    nearest: LabelArray = (
        torch.nn.functional.interpolate(values, size=list(shape), mode="nearest-exact")[0, 0].to(torch.uint8).numpy()
    )
    return nearest


def check_codes(codes: LabelArray, *, step: int) -> None:
    """Check that a label can teach a network.

    Args:
        codes: uint8 at 1 mm, nearest RAS; ``UNREVIEWED`` where nobody has looked. Not modified.
        step: Which network.

    Raises:
        LabelError: It is (nearly) empty, holds values that are no codes, has no disc for step 2's channel, is upside
            down, or lacks what is in view of every spine although all of it is said to be reviewed.
    """
    present = present_codes(codes)
    if strangers := sorted(present - set(BY_CODE)):
        raise LabelError(f"output codes are required, got the values {strangers!r}; submit the label again")
    voxels = int(np.count_nonzero((codes != BACKGROUND) & (codes != UNREVIEWED)))
    if voxels < MIN_LABELED_VOXELS:
        raise LabelError(
            f"a label of at least {MIN_LABELED_VOXELS} cubic millimeters is required, got {voxels}; finish it first"
        )
    if step == 2 and not present & set(DISCS):
        raise LabelError("a label with at least one disc is required for step 2, got none; draw or name a disc")
    require_plausible(codes)


def prepare_cases(
    sources: Iterable[ScanSource],
    folder: ModelFolder,
    *,
    on_skip: Callable[[Skipped], None],
    at_most: Mapping[Origin, int] | None = None,
    before_each: Callable[[str], None] = lambda _: None,
    finder: Predictor | None = None,
) -> Iterator[TrainingCase]:
    """Prepare many scans, one at a time; one that cannot be used is skipped with its reason and never stops the rest.

    A machine that is short of memory is no fault of the scan, and leaves none out.

    Args:
        sources: Where the scans come from.
        folder: The model whose plans apply.
        on_skip: Told about every case that is left out.
        at_most: Usable cases of each origin that are wanted, the first ones; all of an origin that is not named.
        before_each: Called with each case's name, for progress.
        finder: See ``prepare_case``.

    Yields:
        The usable cases, in order.

    Raises:
        TrainingError: The memory does not suffice, neither the GPU's nor the CPU's.
    """
    left = dict(at_most or {})
    for source in sources:
        if folder.step not in source.steps or left.get(source.origin) == 0:
            continue
        before_each(source.name)
        try:
            case = prepare_case(source.read(), folder, finder=finder)
        except MemoryShortageError as error:
            raise TrainingError(f"case {source.name} cannot be prepared: {error}; then train again") from error
        except (TotalSpineSegError, OSError, ValueError) as error:
            on_skip(Skipped(source.name, str(error)))
        else:
            if source.origin in left:
                left[source.origin] -= 1
            yield case
