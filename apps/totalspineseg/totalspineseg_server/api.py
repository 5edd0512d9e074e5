"""Load a model, segment an image, number or check a label map, and measure a spine, from Python.

Only ``save_nifti`` and ``save_dicom_seg`` write to the disk. All functions may be called from several threads; calls
with the same model take turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server import pipeline, places
from totalspineseg_server.anatomy import NAME_OF
from totalspineseg_server.errors import ImageError, SettingError, TotalSpineSegError
from totalspineseg_server.files import write_file
from totalspineseg_server.geometry import (
    Affine,
    LabelArray,
    Volume,
    labels_from_iso,
    labels_on_grid,
    labels_to_iso,
    to_ras,
)
from totalspineseg_server.io.volumes import (
    as_codes,
    as_image,
    as_integers,
    as_labels,
    read_codes,
    read_image,
    read_integers,
    read_labels,
    write_volume,
)
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.evidence import Pin
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.linter import lint as lint_codes
from totalspineseg_server.numbering.naming import name_map, step_of
from totalspineseg_server.numbering.report import doubtful_codes, report, sentence
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.segments import code_of_name
from totalspineseg_server.transforms.pieces import Step
from totalspineseg_server.trust import certainty_of, is_doubtful

Pins = Mapping[str, Sequence[float]]
"""Name of a level, such as "L5" -> a point in it, RAS mm."""
OTHER: Final = "another structure"
"""Runner-up of a level that may not be part of the column at all."""


@dataclass(frozen=True)
class NamedLevel:
    """A vertebra or disc with its name.

    Attributes:
        name: "L5", "L4-L5", "sacrum".
        code: Its number in ``labels``.
        probability: Estimated chance that the name is right, 0..1.
        runner_up: Second-best name, or "another structure".
        runner_up_probability: Its estimated chance, 0..1.
        certainty: "certain", "counted" or "doubtful", like that of the whole scan.
        doubtful: Whether this level itself is doubtful: pictures show it striped.
    """

    name: str
    code: int
    probability: float
    runner_up: str
    runner_up_probability: float
    certainty: str
    doubtful: bool


@dataclass(frozen=True)
class SpineSegmentation:
    """A segmented spine.

    Attributes:
        labels: uint8 (X, Y, Z) codes on the grid of the image, in its index order; see ``names``.
        affine: (4, 4) float64, voxel index -> RAS mm.
        levels: The named levels, superior to inferior; empty if nothing is known about the names.
        certainty: Whether the names are right: "certain", "counted" or "doubtful"; "" if that is not known.
        text: The same in one sentence; "" if it is not known.
        report: Everything that is known about the levels, as plain JSON values: ``certainty``, ``levels``,
            ``alternatives``, ``findings`` with their places (RAS mm), ``warnings``, ``models`` and ``weights``.
    """

    labels: LabelArray
    affine: Affine
    levels: tuple[NamedLevel, ...]
    certainty: str
    text: str
    report: Mapping[str, Any]
    _iso: Volume = field(repr=False, compare=False)
    _doubtful: frozenset[int] = field(repr=False, compare=False)
    _series: Path | None = field(default=None, repr=False, compare=False)

    @property
    def names(self) -> dict[int, str]:
        """Code -> name of each structure in ``labels``."""
        return {int(code): NAME_OF[int(code)] for code in np.unique(self.labels) if code}

    def save_nifti(self, path: "str | PathLike[str]") -> None:
        """Write ``labels`` as .nii.gz, .nii or .nrrd, completely or not at all.

        Args:
            path: The file; its folder exists.

        Raises:
            ValueError: The file name has another ending.
            StorageError: It cannot be written.
        """
        write_volume(Path(path), self.labels, Volume(self.labels, self.affine).grid)

    def save_dicom_seg(self, path: "str | PathLike[str]", series: "str | PathLike[str] | None" = None) -> None:
        """Write ``labels`` as DICOM SEG, with the name, code and color of each structure.

        Args:
            path: The file; its folder exists.
            series: Folder of the DICOM series that was segmented; None if the image was read from it.

        Raises:
            SettingError: The image was not read from a series, and none is named.
            GridError: The labels are not on the grid of the series.
            EmptySegmentationError: No structure was found.
            StorageError: The file cannot be written.
        """
        source = self._series if series is None else Path(series)
        if source is None:
            raise SettingError("DICOM SEG belongs to a DICOM series. Name its folder: save_dicom_seg(path, series).")
        # Import here, because highdicom is slow to import.
        from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_result

        labels, doubtful = Volume(self.labels, self.affine), is_doubtful(self.report)
        dataset = write_result(labels, source, self.report["models"], doubtful=doubtful, marked=self._doubtful)
        content = seg_bytes(dataset)
        write_file(Path(path), lambda file: file.write_bytes(content))


class Model:
    """The two loaded networks; ``load_model`` makes it."""

    def __init__(self, store: ModelStore, device: str, runtime: Literal["torch", "openvino"]) -> None:
        from totalspineseg_server.nnunet.networks import Networks
        from totalspineseg_server.nnunet.runtimes import require
        from totalspineseg_server.registry.releases import weights_text

        require(device, runtime)
        self._networks = Networks(store, device=device, runtime=runtime)
        self._turn = Lock()
        predictors = {step: self._networks.get(step) for step in (1, 2)}
        self.versions: Final = {f"step{step}": predictor.version for step, predictor in predictors.items()}
        """Step ("step1", "step2") -> version of its weights."""
        self.weights: Final = weights_text(store, {step: self._networks.folder(step).name for step in (1, 2)})
        """One sentence about the weights, with a warning if their results are not for patients."""

    def find(self, scan: pipeline.Scan, options: pipeline.Options) -> pipeline.Segmentation:
        """Return the segmentation of a scan; calls from several threads take turns.

        Raises:
            NoSpineError: The networks found no spine.
        """
        with self._turn:
            located = pipeline.locate(scan, self._networks.get(1), options)
            return pipeline.finish(located, self._networks.get(2), options)


_models: dict[None, Model] = {}
_loading = Lock()


def load_model(
    weights: str = "",
    *,
    device: str = "auto",
    runtime: Literal["torch", "openvino"] = "torch",
    data_dir: "str | PathLike[str] | None" = None,
) -> Model:
    """Load the networks once, for many calls of ``segment``.

    Args:
        weights: "starter", "official", an installed version, or a folder; "" for the weights in use.
        device: "cpu", "cuda" or "cuda:1"; "auto" for a GPU if there is one.
        runtime: Software of the networks; "openvino" is faster on a CPU; it must be installed, and it keeps converted
            networks in a folder.
        data_dir: Folder of the installed versions; None for the folder that the command uses.

    Raises:
        WeightsError: There are no such weights, or the runtime is not installed.
        TotalSpineSegError: There is no such device.
    """
    store = ModelStore(Path(data_dir) if data_dir is not None else places.model_dir(), weights=weights)
    return Model(store, device, runtime)


def segment(
    image: Any,
    affine: npt.ArrayLike | None = None,
    *,
    model: Model | None = None,
    localizer: Any = None,
    pins: Pins | None = None,
) -> SpineSegmentation:
    """Segment a spine MRI and name its levels.

    Args:
        image: Path of an image (NIfTI, NRRD, MetaImage) or of a folder with a DICOM series; a nibabel or SimpleITK
            image; or an array (X, Y, Z), then with ``affine``. Any orientation and voxel size. Not modified.
        affine: (4, 4), voxel index -> RAS mm, of an array.
        model: From ``load_model``; None for the weights in use, loaded at the first call and kept.
        localizer: Label map of another series of the patient, from this software, in any of these forms (an array as
            the pair of array and affine).
        pins: Levels that are known: name -> a point in the structure, RAS mm.

    Returns:
        The segmentation, on the grid of the image.

    Raises:
        ImageError: The image cannot be read or segmented.
        NoSpineError: There is no spine in it.
        SettingError: A pin names no level.
        WeightsError: There are no usable weights.
    """
    read = as_image(image, affine) if not _is_path(image) else read_image(Path(image))
    named = None if localizer is None else _codes(localizer)
    model = model or _default_model()
    scan = pipeline.prepare(read, warnings=read.warnings)
    options = pipeline.Options(localizer=named, pins=_pins(pins))
    found = model.find(scan, options)
    odd = pipeline.image_findings(scan, found.numbering)
    labels = Volume(found.labels, scan.iso.affine)
    more = {"warnings": list(scan.warnings), "models": model.versions, "weights": model.weights}
    series = Path(image) if _is_path(image) and Path(image).is_dir() else None
    return _result(scan.labels_to_input(found.labels), read.affine, labels, found.numbering, odd, more, series)


def number(
    raw: Any,
    affine: npt.ArrayLike | None = None,
    *,
    step: Step | None = None,
    localizer: Any = None,
    pins: Pins | None = None,
) -> SpineSegmentation:
    """Name the levels of a network's raw map, without running a network.

    Args:
        raw: Classes of the step-1 or step-2 network in any form that ``segment`` takes. Not modified.
        affine: (4, 4), voxel index -> RAS mm, of an array.
        step: The network that made the map; None to recognize it by its values.
        localizer: See ``segment``.
        pins: See ``segment``.

    Returns:
        The named map; in that of step 1 the code of the sacrum stands for all vertebrae but C1.

    Raises:
        LabelError: It is a finished label map, or has other values.
        NoSpineError: It shows no disc or no canal.
        SettingError: A pin names no level.
    """
    volume = as_labels(as_image(raw, affine, usable=False)) if not _is_path(raw) else read_labels(Path(raw))
    iso = labels_to_iso(volume)
    other = None if localizer is None else labels_on_grid(_codes(localizer), iso.grid)
    labels, numbering = name_map(iso, step or step_of(iso.data), localizer=other, pins=_pins(pins))
    named = labels_from_iso(labels, iso.grid, volume.grid)
    more: dict[str, Any] = {"warnings": [], "models": {}, "weights": ""}
    return _result(named, volume.affine, Volume(labels, iso.affine), numbering, (), more, None)


def lint(labels: Any, affine: npt.ArrayLike | None = None) -> list[dict[str, Any]]:
    """Return the errors in a label map of this software: gaps, duplicates, wrong order, fragments.

    Args:
        labels: Result of ``segment`` or ``number``, or a label map in any form that ``segment`` takes. Not modified.
        affine: (4, 4), voxel index -> RAS mm, of an array.

    Returns:
        A dictionary for each finding: ``kind``, ``message`` (what to check), ``code``, ``voxels`` and ``point_mm``
        (where to look, RAS mm, or None).

    Raises:
        ImageError: It is not a label map.
    """
    volume = to_ras(_integers(labels, affine))
    return [finding.as_dict(volume.affine) for finding in lint_codes(volume.data, volume.spacing)]


def measure(labels: Any, affine: npt.ArrayLike | None = None) -> list[dict[str, Any]]:
    """Measure discs, vertebral bodies, canal, cord and the curves of the column, as in ``measurements.csv``.

    Args:
        labels: Result of ``segment``, or a label map in any form that ``segment`` takes. Not modified.
        affine: (4, 4), voxel index -> RAS mm, of an array.

    Returns:
        One row for each level, superior to inferior, then sacrum, canal and cord, and one for the whole column; lengths
        in mm, areas in mm2, angles in degrees; None for values that cannot be measured, and for the intensities of the
        image. ``names`` says how sure the name of a level is, if that is known. Without a canal there are only volumes
        and places.

    Raises:
        ImageError: It is not a label map of this software.
    """
    from totalspineseg_server.measurements import structure_rows

    if isinstance(labels, SpineSegmentation):
        iso, doubtful, certainty = labels._iso, labels._doubtful, certainty_of(labels.report)
        grid = Volume(labels.labels, labels.affine).grid
    else:
        volume = _codes(labels if affine is None else (labels, affine))
        iso, doubtful, certainty, grid = labels_to_iso(volume), frozenset[int](), None, volume.grid
    return structure_rows(iso, grid, doubtful=doubtful, certainty=certainty, sizes=not grid.is_skewed)


def _is_path(source: Any) -> bool:
    return isinstance(source, str | PathLike)


def _default_model() -> Model:
    """Return the model of the weights in use, loaded at the first call."""
    with _loading:
        if None not in _models:
            _models[None] = load_model()
        return _models[None]


def _integers(labels: Any, affine: npt.ArrayLike | None) -> Volume:
    if isinstance(labels, SpineSegmentation):
        return Volume(labels.labels, labels.affine)
    return read_integers(Path(labels)) if _is_path(labels) else as_integers(as_image(labels, affine, usable=False))


def _codes(source: Any) -> Volume:
    """Return a label map of this software's codes.

    Raises:
        ImageError: It has other values.
    """
    if _is_path(source):
        return read_codes(Path(source))
    data, affine = source if isinstance(source, tuple) else (source, None)
    return as_codes(as_labels(_integers(data, affine)), "The label map")


def _pins(pins: Pins | None) -> tuple[Pin, ...]:
    found = []
    for name, point in (pins or {}).items():
        code = code_of_name(name)
        if code is None or len(point) != len("xyz"):
            raise SettingError(f"expected the name of a level and a point of three numbers, got {name!r}: {point!r}")
        x, y, z = map(float, point)
        found.append(Pin(code, (x, y, z)))
    return tuple(found)


def _result(
    labels: LabelArray,
    affine: Affine,
    iso: Volume,
    numbering: Numbering | None,
    odd: Sequence[Finding],
    more: Mapping[str, Any],
    series: Path | None,
) -> SpineSegmentation:
    known = {**report(numbering, (*odd, *lint_codes(iso.data, iso.spacing)), affine=iso.affine), **more}
    doubtful, certainty = doubtful_codes(numbering, iso.data), certainty_of(known) or ""
    levels = () if numbering is None else numbering.levels
    named = tuple(
        NamedLevel(
            level.name,
            level.code,
            level.probability,
            NAME_OF[level.runner_up] if level.runner_up else OTHER,
            level.runner_up_probability,
            certainty,
            level.code in doubtful,
        )
        for level in levels
    )
    return SpineSegmentation(labels, affine, named, certainty, sentence(known), known, iso, doubtful, series)


__all__ = ["ImageError", "TotalSpineSegError", "lint", "load_model", "measure", "number", "segment"]
