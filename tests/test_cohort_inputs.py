"""Tests of finding the scans in a folder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_series import save, slices
from totalspineseg_server.cohort.cohort_messages import LOCALIZER_UNCERTAIN, NO_LOCALIZER_FOUND
from totalspineseg_server.cohort.inputs import (
    Case,
    find_cases,
    pair_localizers,
    skipped_sentences,
    unvisited_folders,
)
from totalspineseg_server.cohort.record import fingerprint, same_content
from totalspineseg_server.cohort.work import RunOptions, Work
from totalspineseg_server.errors import ImageError
from totalspineseg_server.io.volumes import read_image

DICOM = b"\0" * 128 + b"DICM rest"


def make(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


LAYOUTS = {
    "images, other files left out": (["a.nii.gz", "b.nii", "c.nrrd", "notes.txt", "d.json"], ["a", "b", "c"]),
    "dots and spaces": (["sub 01.v2 T2w.nii.gz", "x.y.nrrd"], ["sub 01.v2 T2w", "x.y"]),
    "hidden files left out": (["a.nii.gz", "._a.nii.gz", ".partial-x.nii.gz"], ["a"]),
    "BIDS": (
        [
            "sub-01/anat/sub-01_T2w.nii.gz",
            "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz",
            "sub-02/ses-1/func/sub-02_ses-1_bold.nii.gz",
            "derivatives/sub-01/anat/sub-01_seg.nii.gz",
        ],
        ["sub-01_T2w", "sub-02_ses-1_T2w"],
    ),
    "same name in two sessions": (
        ["sub-1/ses-a/anat/T2w.nii.gz", "sub-1/ses-b/anat/T2w.nii.gz"],
        ["sub-1_ses-a_anat_T2w", "sub-1_ses-b_anat_T2w"],
    ),
    "same name with two endings": (["a.nii.gz", "a.nrrd"], ["a_nii_gz", "a_nrrd"]),
}


@pytest.mark.parametrize(("files", "names"), LAYOUTS.values(), ids=LAYOUTS)
def test_scans_of_a_folder(tmp_path: Path, files: list[str], names: list[str]) -> None:
    assert [case.name for case in find_cases(make(tmp_path, *files))] == names


def test_dicom_folders_are_scans_named_by_their_way(tmp_path: Path) -> None:
    make(tmp_path / "p1", "study/t2/IM0", "study/t2/IM1", "study/t1/IM0", content=DICOM)
    make(tmp_path, "p1/readme.txt")
    assert [case.name for case in find_cases(tmp_path)] == ["p1_study_t1", "p1_study_t2"]


@pytest.mark.parametrize("way", ["site/patient/study/t2", "a/b/c/d/e/f/g/h/t2"])
def test_a_series_is_found_however_deep_it_lies(tmp_path: Path, way: str) -> None:
    """A series four folders deep was not found, and nothing said so."""
    make(tmp_path, f"{way}/IM0", content=DICOM)
    (tmp_path / way / "round").symlink_to(tmp_path, target_is_directory=True)
    assert [case.path for case in find_cases(tmp_path)] == [tmp_path / way]


def test_folders_with_images_that_are_not_searched_are_named(tmp_path: Path) -> None:
    make(tmp_path, "patient 1/T2/t2.NII.GZ", "sub-01/t2.nii", "sub-02/func/bold.nii", "derivatives/sub-02/seg.nii.gz")
    with pytest.raises(ImageError, match=r"'patient 1/T2', 'sub-01'"):
        find_cases(tmp_path)
    cases = find_cases(make(tmp_path, "a.nii.gz", "sub-02/anat/b.nii.gz", "out/step2_output/a.nii.gz"))
    assert unvisited_folders(tmp_path, cases, exclude=tmp_path / "out") == ("patient 1/T2", "sub-01")
    assert unvisited_folders(tmp_path / "a.nii.gz", cases) == ()


def test_only_a_few_of_many_unsearched_folders_are_named(tmp_path: Path) -> None:
    """The command printed all skipped folders: hundreds in an archive."""
    cases = find_cases(make(tmp_path, "a.nii.gz", *(f"scan-{number}/b.nii.gz" for number in range(9))))
    sentence = skipped_sentences(tmp_path, cases)
    assert (sentence.count("scan-"), "4 more" in sentence) == (5, True)


def test_files_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    """Scans in other formats, and archives, were skipped without a word."""
    cases = find_cases(make(tmp_path, "a.nii.gz", "b.img", "sub-1/anat/C.MGZ", "d/e.zip", "notes.txt", "out/f.mgz"))
    sentence = skipped_sentences(tmp_path, cases, exclude=tmp_path / "out")
    assert all(name in sentence for name in ("'b.img'", "'sub-1/anat/C.MGZ'", "'d/e.zip'", "Convert", ".nii.gz"))
    assert not any(name in sentence for name in ("a.nii", "notes", "f.mgz"))
    with pytest.raises(ImageError, match=r"no images.*'C.MGZ'.*Convert"):
        find_cases(tmp_path / "sub-1" / "anat")


def test_a_link_to_itself_fails_as_one_scan(tmp_path: Path) -> None:
    """A link to itself ended the whole run with a traceback."""
    (tmp_path / "a.nii.gz").symlink_to("a.nii.gz")
    cases = find_cases(tmp_path)
    Work(tmp_path / "out", RunOptions(), {}).require_apart(cases)
    with pytest.raises(ImageError, match="correct the link"):
        read_image(cases[0].path)


def test_a_dicom_folder_itself_is_one_scan(tmp_path: Path) -> None:
    folder = make(tmp_path / "series 3", "a.dcm", "b.dcm", content=DICOM)
    assert find_cases(folder) == (Case("series 3", folder, Path()),)


def test_series_below_a_stray_file_or_a_disc_s_index_are_scans(tmp_path: Path) -> None:
    """No series was found on a patient CD, or beside a stray DICOM file, and nothing said so."""
    make(tmp_path, "disc/DICOMDIR", "disc/IMG/t2/IM0", "stray/report.dcm", "stray/t1/IM0", content=DICOM)
    assert [case.name for case in find_cases(tmp_path)] == ["disc_IMG_t2", "stray", "stray_t1"]


def test_the_output_below_the_input_is_not_read(tmp_path: Path) -> None:
    make(tmp_path / "out" / "old", "IM0", content=DICOM)
    make(tmp_path / "series", "IM0", content=DICOM)
    assert [case.name for case in find_cases(tmp_path, exclude=tmp_path / "out")] == ["series"]


def test_suffixes_choose(tmp_path: Path) -> None:
    make(tmp_path, "s1_T2w.nii.gz", "s1_T1w.nii.gz", "s1_STIR.nii.gz")
    cases = find_cases(tmp_path, suffixes=["_T2w", "_STIR"])
    assert [case.name for case in cases] == ["s1_STIR", "s1_T2w"]


@pytest.mark.parametrize("what", ["missing", "empty folder", "no such suffix"])
def test_nothing_to_do_is_an_error(tmp_path: Path, what: str) -> None:
    source = {"missing": tmp_path / "x", "empty folder": tmp_path, "no such suffix": make(tmp_path / "y", "a.nii")}[
        what
    ]
    with pytest.raises(ImageError, match=r"does not exist|There are no images"):
        find_cases(source, suffixes=["_T9w"] if what == "no such suffix" else [])


PAIRS = {
    "suffix pair": ("sub-01_T2w", ["_T2w"], "_T1w", "sub-01_T1w.nii.gz"),
    "same name": ("sub-01_T2w", [], None, "sub-01_T2w.nii.gz"),
    "suffix without --suffix is appended": ("sub-01", [], "_loc", "sub-01_loc.nii.gz"),
    "localizer in the scan's BIDS folder": ("sub-01_T2w", ["_T2w"], "_T1w", "sub-01/anat/sub-01_T1w.nii.gz"),
    "another ending": ("sub-01_T2w", ["_T2w"], "_T1w", "sub-01_T1w.nrrd"),
}


@pytest.mark.parametrize(("name", "suffixes", "localizer_suffix", "file"), PAIRS.values(), ids=PAIRS)
def test_localizer_pairs(
    tmp_path: Path, name: str, suffixes: list[str], localizer_suffix: str | None, file: str
) -> None:
    folder = make(tmp_path / "loc", file)
    case = Case(name, tmp_path / f"{name}.nii.gz", Path("sub-01/anat"))
    paired = pair_localizers([case], folder, suffixes=suffixes, localizer_suffix=localizer_suffix)
    assert paired[0].localizer == folder / file
    assert not paired[0].no_localizer


@pytest.mark.parametrize("dicom", [False, True], ids=["NIfTI", "DICOM"])
def test_scans_of_one_file_name_share_no_localizer(tmp_path: Path, dicom: bool) -> None:
    """If the files of all patients are called T2w, the first T1w in the folder named the levels of all of them."""
    for patient in ("p1", "p2"):
        make(tmp_path / "in" / patient, "anat/T2w/IM0" if dicom else "anat/T2w.nii.gz", content=DICOM)
    loc = make(tmp_path / "loc", "T1w.nii.gz", "p1/anat/T1w.nii.gz")
    folders = [Path("p1/anat"), Path("p2/anat")]
    cases = [Case(f"p{k}_anat_T2w", tmp_path / "in" / f / "T2w", f) for k, f in enumerate(folders, start=1)]
    if dicom:
        assert list(find_cases(tmp_path / "in")) == cases
    for arguments in ({"localizer": loc}, {"localizer": None, "earlier": [loc]}):
        paired = pair_localizers(cases, suffixes=["T2w"], localizer_suffix="T1w", **arguments)
        found = [case.localizer for case in paired]
        assert found == [loc / "p1/anat/T1w.nii.gz" if arguments["localizer"] else None, None]


def test_one_localizer_file_serves_the_scans_of_one_subject(tmp_path: Path) -> None:
    """The map of one patient named the levels of every patient in the folder."""
    file = make(tmp_path, "loc.nii.gz") / "loc.nii.gz"
    cases = [Case(name, tmp_path / name, Path()) for name in ("sub-01_T1w", "sub-01_T2w", "sub-02_T2w")]
    assert [case.localizer for case in pair_localizers(cases[:2], file)] == [file, file]
    with pytest.raises(ImageError, match=r"'loc.nii.gz'"):
        pair_localizers(cases, file)


@pytest.mark.parametrize(
    ("record", "by_earlier", "by_folder"),
    [
        ({"confident": True}, "", ""),
        ({"confident": None}, "", ""),
        ({"confident": False}, LOCALIZER_UNCERTAIN, LOCALIZER_UNCERTAIN),
        (None, LOCALIZER_UNCERTAIN, ""),
    ],
    ids=["certain", "iterative", "not certain", "unfinished"],
)
def test_results_serve_as_localizers_if_certain(tmp_path: Path, record: Any, by_earlier: str, by_folder: str) -> None:
    """A scan whose names were a guess (probability 0.3) made the next scan certain of the same wrong names."""
    folder = make(tmp_path / "step2_output", "s_T1w.nii.gz")
    if record is not None:
        make(tmp_path / "reports", "s_T1w.json", content=json.dumps(record).encode())
    cases = [Case("s_T2w", tmp_path / "s_T2w.nii.gz", Path())]
    arguments = {"suffixes": ["_T2w"], "localizer_suffix": "_T1w"}
    expected = [by_earlier, by_folder, by_folder]
    for localizer, why in zip((None, folder, folder / "s_T1w.nii.gz"), expected, strict=True):
        (paired,) = pair_localizers(cases, localizer, earlier=[folder], **arguments)
        assert (paired.localizer, paired.no_localizer) == (None if why else folder / "s_T1w.nii.gz", why)


def test_a_missing_localizer_is_reported(tmp_path: Path) -> None:
    case = Case("s_T2w", tmp_path / "s_T2w.nii.gz", Path())
    assert pair_localizers([case], tmp_path)[0].no_localizer == NO_LOCALIZER_FOUND
    assert not pair_localizers([case], None)[0].no_localizer
    with pytest.raises(ImageError, match="localizer"):
        pair_localizers([case], tmp_path / "nowhere")


def test_voxels_beside_a_header_are_part_of_the_scan(tmp_path: Path) -> None:
    """A scan whose .raw file was replaced beside the same .mhd kept the result of the old one."""
    make(tmp_path, "a.mhd", "a.raw", "ab.raw")
    before = fingerprint(tmp_path / "a.mhd")
    os.utime(tmp_path / "ab.raw", ns=(1, 2**62))
    assert fingerprint(tmp_path / "a.mhd") == before
    (tmp_path / "a.raw").write_bytes(b"another")
    assert fingerprint(tmp_path / "a.mhd") != before


def test_a_link_whose_file_is_missing_is_a_scan(tmp_path: Path) -> None:
    """In a partly downloaded data set, missing files were skipped, and the run said that all was done."""
    make(tmp_path, "sub-01/anat/sub-01_T2w.nii.gz")
    (tmp_path / "sub-02" / "anat").mkdir(parents=True)
    (tmp_path / "sub-02" / "anat" / "sub-02_T2w.nii.gz").symlink_to(tmp_path / "annex" / "sub-02")
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["sub-01_T2w", "sub-02_T2w"]
    assert (fingerprint(cases[1].path) or {})["files"] == 0


def test_a_folder_that_may_not_be_read_is_a_scan_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without permission (``lost+found``) ended the run with a traceback before its first scan."""
    make(tmp_path, "a.nii.gz")
    closed = tmp_path / "lost+found"
    closed.mkdir()
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a", "lost+found"]
    assert (fingerprint(cases[1].path) or {})["files"] == 0
    with pytest.raises(ImageError, match=r"lost\+found"):
        read_image(cases[1].path)


def test_a_series_without_preambles_is_found_as_it_is_read(tmp_path: Path) -> None:
    """A series without preambles could be read by its name, but was skipped in a run over the folder above it."""
    for name in ("bare", "kept"):
        save(tmp_path / name, slices())
    for file in (tmp_path / "bare").iterdir():
        file.write_bytes(file.read_bytes()[132:])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "results.dat").write_bytes(b"\x08\x00" * 400)
    assert [case.name for case in find_cases(tmp_path)] == ["bare", "kept"]


def test_a_result_is_not_the_localizer_of_its_own_scan(tmp_path: Path) -> None:
    """The result was deleted before it was read as a localizer."""
    make(tmp_path, "out/step2_output/sub-01_T1w.nii.gz", "in/sub-01_T1w.nii.gz")
    cases = find_cases(tmp_path / "in")
    earlier = [tmp_path / "out" / "step2_output"]
    (case,) = pair_localizers(cases, None, suffixes=["_T1w"], localizer_suffix="_T1w", earlier=earlier)
    assert (case.localizer, bool(case.no_localizer)) == (None, True)


def test_files_of_equal_length_and_age_are_distinguished(tmp_path: Path) -> None:
    """A scan with the same name in another patient's folder counted as already finished."""
    for number, folder in enumerate(("p1", "p2", "moved")):
        (tmp_path / folder).mkdir()
        data = bytes(100_000) + bytes([number % 2]) * 10_000 + bytes(100_000)
        (tmp_path / folder / "T2.nii").write_bytes(data)
        os.utime(tmp_path / folder / "T2.nii", ns=(1, 1 + number // 2))
    one, other, moved = (fingerprint(tmp_path / folder / "T2.nii") for folder in ("p1", "p2", "moved"))
    assert one != other
    assert not same_content(one, other)
    assert one != moved
    assert same_content(one, moved)
