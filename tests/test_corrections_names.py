"""Tests that submitted labels become codes by the names of their segments, or are refused with a reason."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from totalspineseg_server.anatomy import NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.submission import map_names, read_submission
from totalspineseg_server.errors import GridError, ImageError, LabelError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.segments import STEP1_WIRE_LABELS, Segment, Submission, from_wire, to_wire

OBLIQUE = np.array([[0.9, -0.3, 0, 5], [0.25, 1.1, 0.1, -7], [0, 0.05, 3.3, 11], [0, 0, 0, 1.0]])
SHIFTED = OBLIQUE + np.array([[0, 0, 0, 0.5], [0] * 4, [0] * 4, [0] * 4])
SHAPE = (6, 5, 4)
GRID = Grid(SHAPE, OBLIQUE)


def info(*names: str, idx: list[int] | None = None) -> list[dict[str, Any]]:
    return [{"name": name, "idx": (idx or range(1, 99))[k]} for k, name in enumerate(names)]


def blocks(*values: int) -> npt.NDArray[np.uint8]:
    """One slab along x per value."""
    data = np.zeros(SHAPE, dtype=np.uint8)
    for k, value in enumerate(values):
        data[k] = value
    return data


def submitted(tmp_path: Path, data: npt.NDArray[np.uint8], label_info: object, ending: str = ".nii.gz") -> Submission:
    path = tmp_path / f"label{ending}"
    write_volume(path, data, GRID)
    return read_submission(path, label_info)


def write_seg_nrrd(path: Path, layers: list[npt.NDArray[np.uint8]], fields: dict[str, str]) -> None:
    """Write a file as 3D Slicer does: layers as the fastest axis, segments in the header."""
    stack = np.stack([layer.transpose() for layer in layers], axis=-1)
    image = sitk.GetImageFromArray(stack if len(layers) > 1 else stack[..., 0], isVector=len(layers) > 1)
    lps = np.diag([-1, -1, 1, 1]) @ OBLIQUE
    spacing = np.sqrt((OBLIQUE[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    for key, value in fields.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), useCompression=True)


def segment_fields(*segments: tuple[str, int, int]) -> dict[str, str]:
    fields = {}
    for k, (name, value, layer) in enumerate(segments):
        fields |= {f"Segment{k}_Name": name, f"Segment{k}_LabelValue": str(value), f"Segment{k}_Layer": str(layer)}
    return fields


ORTHOGONAL = np.diag([1.5, 2.0, 3.0, 1.0])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_renumbered_segments_come_back_as_their_codes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"label{ending}"
    write_volume(path, blocks(1, 2, 3), Grid(SHAPE, ORTHOGONAL))
    mapped = map_names(read_submission(path, info("L4", "disc_L4_L5", "sacrum")), Grid(SHAPE, ORTHOGONAL))
    assert [NAME_OF[int(v)] for v in mapped.codes[:3, 0, 0]] == ["L4", "L4-L5", "sacrum"]
    assert mapped.codes[3:].max() == 0
    assert mapped.step == 2
    assert [NAME_OF[c] for c in mapped.present] == ["L4", "sacrum", "L4-L5"]


def test_idx_shifted_by_a_skipped_segment_is_ignored(tmp_path: Path) -> None:
    """After a scribbles segment, every level came back as its neighbor."""
    mapped = map_names(submitted(tmp_path, blocks(1, 2), info("L4", "L5", idx=[2, 3])), GRID)
    assert [NAME_OF[int(v)] for v in mapped.codes[:2, 0, 0]] == ["L4", "L5"]


@pytest.mark.parametrize(
    ("values", "label_info", "error", "match"),
    [
        pytest.param((1, 2), info("L4", "Segment_1"), LabelError, "'Segment_1'", id="unknown"),
        pytest.param((1, 2), info("L4_5", "S1"), LabelError, r"'L4_5' \('L4-L5'\?\), 'S1' \('sacrum'\?\)", id="meant"),
        pytest.param((1, 2), info("L4", "L4"), LabelError, "'L4' and 'L4' stand for the same", id="duplicate"),
        pytest.param((1, 2), info("L4", "vertebrae_L4"), LabelError, "for the same", id="duplicate by alias"),
        pytest.param((1,), None, LabelError, "label_info", id="no names"),
        pytest.param((1,), [], LabelError, "label_info", id="empty names"),
        pytest.param((1,), "L4", LabelError, "label_info", id="a text"),
        pytest.param((1,), [{"idx": 1}], LabelError, "'name'", id="entry without name"),
        pytest.param((1,), [3], LabelError, "'name'", id="entry is a number"),
        pytest.param((1, 3), info("L4", "L5"), LabelError, "value 3 without", id="value without name"),
        pytest.param((), info("L4"), LabelError, "empty", id="nothing marked"),
        pytest.param((1, 2), info("L4", "review T12?"), LabelError, "Remove the marks", id="review marks drawn"),
        pytest.param((1, 2), info("L4", "vertebrae"), LabelError, "Remove 'vertebrae'", id="both steps at once"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, values: tuple[int, ...], label_info: object, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        map_names(submitted(tmp_path, blocks(*values), label_info), GRID)


def test_empty_review_and_vertebrae_segments_do_no_harm(tmp_path: Path) -> None:
    """A scene that once showed step 1 or the review keeps their empty segments, and its label was refused."""
    names = info("L4", "vertebrae", "sacrum", "review L4?")
    mapped = map_names(submitted(tmp_path, blocks(1, 3), names), GRID)
    assert [NAME_OF[c] for c in mapped.present] == ["L4", "sacrum"]
    assert mapped.step == 2


def test_a_segment_without_voxels_says_nothing_whatever_its_name(tmp_path: Path) -> None:
    """3D Slicer adds an empty segment for each published name that the scene lacks, so that a renamed level was
    refused."""
    names = info("L5", "L4", "L4-L5", "L5", "L4-L5", "Segment_1")
    mapped = map_names(submitted(tmp_path, blocks(1, 2, 3), names), GRID)
    assert [NAME_OF[int(v)] for v in mapped.codes[:3, 0, 0]] == ["L5", "L4", "L4-L5"]


def test_vertebrae_in_one_piece_is_a_step_1_label(tmp_path: Path) -> None:
    mapped = map_names(submitted(tmp_path, blocks(1, 2, 3), info("vertebrae", "L4-L5", "C1")), GRID)
    assert mapped.step == 1
    assert [NAME_OF[int(v)] for v in mapped.codes[:3, 0, 0]] == ["sacrum", "L4-L5", "C1"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Grid((6, 5, 5), OBLIQUE), id="shape"),
        pytest.param(Grid(SHAPE, SHIFTED), id="shifted"),
        pytest.param(Grid(SHAPE, OBLIQUE @ np.diag([-1.0, 1, 1, 1])), id="flipped"),
    ],
)
def test_another_grid_is_refused(tmp_path: Path, other: Grid) -> None:
    with pytest.raises(GridError, match="mm apart"):
        map_names(submitted(tmp_path, blocks(1), info("L4")), other)


def test_header_rounding_does_not_make_another_grid(tmp_path: Path) -> None:
    nudged = Grid(SHAPE, OBLIQUE + 1e-5)
    assert map_names(submitted(tmp_path, blocks(1), info("L4")), nudged).present


def test_seg_nrrd_brings_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "s.seg.nrrd"
    write_seg_nrrd(path, [blocks(5, 9)], segment_fields(("T12", 9, 0), ("L1", 5, 0)))
    mapped = map_names(read_submission(path, info("L5", "L4")), read_submission(path, None).grid)
    assert [NAME_OF[int(v)] for v in mapped.codes[:2, 0, 0]] == ["L1", "T12"]


def test_overlapping_layers_are_all_read(tmp_path: Path) -> None:
    """Of two overlapping segments, the one in the second layer was lost."""
    path = tmp_path / "s.seg.nrrd"
    segments = segment_fields(("canal", 1, 0), ("cord", 1, 1), ("L4", 2, 0), ("L4-L5", 2, 1))
    write_seg_nrrd(path, [blocks(1, 1, 2, 2), blocks(0, 1, 0, 2, 2)], segments)
    submission = read_submission(path, None)
    mapped = map_names(submission, submission.grid)
    names = [NAME_OF.get(int(v)) for v in mapped.codes[:, 0, 0]]
    assert names == ["canal", "cord", "L4", "L4", "L4-L5", None]
    assert mapped.overlap_voxels == 2 * SHAPE[1] * SHAPE[2]


@pytest.mark.parametrize(
    ("segments", "match"),
    [
        pytest.param({"Segment0_Name": "L4"}, "LabelValue", id="no value"),
        pytest.param(segment_fields(("L4", 1, 0), ("L5", 1, 0)), "one value for two", id="value shared"),
        pytest.param(segment_fields(("L4", 1, 0), ("L5", 1, 4)), "layer.*has 1", id="layer missing"),
    ],
)
def test_damaged_seg_nrrd_is_refused(tmp_path: Path, segments: dict[str, str], match: str) -> None:
    path = tmp_path / "s.seg.nrrd"
    write_seg_nrrd(path, [blocks(1)], segments)
    with pytest.raises(LabelError, match=match):
        submission = read_submission(path, None)
        map_names(submission, submission.grid)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd", ".bin"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"no image at all")
    with pytest.raises(ImageError, match=r"readable|required|cannot be read"):
        read_submission(path, info("L4"))


def test_the_submission_is_not_modified() -> None:
    data = blocks(1, 2)
    before = data.copy()
    submission = Submission((data,), GRID, (Segment("L4", 1), Segment("L5", 2)))
    map_names(submission, GRID)
    np.testing.assert_array_equal(data, before)


def test_wire_ids_are_contiguous_and_come_back() -> None:
    codes = np.array([0, *NAME_OF], dtype=np.uint8).reshape(-1, 1, 1)
    wire = to_wire(codes)
    assert wire.ravel().tolist() == list(range(len(NAME_OF) + 1))
    np.testing.assert_array_equal(from_wire(wire), codes)
    assert list(WIRE_LABELS.values()) == list(STEP1_WIRE_LABELS.values()) == list(range(1, len(NAME_OF) + 1))
    differing = [(a, b) for a, b in zip(WIRE_LABELS, STEP1_WIRE_LABELS, strict=True) if a != b]
    assert differing == [("sacrum", "vertebrae")]


@pytest.mark.parametrize("convert", [to_wire, from_wire])
def test_a_foreign_value_is_refused(convert: Any) -> None:
    with pytest.raises(LabelError, match=r"\[200\]"):
        convert(np.array([[[0, 200]]], dtype=np.uint8))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_a_label_with_reversed_slices_is_taken_voxel_for_voxel(tmp_path: Path, ending: str) -> None:
    """3D Slicer reverses the slices of left-handed images, and every label for such an image was refused."""
    image = Grid(SHAPE, OBLIQUE @ np.diag([1.0, 1, -1, 1]))
    reversed_slices = np.eye(4)
    reversed_slices[2, 2:] = -1, SHAPE[2] - 1
    painted = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8) % 3
    path = tmp_path / f"label{ending}"
    write_volume(path, painted[:, :, ::-1], Grid(SHAPE, image.affine @ reversed_slices))
    if ending == ".seg.nrrd":
        written = sitk.ReadImage(str(path))
        for key, value in segment_fields(("L4", 1, 0), ("L5", 2, 0)).items():
            written.SetMetaData(key, value)
        sitk.WriteImage(written, str(path))
    found = map_names(read_submission(path, info("L4", "L5")), image).codes
    np.testing.assert_array_equal(found, np.array([0, 44, 45], np.uint8)[painted])
