"""Prepare labeled scans for training, in memory: resampled to the plan's spacing, with the network's axes,
normalized."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from totalspineseg_server.agreement import NOTHING_LEFT, Left
from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, DISCS, UNREVIEWED
from totalspineseg_server.errors import ImageError, LabelError, MemoryShortageError, TotalSpineSegError, TrainingError
from totalspineseg_server.geometry import LabelArray, Volume, image_to_iso, labels_to_iso, on_grid
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.odd_channel import found_discs
from totalspineseg_server.nnunet.preprocessing import nearest, nonzero_box, normalize, resample, resampled_shape
from totalspineseg_server.nnunet.targets import Step, present_codes, region_shares, step_target
from totalspineseg_server.numbering.linter import require_plausible
from totalspineseg_server.prediction import Predictor
from totalspineseg_server.segments import without_regions
from totalspineseg_server.transforms.discs import CROP_MARGIN_MM, crop_box

FloatArray = npt.NDArray[np.float32]

ISO_MM: Final = (1.0, 1.0, 1.0)
"""Spacing at which cases are cropped, mm: that of the pipeline."""
MIN_LABELED_VOXELS: Final = 100
"""Smallest number of labeled voxels at 1 mm: less than a tenth of a milliliter is a slip of the mouse."""


class Origin(Enum):
    """Origin of a case; the replay share counts everything except new corrections and accepted results.

    Attributes:
        CORRECTION: A correction that the weights have not learned from.
        EARLIER: A correction that the weights or an ancestor learned from.
        UNCORRECTED: A synthetic spine, or the weights' own output on a scan that nobody corrected.
        ACCEPTED: A result that a reader finished unchanged; such cases have a share of their own.
    """

    CORRECTION = "correction"
    ACCEPTED = "accepted"
    EARLIER = "earlier"
    UNCORRECTED = "uncorrected"


@dataclass(frozen=True)
class LabeledScan:
    """An image with its finished label, before preprocessing.

    Attributes:
        name: Case id; no patient name.
        subject: Subject of the scan.
        origin: Origin of the label.
        image: On any grid.
        codes: Output codes on the same voxels, in the index order of the image; ``UNREVIEWED`` where nobody checked.
        unreviewed: Structures of ``codes`` that nobody checked: they exist, but nothing is learned from them.
        left: Structures that a reader left as the weights in use, or their ancestors, predicted them. A network that is
            trained from these weights learns nothing new from ``left.untouched``.

    Raises:
        GridError: The label is not on the grid of the image.
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
        origin: Origin of the label.
        read: Reads it; may raise errors of files.
        provenance: Its entry in a version's record: hashes, annotator, time.
        steps: The steps that can learn from this label; from a step-1 map (vertebrae in one piece) only step 1 can.
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
        origin: Origin of the label.
        image: (A, B, C) float32, normalized, network's axes and spacing.
        codes: uint8 output codes, the same shape.
        unreviewed: See ``LabeledScan``.
        shares: (R + 1, A, B, C) uint8, see ``targets.region_shares``, 255 for a whole voxel. A thin structure fills
            coarse voxels only in part. None if the grid is as fine as that of the labels.
        found: uint8 of the same shape: the discs that a step-1 network found, with the codes of the true discs.
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
    """A case that was left out, with the reason."""

    name: str
    reason: str


def prepare_case(scan: LabeledScan, folder: ModelFolder, *, finder: Predictor | None = None) -> TrainingCase:
    """Preprocess a labeled scan for one step's network.

    Args:
        scan: Image and codes. Not modified.
        folder: The model whose plans apply; step 2 sees the crop around the spine.
        finder: The step-1 network that finds the discs for a step-2 case.

    Returns:
        The case, with new arrays.

    Raises:
        LabelError: The label is empty, has values that are not codes, or (step 2) has no disc.
        ImageError: The image is empty around the spine.
    """
    image, codes = image_to_iso(scan.image).data, labels_to_iso(scan.codes).data
    check_codes(codes, step=folder.step)
    found = None
    if folder.step == 2:
        box = crop_box(without_regions(codes), margin=CROP_MARGIN_MM)
        if finder is not None:
            found = found_discs(image, codes, finder)[box]
        image, codes = image[box], codes[box]
    # The order of axes becomes (Z, Y, X), and then that of the plans, as in the predictor.
    axes = [2 - axis for axis in folder.transpose]
    image, codes = image.transpose(axes), codes.transpose(axes)
    inner = nonzero_box(image[np.newaxis])
    if inner is None:
        raise ImageError(nnunet_messages.ONLY_ZEROS)
    image, codes = image[inner], codes[inner]
    configuration = folder.configuration
    inside_only = configuration.get("use_mask_for_norm") or [False]
    values = torch.from_numpy(np.ascontiguousarray(image[np.newaxis]))
    channel = normalize(values, configuration["normalization_schemes"][:1], inside_only[:1])
    shape = resampled_shape(image.shape, ISO_MM, folder.spacing_mm)
    resampled = resample(channel, shape)[0].numpy()
    return TrainingCase(
        name=scan.name,
        origin=scan.origin,
        image=resampled,
        codes=nearest(codes, shape),
        unreviewed=scan.unreviewed,
        shares=_shares(codes, shape, folder, scan.unreviewed),
        found=None if found is None else nearest(found.transpose(axes)[inner], shape),
        untouched=scan.left.untouched,
    )


def _shares(
    codes: LabelArray, shape: Sequence[int], folder: ModelFolder, unreviewed: frozenset[int]
) -> LabelArray | None:
    a, b, c = (max(1, round(mm / iso)) for mm, iso in zip(folder.spacing_mm, ISO_MM, strict=True))
    if max(a, b, c) == 1:
        return None
    step = cast(Step, folder.step)
    finely = nearest(codes, [n * f for n, f in zip(shape, (a, b, c), strict=True)])
    classes = torch.from_numpy(step_target(finely, step, unreviewed=unreviewed))
    shares: LabelArray = (region_shares(classes, step, (a, b, c)) * 255).round().to(torch.uint8).numpy()
    return shares


def check_codes(codes: LabelArray, *, step: int) -> None:
    """Check that a network can learn from a label.

    Args:
        codes: uint8 at 1 mm, nearest RAS; ``UNREVIEWED`` where nobody checked. Not modified.
        step: Step of the network.

    Raises:
        LabelError: It is (nearly) empty, has values that are not codes, has no disc for step 2's channel, is upside
            down, or lacks structures that every spine has in view although all of it was reviewed.
    """
    present = present_codes(codes)
    if strangers := sorted(present - set(BY_CODE)):
        raise LabelError(nnunet_messages.OTHER_CODES.format(strangers=strangers))
    voxels = int(np.count_nonzero((codes != BACKGROUND) & (codes != UNREVIEWED)))
    if voxels < MIN_LABELED_VOXELS:
        raise LabelError(nnunet_messages.TOO_LITTLE_LABELED.format(mm3=voxels, needed=MIN_LABELED_VOXELS))
    if step == 2 and not present & set(DISCS):
        raise LabelError(nnunet_messages.NO_DISC)
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
    """Prepare scans one at a time; skip those that cannot be used, with the reason.

    If memory is short, the scan is not at fault: an error is raised, and no scan is skipped.

    Args:
        sources: The scans.
        folder: The model whose plans apply.
        on_skip: Called with every case that is left out.
        at_most: Largest number of usable cases of each origin; an origin that is not listed has no limit.
        before_each: Called with each case's name, for progress.
        finder: See ``prepare_case``.

    Yields:
        The usable cases, in order.

    Raises:
        TrainingError: There is too little memory, on the GPU and on the CPU.
    """
    left = dict(at_most or {})
    for source in sources:
        if folder.step not in source.steps or left.get(source.origin) == 0:
            continue
        before_each(source.name)
        try:
            case = prepare_case(source.read(), folder, finder=finder)
        except MemoryShortageError as error:
            raise TrainingError(nnunet_messages.CASE_FAILED.format(case=source.name, error=error)) from error
        except (TotalSpineSegError, OSError, ValueError) as error:
            on_skip(Skipped(source.name, str(error)))
        else:
            if source.origin in left:
                left[source.origin] -= 1
            yield case
