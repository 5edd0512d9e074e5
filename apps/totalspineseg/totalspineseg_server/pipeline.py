"""Turn an image into a named segmentation, in stages whose types only the next stage accepts.

The stages are ``prepare -> locate -> step2_input -> segment``. Arrays stay in memory, and networks appear only as
``Predictor``. All arrays of the result types are on the grid of ``scan.iso`` (1 mm, nearest RAS).
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from totalspineseg_server.anatomy import CANAL, CORD, DISCS, SACRUM, VERTEBRAE
from totalspineseg_server.clock import Clock, no_clock
from totalspineseg_server.errors import GridError, NoSpineError
from totalspineseg_server.geometry import (
    FloatArray,
    Grid,
    LabelArray,
    Volume,
    image_to_iso,
    labels_from_iso,
    labels_on_grid,
    points_from_iso,
    skew_remedy,
    soft_from_iso,
)
from totalspineseg_server.image import image_faults
from totalspineseg_server.numbering.chain import Numbering, Pin
from totalspineseg_server.numbering.evidence import Localizer, Step1Names
from totalspineseg_server.numbering.findings import IMAGE, Finding
from totalspineseg_server.numbering.naming import Method, name_map, step1_names
from totalspineseg_server.prediction import Prediction, Predictor
from totalspineseg_server.transforms.canal import soft_structure
from totalspineseg_server.transforms.components import Box, labels_present
from totalspineseg_server.transforms.discs import CROP_MARGIN_MM, crop_box, discs_named_as, odd_discs
from totalspineseg_server.transforms.labeling import UNNAMED
from totalspineseg_server.transforms.levels import level_points
from totalspineseg_server.trust import UNMEASURED, Trust

STEP1_SOFT: Final = ("canal", "cord")
"""Regions of step 1 whose probabilities are asked for."""


@dataclass(frozen=True)
class Scan:
    """An image that is ready for the networks.

    Attributes:
        iso: float32 image at 1 mm, nearest RAS.
        grid: The original grid of the image; results return to it.
        warnings: Oddities of its file.
    """

    iso: Volume
    grid: Grid
    warnings: tuple[str, ...] = ()

    def labels_to_input(self, labels: LabelArray) -> LabelArray:
        """Move labels from the 1 mm grid to the grid of the input (nearest voxel)."""
        result: LabelArray = labels_from_iso(labels, self.iso.grid, self.grid)
        return result

    def soft_to_input(self, soft: FloatArray) -> FloatArray:
        """Move a probability map from the 1 mm grid to the grid of the input (linear)."""
        return soft_from_iso(soft, self.iso.grid, self.grid)

    def points_to_input(self, points: LabelArray) -> LabelArray:
        """Move point labels from the 1 mm grid to the grid of the input (one voxel for each point)."""
        return points_from_iso(points, self.iso.grid, self.grid)


@dataclass(frozen=True)
class Sibling:
    """Another series of the patient that is already named.

    Attributes:
        labels: Its codes, on any grid.
        names: Code -> probability of each code for the structure with that code (see ``Localizer``).
        source: Its name in a report.
        by_reader: Whether a reader finished it.
    """

    labels: Volume
    names: Mapping[int, Mapping[int, float]]
    source: str
    by_reader: bool = False


@dataclass(frozen=True)
class Options:
    """Options for naming the levels.

    Attributes:
        method: "chain" weighs all evidence and reports doubts; "iterative" is TotalSpineSeg's own rule.
        localizer: Label map (codes) of another series of the same patient, on any grid.
        siblings: Other series of the patient that may overlap the scan; only the chain model uses them.
        pins: Levels that a reader has pinned.
    """

    method: Method = "chain"
    localizer: Volume | None = None
    siblings: tuple[Sibling, ...] = ()
    pins: tuple[Pin, ...] = ()


@dataclass(frozen=True)
class Located:
    """Result of step 1.

    Attributes:
        scan: The scan.
        raw: Step-1 classes from the network.
        labels: Codes of discs by level, C1, canal and cord; all other vertebrae have the sacrum's code.
        numbering: Levels and their certainty from the chain model; None with the iterative method.
        soft_cord: Probability of the cord around its label, float32 0..1.
        soft_canal: Probability of the canal (cord included) around its label, float32 0..1.
        levels: SCT disc points.
        trust: How far the network is trusted.
        mirror_difference: See ``Prediction``.
    """

    scan: Scan
    raw: LabelArray
    labels: LabelArray
    numbering: Numbering | None
    soft_cord: FloatArray
    soft_canal: FloatArray
    levels: LabelArray
    trust: Trust = UNMEASURED
    mirror_difference: float | None = None


@dataclass(frozen=True)
class Step2Input:
    """Input of step 2.

    Attributes:
        scan: The scan.
        box: Position of the crop in the scan.
        channels: (2, X, Y, Z) float32 crop: image, odd discs (0 / 1).
        step1: Names of step 1 on the crop; None if their doubts are not known.
    """

    scan: Scan
    box: Box
    channels: FloatArray
    step1: Step1Names | None = None


@dataclass(frozen=True)
class Segmentation:
    """Result of step 2: every structure by its code.

    Attributes:
        scan: The scan.
        raw: Step-2 classes from the network.
        labels: Codes.
        numbering: The levels and their certainty by the chain model; None with the iterative method.
        box: The part of the scan that the network saw.
        step1: Names of step 1 in that part, as far as they are known.
        trust: How far the network is trusted.
        mirror_difference: See ``Prediction``; None for a map that was made earlier.
    """

    scan: Scan
    raw: LabelArray
    labels: LabelArray
    numbering: Numbering | None
    box: Box
    step1: Step1Names | None = None
    trust: Trust = UNMEASURED
    mirror_difference: float | None = None


def prepare(image: Volume, *, warnings: tuple[str, ...] = (), clock: Clock = no_clock) -> Scan:
    """Resample an image to nearest RAS and 1 mm.

    Args:
        image: 3D image in any orientation and spacing. Not modified.
        warnings: Oddities of its file; a skew of its header is added.
        clock: Measures the stage.

    Raises:
        ImageError: The header gives an impossible field of view.
    """
    with clock("resample to 1 mm"):
        return Scan(image_to_iso(image), image.grid, (*warnings, *filter(None, [skew_remedy(image.grid)])))


def locate(scan: Scan, predictor: Predictor, options: Options | None = None, *, clock: Clock = no_clock) -> Located:
    """Run step 1: find and name the discs, find the canal and the cord.

    Args:
        scan: From ``prepare``.
        predictor: The loaded step-1 network.
        options: Options for naming the levels.
        clock: Measures the stages.

    Raises:
        NoSpineError: The network found no disc or no canal, or no level fits its result.
    """
    with clock("step 1 network"):
        prediction = predictor.predict(scan.iso.data[np.newaxis], soft=STEP1_SOFT)
    return located(scan, prediction, options, clock=clock)


def located(scan: Scan, prediction: Prediction, options: Options | None = None, *, clock: Clock = no_clock) -> Located:
    """Name what the step-1 network found, see ``locate``.

    Args:
        scan: From ``prepare``.
        prediction: The network's answer for the scan, with the probabilities of ``STEP1_SOFT``.
        options: Options for naming the levels.
        clock: Measures the stages.

    Raises:
        NoSpineError: The network found no disc or no canal, or no level fits its result.
    """
    options = options or Options()
    with _explained(scan):
        labels, numbering = _name(prediction.labels, 1, scan.iso.grid, options, clock, trust=prediction.trust)
        _require_named(labels, 1)
    with clock("soft maps"):
        cord = soft_structure(prediction.soft["cord"], labels == CORD)
        canal = soft_structure(prediction.soft["canal"], (labels == CORD) | (labels == CANAL))
    with clock("levels"):
        levels = level_points(labels)
    difference = prediction.mirror_difference
    return Located(scan, prediction.labels, labels, numbering, cord, canal, levels, prediction.trust, difference)


def step2_input(
    scan: Scan,
    labels: LabelArray,
    step1: Step1Names | None = None,
    *,
    missed: Collection[int] = (),
    clock: Clock = no_clock,
) -> Step2Input:
    """Return the crop around the step-1 result, with its odd discs as the second channel.

    Args:
        scan: From ``prepare``.
        labels: Step-1 result in codes on ``scan.iso``'s grid, predicted or corrected. Not modified.
        step1: Names of step 1 on that grid, with their doubts or from a reader; they are evidence for the names of step
            2.
        missed: Discs in view that the labels do not show, see ``odd_discs``.
        clock: Measures the stage.

    Raises:
        GridError: The labels do not have the shape of the scan.
        NoSpineError: The labels have no disc.
    """
    if labels.shape != scan.iso.data.shape:
        raise GridError(f"expected step-1 labels of shape {scan.iso.data.shape}, got {labels.shape}")
    with clock("odd discs"):
        odd = odd_discs(labels, missed=missed)
        if not odd.any():
            raise NoSpineError("The step-1 label has no named disc. Draw or name a disc first.")
        box = crop_box(labels, margin=round(CROP_MARGIN_MM / scan.iso.spacing[0]))
        channels = np.stack([scan.iso.data[box], odd[box].astype(np.float32)])
    return Step2Input(scan, box, channels, None if step1 is None else step1.part(box))


def segment(
    step2: Step2Input, predictor: Predictor, options: Options | None = None, *, clock: Clock = no_clock
) -> Segmentation:
    """Run step 2: segment every vertebra, disc, cord, canal and the sacrum by name.

    Args:
        step2: From ``step2_input``.
        predictor: The loaded step-2 network.
        options: Options for naming the levels.
        clock: Measures the stages.

    Raises:
        NoSpineError: The network found no disc or no canal.
    """
    with clock("step 2 network"):
        prediction = predictor.predict(step2.channels)
    return segmented(step2, prediction, options, clock=clock)


def segmented(
    step2: Step2Input, prediction: Prediction, options: Options | None = None, *, clock: Clock = no_clock
) -> Segmentation:
    """Name what the step-2 network found, see ``segment``.

    Args:
        step2: From ``step2_input``.
        prediction: The network's answer for it.
        options: Options for naming the levels.
        clock: Measures the stages.

    Raises:
        NoSpineError: The network found no disc or no canal.
    """
    found = rename(
        step2.scan,
        prediction.labels,
        step2.box,
        2,
        options,
        step1=step2.step1,
        trust=prediction.trust,
        clock=clock,
    )
    return replace(found, mirror_difference=prediction.mirror_difference)


def finish(
    located: Located, predictor: Predictor, options: Options | None = None, *, clock: Clock = no_clock
) -> Segmentation:
    """Run step 2 on the result of step 1 (``input_after``, then ``segment``).

    Args:
        located: From ``locate``.
        predictor: The loaded step-2 network.
        options: Options for naming the levels.
        clock: Measures the stages.

    Raises:
        NoSpineError: Step 1 named no disc, or the network found no disc or no canal.
    """
    return segment(input_after(located, options, clock=clock), predictor, options, clock=clock)


def input_after(located: Located, options: Options | None = None, *, clock: Clock = no_clock) -> Step2Input:
    """Return the input of step 2 for the result of step 1; the names of step 1 count with their doubts.

    Args:
        located: From ``locate``.
        options: Options for naming the levels.
        clock: Measures the stages.

    Raises:
        NoSpineError: Step 1 named no disc.
    """
    names = _own_names(located, options or Options(), clock)
    missed = located.numbering.missed if located.numbering else ()
    return step2_input(located.scan, located.labels, names, missed=missed, clock=clock)


def named_levels(located: Located, segmentation: Segmentation) -> LabelArray:
    """Return the level points of step 1 under the names of the final result, which may be better.

    Args:
        located: From ``locate``.
        segmentation: Result of ``finish`` for it.

    Returns:
        SCT disc points, see ``level_points``; those of step 1 itself if the names agree.
    """
    discs = discs_named_as(located.labels, segmentation.labels)
    return located.levels if discs is located.labels else level_points(discs)


def _own_names(located: Located, options: Options, clock: Clock) -> Step1Names | None:
    """Return the names of step 1 from its map alone; other series and pins are used only with the map of step 2."""
    labels, numbering = located.labels, located.numbering
    if options.localizer is not None or options.siblings or options.pins:
        bare = Options(options.method)
        labels, numbering = _name(located.raw, 1, located.scan.iso.grid, bare, clock, trust=located.trust)
    return step1_names(labels, numbering)


def rename(
    scan: Scan,
    classes: LabelArray,
    box: Box,
    step: Literal[1, 2],
    options: Options | None = None,
    *,
    step1: Step1Names | None = None,
    trust: Trust = UNMEASURED,
    clock: Clock = no_clock,
) -> Segmentation:
    """Name the map of a network, as ``segment`` does at its end; the map may have been made earlier.

    Args:
        scan: From ``prepare``.
        classes: Classes of the step on the part of the scan that the network saw. Not modified.
        box: That part.
        step: 1 or 2.
        options: Options for naming the levels.
        step1: For a step-2 map, the names of step 1 there.
        trust: Measured errors of the network.
        clock: Measures the stages.

    Raises:
        NoSpineError: The map has no disc or no canal, or no level fits it.
    """
    grid = scan.iso.grid
    with _explained(scan):
        cropped, numbering = _name(classes, step, sub_grid(grid, box), options or Options(), clock, step1, trust=trust)
        _require_named(cropped, step)
    with clock("back to the scan"):
        raw = _uncrop(classes, box, grid.shape)
        labels = _uncrop(cropped, box, grid.shape)
    if numbering is not None:
        first = (box[0].start, box[1].start, box[2].start)
        numbering = replace(numbering, findings=tuple(finding.moved(first) for finding in numbering.findings))
    return Segmentation(scan, raw, labels, numbering, box, step1, trust)


@contextmanager
def _explained(scan: Scan) -> Iterator[None]:
    """Add possible causes that lie in the image to the message that no spine was found."""
    try:
        yield
    except NoSpineError as error:
        raise NoSpineError(" ".join([str(error), *scan.warnings, *image_faults(scan.iso)])) from error


def _require_named(labels: LabelArray, step: Literal[1, 2]) -> None:
    """Check that at least one structure has the name of a level.

    Raises:
        NoSpineError: No structure has one.
    """
    levels = DISCS if step == 1 else (*VERTEBRAE, SACRUM, *DISCS)
    if not labels_present(labels)[list(levels)].any():
        raise NoSpineError(
            f"No level fits what step {step} found in this image. Check that it shows the spine and that its "
            "orientation and voxel size are right."
        )


def image_findings(scan: Scan, numbering: Numbering | None) -> tuple[Finding, ...]:
    """Return findings about the image of a result.

    Args:
        scan: The scan.
        numbering: Its levels. If they are doubtful, the image may be the reason.

    Returns:
        Findings without a position; none for a sound image.
    """
    in_doubt = numbering is not None and numbering.certainty == "doubtful"
    faults = (*scan.warnings, *(image_faults(scan.iso) if in_doubt else ()))
    return tuple(Finding(IMAGE, UNNAMED, fault) for fault in faults)


def _name(
    classes: LabelArray,
    step: Literal[1, 2],
    grid: Grid,
    options: Options,
    clock: Clock,
    step1: Step1Names | None = None,
    *,
    trust: Trust,
) -> tuple[LabelArray, Numbering | None]:
    """Return the names of a map from ``name_map``, called with the options of the pipeline."""
    localizer = None if options.localizer is None else labels_on_grid(options.localizer, grid)
    siblings = [Localizer(labels_on_grid(s.labels, grid), s.names, s.source, s.by_reader) for s in options.siblings]
    return name_map(
        Volume(classes, grid.affine),
        step,
        localizer=localizer,
        siblings=[sibling for sibling in siblings if sibling.codes.any()],
        pins=options.pins,
        step1=step1,
        trust=trust,
        method=options.method,
        clock=clock,
    )


def sub_grid(grid: Grid, box: Box) -> Grid:
    """Return the grid of a part of a scan."""
    shift = np.eye(4)
    shift[:3, 3] = [axis.start for axis in box]
    x, y, z = (axis.stop - axis.start for axis in box)
    return Grid((x, y, z), grid.affine @ shift)


def _uncrop(labels: LabelArray, box: Box, shape: tuple[int, int, int]) -> LabelArray:
    result = np.zeros(shape, dtype=labels.dtype)
    result[box] = labels
    return result
