"""Write the files of a scan, with the folders and names that users of TotalSpineSeg know."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.files import storage_errors, write_text
from totalspineseg_server.geometry import AnyArray, FloatArray, LabelArray, Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.pipeline import Located, Scan, Segmentation, named_levels
from totalspineseg_server.preview import (
    LEVEL_CODES,
    STEP1_TAGS,
    STEP_PALETTE,
    Course,
    Picture,
    Plane,
    course_of,
    save_picture,
    sheet_svg,
)

INPUT, PREVIEW = "input", "preview"
FOLDERS: Final = (
    INPUT,
    PREVIEW,
    "step1_raw",
    "step1_output",
    "step1_cord",
    "step1_canal",
    "step1_levels",
    "step2_raw",
    "step2_output",
)
REPORTS: Final = "reports"
"""Folder with one JSON file and one sheet of pictures for each scan; always written."""
ENDING: Final = ".nii.gz"
PICTURES: Final = (INPUT, "step1_raw", "step1_output", "levels", "step2_raw", "step2_output")
"""Kinds of sagittal previews, each without and with tags."""
CORONAL: Final = "coronal_tags"
SHEET: Final = ".svg"
"""Ending of a scan's sheet: its pictures for the report of the run."""


@dataclass(frozen=True)
class Result:
    """Result of the networks for one scan.

    Attributes:
        located: Result of step 1.
        segmentation: Result of step 2; None if the run stops after step 1.
        doubtful: Codes whose level is doubtful.
        integers: Whether the image as read has whole numbers, so that its preprocessed form is rounded.
        image: The image as read, whose values are measured; None to measure none.
    """

    located: Located
    segmentation: Segmentation | None
    doubtful: frozenset[int] = frozenset()
    integers: bool = False
    image: Volume | None = None

    @property
    def labels(self) -> LabelArray:
        """The codes of the last step, on the 1 mm grid."""
        return self.located.labels if self.segmentation is None else self.segmentation.labels

    @cached_property
    def labels_on_input(self) -> LabelArray:
        """The last step's codes, on the grid of the image as read."""
        return self.located.scan.labels_to_input(self.labels)

    @cached_property
    def levels(self) -> LabelArray:
        """SCT disc points on the 1 mm grid, with the names of the last step."""
        return self.located.levels if self.segmentation is None else named_levels(self.located, self.segmentation)


def make_folders(output: Path, keep: Collection[str]) -> None:
    """Create the output folders.

    Raises:
        StorageError: They cannot be created.
    """
    with storage_errors(output):
        for folder in (*keep, REPORTS):
            (output / folder).mkdir(parents=True, exist_ok=True)


def write_result(output: Path, name: str, result: Result, *, iso: bool, keep: Collection[str]) -> list[str]:
    """Write all files of a scan except its record; each appears complete or not at all.

    Args:
        output: OUTPUT, whose folders exist.
        name: The scan's name.
        result: Result of the networks. Not modified.
        iso: Whether to write results on the 1 mm grid instead of the input's.
        keep: Folders to write.

    Returns:
        The files, relative to ``output``.

    Raises:
        StorageError: A file could not be written.
    """
    scan = result.located.scan
    written = []
    for folder, make in _volumes(result, iso).items():
        if folder in keep:
            file = f"{folder}/{name}{ENDING}"
            always_iso = iso or folder == INPUT
            write_volume(output / file, make(), scan.iso.grid if always_iso else scan.grid)
            written.append(file)
    course = course_of(result.labels, scan.iso.grid)
    plane = Plane(scan.iso, course, sagittal=True)
    if PREVIEW in keep:
        for kind, picture in _pictures(plane, course, result):
            file = f"{PREVIEW}/{name}_{kind}.jpg"
            save_picture(output / file, picture)
            written.append(file)
    file = f"{REPORTS}/{name}{SHEET}"
    tags = STEP1_TAGS if result.segmentation is None else LEVEL_CODES
    write_text(output / file, sheet_svg(scan.iso, result.labels, course, doubtful=result.doubtful, tags=tags))
    return [*written, file]


def result_files(name: str, *, keep: Collection[str], step1: bool) -> tuple[str, ...]:
    """Return the files a run may write for a scan, relative to the output, except its record.

    Args:
        name: The scan's name.
        keep: Folders the run writes.
        step1: Whether the run stops after step 1.
    """
    kinds = [kind for kind in PICTURES if not (step1 and kind.startswith("step2"))]
    pictures = (*kinds, *(f"{kind}_tags" for kind in kinds), CORONAL)
    return (
        *(f"{folder}/{name}{ENDING}" for folder in keep if folder != PREVIEW),
        *(f"{PREVIEW}/{name}_{kind}.jpg" for kind in pictures if PREVIEW in keep),
        f"{REPORTS}/{name}{SHEET}",
    )


def _volumes(result: Result, iso: bool) -> Mapping[str, Callable[[], AnyArray]]:
    """Return folder -> a function that computes the array to write there."""
    located, scan, second = result.located, result.located.scan, result.segmentation

    def labels(data: LabelArray) -> Callable[[], AnyArray]:
        def on_input() -> AnyArray:
            return result.labels_on_input if data is result.labels else scan.labels_to_input(data)

        return lambda: data if iso else on_input()

    def soft(data: FloatArray) -> Callable[[], AnyArray]:
        return lambda: data if iso else scan.soft_to_input(data)

    volumes: dict[str, Callable[[], AnyArray]] = {
        INPUT: lambda: _stored_image(scan, result.integers),
        "step1_raw": labels(located.raw),
        "step1_output": labels(located.labels),
        "step1_cord": soft(located.soft_cord),
        "step1_canal": soft(located.soft_canal),
        "step1_levels": lambda: result.levels if iso else scan.points_to_input(result.levels),
    }
    if second is not None:
        volumes |= {"step2_raw": labels(second.raw), "step2_output": labels(second.labels)}
    return volumes


def _stored_image(scan: Scan, integers: bool) -> AnyArray:
    """Return the preprocessed image, as int16 (a quarter of the bytes) if the original had such whole numbers."""
    data = scan.iso.data
    limits = np.iinfo(np.int16)
    if integers and data.min() >= limits.min and data.max() <= limits.max:
        return np.rint(data).astype(np.int16)
    return data


def _pictures(plane: Plane, course: Course, result: Result) -> Iterator[tuple[str, Picture]]:
    """Yield every kind of preview without and with tags, and the coronal one."""
    located, second = result.located, result.segmentation
    step1 = located.labels
    final, final_tags = (step1, STEP1_TAGS) if second is None else (second.labels, LEVEL_CODES)
    kinds: dict[str, tuple[LabelArray, Collection[int], dict[str, Any]]] = {
        "input": (final, final_tags, {"palette": {}}),
        "step1_raw": (step1, STEP1_TAGS, {"paint": located.raw, "palette": STEP_PALETTE[1]}),
        "step1_output": (step1, STEP1_TAGS, {}),
        "levels": (final, STEP1_TAGS, {"palette": {}, "points": result.levels}),
    }
    if second is not None:
        kinds["step2_raw"] = (second.labels, LEVEL_CODES, {"paint": second.raw, "palette": STEP_PALETTE[2]})
        kinds["step2_output"] = (second.labels, LEVEL_CODES, {})
    for kind, (labels, tags, options) in kinds.items():
        yield kind, plane.picture(labels, tags=(), doubtful=result.doubtful, **options)
        yield f"{kind}_tags", plane.picture(labels, tags=tags, doubtful=result.doubtful, **options)
    coronal = Plane(located.scan.iso, course, sagittal=False)
    yield CORONAL, coronal.picture(final, tags=final_tags, doubtful=result.doubtful)
