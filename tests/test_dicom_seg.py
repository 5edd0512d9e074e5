"""Tests of writing and reading DICOM SEG: names and positions of voxels stay, whoever wrote or reads the file."""

import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pydicom_seg
import pytest
import SimpleITK as sitk
from pydicom import Dataset, dcmread

from dicom_series import OBLIQUE, SIZE, STACKS, at, enhanced, picture, save, slices
from totalspineseg_server.anatomy import BY_CODE, CODE_OF, DISCS, NAME_OF, STRUCTURES, VERTEBRAE, WIRE_LABELS, column
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.errors import EmptySegmentationError, GridError, ImageError, LabelError
from totalspineseg_server.geometry import Grid, Volume, to_ras
from totalspineseg_server.io.dicom.headers import read_headers, uid_from
from totalspineseg_server.io.dicom.seg_object import is_seg, seg_reference
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_seg
from totalspineseg_server.io.dicom.terms import cielab_of, dicom_cielab_of, term_of
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume
from totalspineseg_server.pacs.results import result_segmentation
from totalspineseg_server.segments import to_wire

GRID = Grid(SIZE, OBLIQUE)
WRITTEN = Path(__file__).parent / "dicom_written"
DCMQI = Path(sys.executable).parent


def codes(*values: int, size: tuple[int, int, int] = SIZE) -> np.ndarray:
    """A label map with ragged pieces, including the ends and corners."""
    labels = np.zeros(size, np.uint8)
    rng = np.random.default_rng(7)
    for value in values:
        labels[rng.random(size) < 0.15] = value
    labels[-1, 0, 0], labels[0, -1, -1] = values[0], values[-1]
    return labels


SPINE = (1, 2, 44, 45, 50, 95, 100)


def written(labels: np.ndarray, sources: Any, affine: np.ndarray = OBLIQUE, **options: Any) -> Dataset:
    return write_seg(Volume(labels, affine), sources, model="starter", version="1.2.3", **options)


def reread(seg: Dataset) -> Dataset:
    """The object as a reader gets it: through the bytes of a file."""
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(seg_bytes(seg)))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("dicom") / "series", slices())


@pytest.fixture(scope="module")
def ours(series: Path) -> bytes:
    return seg_bytes(written(codes(*SPINE), series))


# Written and read by this project


@pytest.mark.parametrize(
    ("certainty", "description"),
    [
        ("certain", "Spine segmentation"),
        ("counted", "Spine segmentation"),
        (None, "Spine segmentation"),
        ("doubtful", "Spine segmentation, levels DOUBTFUL"),
    ],
)
def test_a_result_says_what_made_it_and_whether_its_levels_are_certain(
    series: Path, tmp_path: Path, certainty: str | None, description: str
) -> None:
    """In a PACS a guess looked like a certain result, and the second of two trained versions was cut off."""
    write_volume(tmp_path / "result.nii", to_wire(codes(*SPINE)), GRID)
    models = {f"step{k}": f"trained-20260131T120000Z-abc123-{k}1b2c3d4" for k in (1, 2)}
    report = {"label_names": WIRE_LABELS, "models": models, "numbering": {"certainty": certainty}}
    seg = pydicom.dcmread(BytesIO(result_segmentation(tmp_path / "result.nii", series, report)))
    assert (seg.SeriesDescription, seg.ContentDescription) == (description, description)
    assert list(seg.SoftwareVersions) == list(models.values())


def test_a_doubtful_level_is_named_so_in_a_pacs_and_comes_back_unconfirmed(series: Path, tmp_path: Path) -> None:
    """Which of the levels were doubtful was lost: only the description of the whole said it."""
    write_volume(tmp_path / "result.nii", to_wire(codes(*SPINE)), GRID)
    report = {"label_names": WIRE_LABELS, "models": {"step1": "a"}, "marked": ["L5-S"], "numbering": None}
    content = result_segmentation(tmp_path / "result.nii", series, report)
    segments = {item.SegmentLabel: item for item in pydicom.dcmread(BytesIO(content)).SegmentSequence}
    assert [label for label in segments if "?" in label] == ["L5-S ?"]
    assert segments["L5-S ?"].TrackingID == "L5-S", "the same structure in every segmentation of a study"
    assert map_names(read_seg(content, GRID), GRID).unconfirmed == (CODE_OF["L5-S"],)


@pytest.mark.parametrize("affine", STACKS.values(), ids=STACKS.keys())
@pytest.mark.parametrize("turn", [False, True], ids=["axes of the series", "axes in RAS order"])
def test_codes_come_back_as_they_were_sent(affine: np.ndarray, turn: bool) -> None:
    volume = Volume(codes(*SPINE), affine)
    volume = to_ras(volume) if turn else volume
    before = volume.data.copy()
    seg = write_seg(volume, slices(affine)[::-1], model="m", version="1")
    mapped = map_names(read_seg(seg_bytes(seg), volume.grid, sources=slices(affine)), volume.grid)
    np.testing.assert_array_equal(mapped.codes, before)
    np.testing.assert_array_equal(volume.data, before)
    assert mapped.step == 2


def test_a_partial_field_of_view_has_only_the_frames_it_needs(series: Path) -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[3, 4, 1], labels[5, 5, 3] = 44, 95
    seg = reread(written(labels, series))
    assert seg.NumberOfFrames == 2
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID), GRID).codes, labels)


def test_a_series_without_optional_tags(tmp_path: Path) -> None:
    """Incomplete coding tags made MONAI Label's own writer fail with 500."""
    stored = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "PixelData"}
    stored |= {
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SamplesPerPixel",
        "PixelRepresentation",
    }
    stored |= {"BitsAllocated", "BitsStored", "HighBit", "PhotometricInterpretation"}

    def strip(item: Dataset, _: int) -> None:
        for element in list(item):
            if element.keyword not in stored:
                del item[element.tag]

    folder = save(tmp_path / "series", slices(), strip)
    labels = codes(*SPINE)
    seg = reread(written(labels, folder))
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID, sources=folder), GRID).codes, labels)
    assert seg.PatientName == ""
    assert seg.PatientID == ""
    assert seg.FrameOfReferenceUID


@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_odd_patient_tags_are_kept_or_emptied(tmp_path: Path) -> None:
    odd = slices(
        SpecificCharacterSet="ISO_IR 192",
        PatientName="山田^太郎",
        PatientSex="X",
        PatientBirthDate="1970",
        StudyDate="soon",
        PatientID="Ä-1",
    )
    seg = reread(written(codes(44), odd))
    assert str(seg.PatientName) == "山田^太郎"
    assert seg.PatientID == "Ä-1"
    assert (seg.PatientSex, seg.PatientBirthDate, seg.StudyDate) == ("", "", "")


@pytest.mark.parametrize("parts", [1, 2], ids=["one object", "two objects"])
def test_multi_frame_sources_are_referred_to_by_frame(tmp_path: Path, parts: int) -> None:
    single = slices()
    shuffled = [single[k] for k in (3, 0, 4, 2, 1)]
    objects = [enhanced(shuffled)] if parts == 1 else [enhanced(shuffled[:3]), enhanced(shuffled[3:], uid_from("b"))]
    folder = save(tmp_path / "series", objects)
    labels = codes(*SPINE)
    seg = reread(written(labels, folder))
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID, sources=folder), GRID).codes, labels)
    places = {
        (item.SOPInstanceUID, number): groups.PlanePositionSequence[0].ImagePositionPatient
        for item in objects
        for number, groups in enumerate(item.PerFrameFunctionalGroupsSequence, start=1)
    }
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        place = places[source.ReferencedSOPInstanceUID, int(source.ReferencedFrameNumber)]
        assert groups.PlanePositionSequence[0].ImagePositionPatient == place
    assert sorted(referenced(seg)) == sorted(str(item.SOPInstanceUID) for item in objects)


def referenced(seg: Dataset) -> list[str]:
    """The objects on which a segmentation says it was drawn."""
    return [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]


def test_headers_as_a_pacs_answers_them_are_enough(series: Path) -> None:
    answered = [Dataset.from_json(header.to_json()) for header in read_headers(series)]
    labels = codes(*SPINE)
    seg = written(labels, answered)
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID, sources=answered), GRID).codes, labels)


def test_a_step1_map_says_vertebrae(series: Path) -> None:
    labels = codes(1, 2, 11, 50, 63)
    seg = written(labels, series, names={**NAME_OF, 50: "vertebrae"})
    assert "vertebrae" in [item.SegmentLabel for item in seg.SegmentSequence]
    assert "sacrum" not in [item.SegmentLabel for item in seg.SegmentSequence]
    assert map_names(read_seg(seg, GRID), GRID).step == 1


# What the segments say


def test_every_segment_says_what_it_is(ours: bytes, series: Path) -> None:
    seg = pydicom.dcmread(pydicom.filebase.DicomBytesIO(ours))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == [NAME_OF[code] for code in SPINE]
    assert [item.SegmentNumber for item in seg.SegmentSequence] == list(range(1, len(SPINE) + 1))
    for code, item in zip(SPINE, seg.SegmentSequence, strict=True):
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert "starter" in item.SegmentAlgorithmName
        assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2.3"
        assert item.TrackingID == NAME_OF[code]
        assert item.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
        assert item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
        assert item.RecommendedDisplayCIELabValue == dicom_cielab_of(BY_CODE[code].color)
    assert seg.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0].CodeValue == "11994002"
    assert seg.SegmentSequence[5].SegmentedPropertyTypeCodeSequence[0].CodeValue == "84020006"
    header = read_headers(series)[0]
    assert seg.FrameOfReferenceUID == header.FrameOfReferenceUID
    assert seg.StudyInstanceUID == header.StudyInstanceUID
    assert seg.SeriesInstanceUID != header.SeriesInstanceUID
    assert seg.PatientName == "SYNTHETIC^SMALL"
    again = written(codes(*SPINE), series)
    assert [item.TrackingUID for item in again.SegmentSequence] == [item.TrackingUID for item in seg.SegmentSequence]
    assert again.SOPInstanceUID != seg.SOPInstanceUID


def test_a_patient_of_one_name_is_not_named_in_warnings() -> None:
    """highdicom logged a warning with the patient's name."""
    assert str(reread(written(codes(44), slices(PatientName="ANONYMOUS"))).PatientName) == "ANONYMOUS"


def test_a_corrected_label_says_so(series: Path) -> None:
    """What a reader changed must not look like the work of a model alone."""
    seg = reread(written(codes(*SPINE), series, corrected_by="Dr. A^B=c\\"))
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert str(seg.ContentCreatorName) == "Dr. A B c"
    unknown = reread(written(codes(44), series, corrected_by=""))
    assert unknown.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert unknown.ContentCreatorName == ""


def test_labels_kept_as_nifti_lie_on_the_grid_of_the_series(tmp_path: Path, series: Path) -> None:
    labels = codes(*SPINE)
    write_volume(tmp_path / "labels.nii.gz", labels, read_image(series).grid)
    seg = write_seg(read_labels(tmp_path / "labels.nii.gz"), series, model="m", version="1")
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID), GRID).codes, labels)


def test_reference(ours: bytes, series: Path, tmp_path: Path) -> None:
    headers = read_headers(series)
    found = seg_reference(ours)
    assert found.referenced_series == (str(headers[0].SeriesInstanceUID),)
    assert sorted(referenced(dcmread(BytesIO(ours)))) == sorted(str(header.SOPInstanceUID) for header in headers)
    assert found.labels == tuple(NAME_OF[code] for code in SPINE)
    assert dcmread(BytesIO(ours)).SegmentSequence[0].SegmentAlgorithmName == "TotalSpineSeg starter"
    assert is_seg(ours)
    assert not is_seg(next(series.iterdir()))
    assert not is_seg(b"hello")
    (tmp_path / "a.dcm").write_bytes(ours)
    assert is_seg(tmp_path / "a.dcm")


def test_every_structure_has_a_term() -> None:
    terms = {structure.name: term_of(structure.name) for structure in STRUCTURES}
    general = [name for name, term in terms.items() if term.code in {"51282000", "360499006"}]
    assert general == ["T13", "L6", "T12-T13", "L5-L6"]
    own = [term.code for name, term in terms.items() if name not in general]
    assert len(set(own)) == len(own)
    assert terms["L4"].meaning == "L4 vertebra"
    assert terms["T12-L1"].meaning == "T12/L1 disc"
    assert terms["L5-S"].meaning == "L5/S1 disc"


@pytest.mark.parametrize(
    ("name", "present", "general"),
    [
        ("L5-S", ("L4", "L5", "sacrum"), False),
        ("L5-S", ("L5", "L6", "sacrum"), True),
        ("L5-S", ("L4", "sacrum"), True),
        ("L5-S", ("sacrum",), False),
        ("T12-L1", ("T11", "T12", "L1"), False),
        ("T12-L1", ("T12", "T13", "L1"), True),
        ("T12-L1", ("T11", "L1"), True),
    ],
    ids=["usual", "L6", "L4 on the sacrum", "field of view", "usual T", "T13", "T11 on L1"],
)
def test_a_disc_below_another_vertebra_has_no_level_in_its_code(
    name: str, present: tuple[str, ...], general: bool
) -> None:
    assert (term_of(name, present).code == "360499006") == general


def test_term_of_another_name() -> None:
    with pytest.raises(KeyError):
        term_of("tumor")


def test_codes_agree_with_the_dictionaries_at_hand() -> None:
    from pydicom.sr._snomed_dict import mapping

    known = {"C1": "T-11610", "cord": "T-A7010", "sacrum": "T-11AD0", "canal": "T-1151F", "T13": "T-11510"}
    assert {name: mapping["SCT"][term_of(name).code] for name in known} == known


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20))],
    ids=["white", "black", "red"],
)
def test_colors_as_published(rgb: tuple[int, int, int], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(cielab_of(rgb), lab, atol=0.02)


def test_white_and_black_in_dicom() -> None:
    assert dicom_cielab_of((255, 255, 255)) == [65535, 32896, 32896]
    assert dicom_cielab_of((0, 0, 0)) == [0, 32896, 32896]


def test_neighbors_have_distinct_colors() -> None:
    """Hashed names gave T1 to T12 nearly the same color."""
    order = column(13, 6)
    chains = [order.vertebrae, [disc for disc in order.discs if disc], [1, 2], *zip(VERTEBRAE, DISCS, strict=False)]
    for chain in chains:
        for first, second in pairwise(chain):
            apart = np.subtract(cielab_of(BY_CODE[first].color), cielab_of(BY_CODE[second].color))
            assert np.linalg.norm(apart) > 25, (NAME_OF[first], NAME_OF[second])


# Other programs read ours


@pytest.mark.parametrize("affine", STACKS.values(), ids=STACKS.keys())
def test_dcmqi_reads_names_colors_and_places(tmp_path: Path, affine: np.ndarray) -> None:
    labels = codes(*SPINE)
    (tmp_path / "seg.dcm").write_bytes(seg_bytes(written(labels, slices(affine), affine)))
    arguments = ["--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--prefix", "s", "-t", "nrrd"]
    subprocess.run([DCMQI / "segimage2itkimage", *arguments], check=True, capture_output=True)
    reported = [
        item[0] for item in json.loads((tmp_path / "s-meta.json").read_text(encoding="utf-8"))["segmentAttributes"]
    ]
    assert [item["SegmentLabel"] for item in reported] == [NAME_OF[code] for code in SPINE]
    for number, (code, item) in enumerate(zip(SPINE, reported, strict=True), start=1):
        np.testing.assert_allclose(item["recommendedDisplayRGBValue"], BY_CODE[code].color, atol=1)
        assert item["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == term_of(NAME_OF[code]).meaning
        image = sitk.ReadImage(str(tmp_path / f"s-{number}.nrrd"))
        found = [image.TransformIndexToPhysicalPoint(i) for i in indices(image)]
        expected = [at(affine, voxel) * (-1, -1, 1) for voxel in zip(*np.nonzero(labels == code), strict=True)]
        np.testing.assert_allclose(ordered(found), ordered(expected), atol=1e-3)


def indices(image: sitk.Image) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in index[::-1]) for index in np.argwhere(sitk.GetArrayViewFromImage(image))]


def ordered(points: list[Any]) -> np.ndarray:
    return np.array(sorted(tuple(np.round(point, 2) + 0.0) for point in points))


def test_pydicom_seg_reads_names_and_places(ours: bytes) -> None:
    result = pydicom_seg.SegmentReader().read(pydicom.dcmread(pydicom.filebase.DicomBytesIO(ours)))
    labels = codes(*SPINE)
    assert [result.segment_infos[n].SegmentLabel for n in result.available_segments] == [NAME_OF[c] for c in SPINE]
    for number, code in enumerate(SPINE, start=1):
        image = result.segment_image(number)
        found = [image.TransformIndexToPhysicalPoint(i) for i in indices(image)]
        expected = [at(OBLIQUE, voxel) * (-1, -1, 1) for voxel in zip(*np.nonzero(labels == code), strict=True)]
        np.testing.assert_allclose(ordered(found), ordered(expected), atol=1e-3)


def test_a_multi_frame_sources_segmentation_is_read_by_dcmqi(tmp_path: Path) -> None:
    labels = codes(*SPINE)
    folder = save(tmp_path / "series", [enhanced(slices())])
    (tmp_path / "seg.dcm").write_bytes(seg_bytes(written(labels, folder)))
    arguments = ["--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--mergeSegments"]
    subprocess.run([DCMQI / "segimage2itkimage", *arguments], check=True, capture_output=True)
    image = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    assert int((sitk.GetArrayViewFromImage(image) > 0).sum()) == int((labels > 0).sum())


# We read what other programs wrote


@pytest.mark.parametrize("name", ["dcmjs_bits.dcm", "dcmjs_rle.dcm"], ids=["bits", "run-length"])
def test_a_file_of_dcmjs(name: str) -> None:
    """The file was written by dcmjs 0.51.1, OHIF's library, on ``slices()``: L4-L5 on its frame 4, L4 on its frames 2
    and 4."""
    submission = read_seg(WRITTEN / name, GRID, sources=slices())
    expected = np.zeros(SIZE, np.uint8)
    # dcmjs counts frames from the other end of this stack.
    expected[3, 2, 3] = expected[4, 2, 3] = expected[12, 10, 1] = CODE_OF["L4"]
    expected[0, 0, 1] = expected[6, 5, 1] = CODE_OF["L4-L5"]
    np.testing.assert_array_equal(map_names(submission, GRID).codes, expected)
    assert [segment.name for segment in submission.segments] == ["L4-L5", "L4"]


def test_a_file_of_dcmqi(tmp_path: Path, series: Path) -> None:
    labels = codes(3, 9)
    image = sitk.GetImageFromArray(labels.transpose())
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ OBLIQUE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "labels.nrrd"))
    coded = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    segment = {
        "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": coded,
        "SegmentedPropertyTypeCodeSequence": coded,
    }
    named = [
        {**segment, "labelID": 9, "SegmentLabel": "vertebrae_L4"},
        {**segment, "labelID": 3, "SegmentLabel": "cord"},
    ]
    reported = {"SeriesNumber": "300", "InstanceNumber": "1", "segmentAttributes": [named], "ContentCreatorName": "R"}
    (tmp_path / "meta.json").write_text(json.dumps(reported), encoding="utf-8")
    arguments = ["--inputImageList", tmp_path / "labels.nrrd", "--inputDICOMDirectory", series]
    arguments += ["--outputDICOM", tmp_path / "seg.dcm", "--inputMetadata", tmp_path / "meta.json"]
    subprocess.run([DCMQI / "itkimage2segimage", *arguments], check=True, capture_output=True)
    mapped = map_names(read_seg(tmp_path / "seg.dcm", GRID, sources=series), GRID)
    np.testing.assert_array_equal(mapped.codes == CODE_OF["L4"], labels == 9)
    np.testing.assert_array_equal(mapped.codes == CODE_OF["cord"], labels == 3)


def another(segments: dict[str, np.ndarray], **options: Any) -> Dataset:
    """A SEG by highdicom itself, with labels in this order, each with its own mask (column, row, slice)."""
    algorithm = hd.AlgorithmIdentificationSequence("hand", pydicom.sr.codedict.codes.DCM.ArtificialIntelligence, "1")
    tissue = pydicom.sr.codedict.codes.SCT.Tissue
    described = [
        hd.seg.SegmentDescription(number, label, tissue, tissue, "AUTOMATIC", algorithm)
        for number, label in enumerate(segments, start=1)
    ]
    masks = np.stack([mask.transpose(2, 1, 0) for mask in segments.values()], axis=-1).astype(np.uint8)
    usual = {
        "segmentation_type": "BINARY",
        "series_instance_uid": uid_from("other"),
        "series_number": 7,
        "sop_instance_uid": uid_from("other", "1"),
        "instance_number": 1,
        "manufacturer": "other",
        "manufacturer_model_name": "other",
        "software_versions": "1",
        "device_serial_number": "1",
    }
    return reread(hd.seg.Segmentation(slices(), masks, segment_descriptions=described, **{**usual, **options}))


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    marked = np.zeros(SIZE, bool)
    for voxel in voxels:
        marked[voxel] = True
    return marked


@pytest.mark.parametrize("before", [0, 1, 5], ids=["first", "second", "sixth"])
def test_what_is_named_L4_is_44_whatever_else_is_in_the_file(before: int) -> None:
    """A mask {2, 11} came out as "spinal_cord, canal", because values were named by their rank."""
    others = {name: mask((k, 0, 0)) for k, name in enumerate(["C2-C3", "sacrum", "T1", "canal", "cord"][:before])}
    seg = another({**others, "L4": mask((6, 6, 3)), "disc_L4_L5": mask((7, 7, 3))})
    mapped = map_names(read_seg(seg, GRID), GRID)
    assert mapped.codes[6, 6, 3] == 44
    assert mapped.codes[7, 7, 3] == 95
    assert len(mapped.present) == before + 2


def test_segment_numbers_mean_nothing() -> None:
    seg = another({"cord": mask((0, 0, 0)), "L4": mask((6, 6, 3))})
    for item in seg.SegmentSequence:
        item.SegmentNumber = 60 - item.SegmentNumber
    for groups in seg.PerFrameFunctionalGroupsSequence:
        groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber = (
            60 - groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        )
    mapped = map_names(read_seg(seg, GRID), GRID)
    assert (mapped.codes[0, 0, 0], mapped.codes[6, 6, 3]) == (1, 44)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["L4", "Segment 2"], "name 'Segment 2'"),
        (["L4", "vertebra_L4"], "'L4' and 'vertebra_L4'"),
        (["L4", "L4"], "'L4' and 'L4'"),
    ],
    ids=["unknown", "two spellings", "same label"],
)
def test_names_that_cannot_be_understood_are_reported(labels: list[str], match: str) -> None:
    seg = another({"a": mask((0, 0, 0)), "b": mask((1, 1, 1))})
    for item, label in zip(seg.SegmentSequence, labels, strict=True):
        item.SegmentLabel = label
    with pytest.raises(LabelError, match=match):
        map_names(read_seg(seg, GRID), GRID)


def test_overlapping_segments_lie_in_layers() -> None:
    both = (4, 4, 2)
    seg = another({"canal": mask((3, 4, 2), both), "cord": mask(both), "L4": mask((9, 9, 4))})
    submission = read_seg(seg, GRID)
    assert [segment.layer for segment in submission.segments] == [0, 1, 0]
    mapped = map_names(submission, GRID)
    assert mapped.overlap_voxels == 1
    assert mapped.codes[both] == CODE_OF["cord"]


def test_frames_smaller_than_the_image_lie_where_they_belong() -> None:
    """Some writers crop frames to the marked part."""
    part = (slice(3, 11), slice(2, 8), slice(1, 4))
    affine = OBLIQUE @ step(3, 2, 1)
    labels = codes(*SPINE, size=(8, 6, 3))
    expected = np.zeros(SIZE, np.uint8)
    expected[part] = labels
    seg = written(labels, slices(affine, (8, 6, 3)), affine)
    np.testing.assert_array_equal(map_names(read_seg(seg_bytes(seg), GRID), GRID).codes, expected)


def test_a_segment_without_voxels_is_listed() -> None:
    submission = read_seg(another({"L4": mask((3, 3, 3)), "L5": mask()}), GRID)
    assert [segment.name for segment in submission.segments] == ["L4", "L5"]
    assert map_names(submission, GRID).present == (44,)


def test_frames_without_a_place_lie_where_their_images_lie(series: Path) -> None:
    labels = codes(*SPINE)
    seg = reread(written(labels, series))
    for groups in seg.PerFrameFunctionalGroupsSequence:
        del groups.PlanePositionSequence
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID, sources=series), GRID).codes, labels)
    with pytest.raises(GridError, match="have no position"):
        read_seg(seg, GRID)


def test_masks_of_a_byte_a_pixel() -> None:
    seg = another({"L4": mask((3, 3, 3))}, segmentation_type="FRACTIONAL", max_fractional_value=200)
    assert map_names(read_seg(seg, GRID), GRID).codes[3, 3, 3] == 44
    seg.PixelData = seg.PixelData.replace(b"\xc8", b"\x64")
    with pytest.raises(LabelError, match=r"fractions \(\[100\] of 200\)"):
        read_seg(seg, GRID)


def test_a_label_map_object() -> None:
    """In the newer kind of object, pixels are segment numbers, and segment 0 is the background."""
    seg = another({"background": mask(), "L4": mask((3, 3, 3)), "L5": mask((4, 3, 3))})
    for number, item in enumerate(seg.SegmentSequence):
        item.SegmentNumber = number
    seg.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    seg.SegmentationType = "LABELMAP"
    plane = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    plane[3, 3], plane[3, 4] = 1, 2
    seg.NumberOfFrames, seg.BitsAllocated, seg.BitsStored, seg.HighBit = 1, 8, 8, 7
    seg.PerFrameFunctionalGroupsSequence = seg.PerFrameFunctionalGroupsSequence[:1]
    del seg.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence
    seg.PixelData = plane.tobytes() + b"\0"
    mapped = map_names(read_seg(seg, GRID), GRID)
    assert (mapped.codes[3, 3, 3], mapped.codes[4, 3, 3]) == (44, 45)
    assert mapped.present == (44, 45)


# What cannot be written or read


def test_nothing_to_write(series: Path) -> None:
    """An empty mask made MONAI Label's converter fail with 500."""
    with pytest.raises(EmptySegmentationError, match="label map is empty"):
        written(np.zeros(SIZE, np.uint8), series)


def test_a_value_that_is_not_a_code(series: Path) -> None:
    with pytest.raises(ValueError, match=r"got \[7\]"):
        written(codes(1, 7), series)


def step(*by: float) -> np.ndarray:
    moved = np.eye(4)
    moved[:3, 3] = by
    return moved


ELSEWHERE = {
    "half a voxel aside": Grid(SIZE, OBLIQUE @ step(0.5, 0, 0)),
    "half a slice aside": Grid(SIZE, OBLIQUE @ step(0, 0, 0.5)),
    "other spacing": Grid(SIZE, OBLIQUE @ np.diag([1.1, 1, 1, 1])),
    "twice as fine": Grid(SIZE, OBLIQUE @ np.diag([0.5, 1, 1, 1])),
    "turned": Grid(SIZE, STACKS["axial"]),
}


@pytest.mark.parametrize("grid", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_labels_of_another_grid(grid: Grid, series: Path, ours: bytes) -> None:
    with pytest.raises(GridError, match="mm apart"):
        written(codes(*SPINE), series, grid.affine)
    with pytest.raises(GridError, match="voxels of its series"):
        read_seg(ours, grid)


def test_labels_a_fifth_of_a_voxel_aside_are_on_the_same_voxels(ours: bytes) -> None:
    """Coordinates that another program had rounded made a segmentation unreadable."""
    grid = Grid(SIZE, OBLIQUE @ step(0.2, -0.2, 0.2))
    codes_there = map_names(read_seg(ours, grid), grid).codes
    np.testing.assert_array_equal(codes_there, map_names(read_seg(ours, GRID), GRID).codes)


@pytest.mark.parametrize("by", [(1, 0, 0), (0, 0, 1), (0, -2, 0)], ids=str)
def test_labels_a_whole_voxel_aside(by: tuple[int, ...], series: Path, ours: bytes) -> None:
    with pytest.raises(GridError, match="mm apart"):
        written(codes(*SPINE), series, OBLIQUE @ step(*by))
    with pytest.raises(GridError, match="voxels outside its series"):
        read_seg(ours, Grid(SIZE, OBLIQUE @ step(*by)))


def test_labels_of_another_shape(series: Path) -> None:
    with pytest.raises(GridError, match=r"has shape \(13, 11, 4\)"):
        written(codes(*SPINE, size=(13, 11, 4)), series)


def test_another_frame_of_reference(ours: bytes) -> None:
    other = slices(FrameOfReferenceUID=uid_from("elsewhere"))
    with pytest.raises(GridError, match="frame of reference"):
        read_seg(ours, GRID, sources=other)
    nameless = slices(FrameOfReferenceUID="")
    assert read_seg(ours, GRID, sources=nameless).segments


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_series_nothing_can_refer_to(keyword: str) -> None:
    items = slices()
    for item in items:
        delattr(item, keyword)
        item.file_meta = pydicom.dataset.FileMetaDataset()
    with pytest.raises(ImageError, match="instance UID"):
        written(codes(44), items)


def cut(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[:-20]


def unnamed(seg: Dataset) -> None:
    del seg.SegmentSequence


def twice(seg: Dataset) -> None:
    seg.SegmentSequence[1].SegmentNumber = 1


def stray(seg: Dataset) -> None:
    del seg.SegmentSequence[0]


def unnumbered(seg: Dataset) -> None:
    del seg.SegmentSequence[0].SegmentNumber


def fewer_groups(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[0]


def no_frames(seg: Dataset) -> None:
    del seg.PixelData


def encoded(seg: Dataset) -> None:
    seg.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"


def image(seg: Dataset) -> None:
    seg.SOPClassUID, seg.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"


def too_many(seg: Dataset) -> None:
    items = []
    for number in range(300):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel = number + 1, f"s{number}"
        items.append(item)
    seg.SegmentSequence = items


DAMAGED = {
    "cut short": (cut, "truncated"),
    "no segments": (unnamed, "named segments"),
    "number twice": (twice, "segments have the number 1"),
    "frames of no segment": (stray, "Frames of segment 1"),
    "a segment without its number": (unnumbered, "Frames of segment 1"),
    "frames not described": (fewer_groups, "frames are described"),
    "no pixels": (no_frames, "has no frames"),
    "unknown encoding": (encoded, "encoding"),
    "an image": (image, "modality is 'MR'"),
    "hundreds of segments": (too_many, "300"),
}


@pytest.mark.parametrize(("damage", "match"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_objects_get_one_sentence(ours: bytes, damage: Callable[[Dataset], None], match: str) -> None:
    seg = pydicom.dcmread(pydicom.filebase.DicomBytesIO(ours))
    damage(seg)
    with pytest.raises(LabelError, match=match) as caught:
        read_seg(seg, GRID)
    assert "\n" not in str(caught.value)


def test_something_that_is_not_dicom() -> None:
    with pytest.raises(LabelError, match="not a DICOM segmentation"):
        read_seg(b"hello", GRID)


def test_a_segmentation_beside_the_slices_is_not_a_slice(tmp_path: Path, ours: bytes) -> None:
    folder = save(tmp_path / "series", slices())
    (folder / "seg.dcm").write_bytes(ours)
    np.testing.assert_array_equal(read_image(folder).data, picture())


def test_nothing_marked_is_an_empty_submission() -> None:
    submission = read_seg(another({"L4": mask()}), GRID)
    assert not submission.layers[0].any()
    with pytest.raises(LabelError, match="label is empty"):
        map_names(submission, GRID)


def test_pixels_of_the_source_are_not_needed_nor_changed(series: Path) -> None:
    items = slices()
    before = [item.to_json() for item in items]
    written(codes(44), items)
    assert [item.to_json() for item in items] == before
