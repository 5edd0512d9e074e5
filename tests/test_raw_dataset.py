"""Tests that nnU-Net's raw datasets have exactly the complete cases of the last call, and that foreign files are
kept."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from tiny_models import write_model_folder
from totalspineseg_server.anatomy import CANAL, CORD, LUMBAR, UNREVIEWED
from totalspineseg_server.cli import main
from totalspineseg_server.errors import MemoryShortageError, StorageError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.nnunet import raw_folder
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource, Skipped
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.odd_channel import EXACT_CHANNEL_SHARE, FOUND_CHANNEL_SHARE
from totalspineseg_server.nnunet.raw_dataset import (
    FOUND_BY,
    SIMULATED,
    TRUE,
    RawOptions,
    case_id,
    subjects_of,
    write_raw_datasets,
)
from totalspineseg_server.nnunet.raw_folder import read_cases
from totalspineseg_server.nnunet.targets import IGNORE_CLASS, REGIONS
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.registry.model_store import dataset_name
from training_site import correct, make_site

pytestmark = pytest.mark.slow

DISC_L3_L4, DISC_L4_L5 = 94, 95
ODD, EVEN = 7, 8


def block_scan(number: int, name: str = "") -> LabeledScan:
    """Two vertebrae, their disc, canal and cord as blocks, small enough for a network of nnU-Net's usual size."""
    codes = np.zeros((16, 24, 32), np.uint8)
    for code, (low, high) in {LUMBAR[4]: (4, 12), DISC_L4_L5: (12, 16), LUMBAR[3]: (16, 24)}.items():
        codes[4:12, 4:14, low:high] = code
    codes[6:10, 16:20, 2:30] = CANAL
    codes[7:9, 17:19, 2:30] = CORD
    codes[:2] = UNREVIEWED
    image = np.random.default_rng(number).normal(100 + 3.0 * codes, 20).astype(np.float32)
    volumes = Volume(image, np.eye(4)), Volume(codes, np.eye(4))
    return LabeledScan(name or f"sub-{number}_T2w", f"sub-{number}", Origin.EARLIER, *volumes)


def source(scan: LabeledScan) -> ScanSource:
    return ScanSource(scan.name, scan.origin, lambda: scan)


def write(raw: Path, scans: Sequence[LabeledScan], options: RawOptions | None = None) -> dict[int, Any]:
    return write_raw_datasets(map(source, scans), raw, options, on_skip=pytest.fail)


def files(raw: Path, step: int) -> dict[str, int]:
    """Return name -> time of every file that nnU-Net reads, including hidden ones."""
    folder = raw / dataset_name(step)
    found = [path for name in ("imagesTr", "labelsTr") for path in (folder / name).iterdir()]
    return {path.name: path.stat().st_mtime_ns for path in found}


def names(*cases: str, channels: int) -> set[str]:
    images = {f"{case}_{channel:04d}.nii.gz" for case in cases for channel in range(channels)}
    return images | {f"{case}.nii.gz" for case in cases}


def test_both_steps_and_both_variants(tmp_path: Path) -> None:
    """Training from scratch with nnU-Net's own tools starts with these files."""
    scan = block_scan(1)
    scan.codes.data[4:12, 4:14, 24:28] = DISC_L3_L4
    written = write(tmp_path, [scan])
    assert {step: entry.cases for step, entry in written.items()} == {1: 1, 2: 2}
    assert files(tmp_path, 1).keys() == names("sub-1_T2w", channels=1)
    assert files(tmp_path, 2).keys() == names("sub-1_T2w", "sub-1_T2w_o2e", channels=2)
    folder = tmp_path / dataset_name(2) / "labelsTr"
    plain, swapped = (read_labels(folder / f"sub-1_T2w{ending}.nii.gz") for ending in ("", "_o2e"))
    assert (plain.data == ODD).any()
    assert np.array_equal(swapped.data == ODD, plain.data == EVEN)
    assert plain.spacing == pytest.approx((1, 1, 1), abs=1e-5)
    for step, entry in written.items():
        content = json.loads((tmp_path / dataset_name(step) / "dataset.json").read_text(encoding="utf-8"))
        assert content["labels"]["ignore"] == IGNORE_CLASS[step]
        assert content["numTraining"] == entry.cases
        assert list(content["labels"])[1:-1] == list(REGIONS[step])


def test_with_one_disc_in_view_both_variants_are_the_same(tmp_path: Path) -> None:
    """The variants showed the same marked disc, but had opposite classes as the target."""
    write(tmp_path, [reviewed_scan(1)], RawOptions((2,), disturbed_share=0))
    one, other = (
        [read_labels(tmp_path / dataset_name(2) / f"{folder}/sub-1_T2w{ending}.nii.gz").data for folder, ending in pair]
        for pair in ((("imagesTr", "_0001"), ("labelsTr", "")), (("imagesTr", "_o2e_0001"), ("labelsTr", "_o2e")))
    )
    assert one[0].any()
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- called again


def test_the_same_call_changes_no_file(tmp_path: Path) -> None:
    """nnU-Net's plan is used again as long as the files are the same."""
    write(tmp_path, [block_scan(1), block_scan(2)])
    before = files(tmp_path, 2)
    assert write(tmp_path, [block_scan(1), block_scan(2)])[2].removed == ()
    assert files(tmp_path, 2) == before


@pytest.mark.parametrize(
    ("second", "options", "removed"),
    [
        ([block_scan(1)], RawOptions(), {"sub-2_T2w", "sub-2_T2w_o2e"}),
        ([block_scan(1), block_scan(2, "new")], RawOptions(), {"sub-2_T2w", "sub-2_T2w_o2e"}),
        ([block_scan(1), block_scan(2)], RawOptions(swapped=False), {"sub-1_T2w_o2e", "sub-2_T2w_o2e"}),
    ],
    ids=["source gone", "source renamed", "without the second variants"],
)
def test_nothing_of_an_earlier_call_stays(
    tmp_path: Path, second: list[LabeledScan], options: RawOptions, removed: set[str]
) -> None:
    """Cases of an earlier call stayed beside the new ones and were used for training."""
    write(tmp_path / "again", [block_scan(1), block_scan(2)])
    write(tmp_path / "fresh", second, options)
    written = write(tmp_path / "again", second, options)
    assert set(written[2].removed) == removed
    for step in (1, 2):
        again, fresh = tmp_path / "again" / dataset_name(step), tmp_path / "fresh" / dataset_name(step)
        assert files(tmp_path / "again", step).keys() == files(tmp_path / "fresh", step).keys()
        assert subjects_of(again) == subjects_of(fresh)
        assert (again / "dataset.json").read_bytes() == (fresh / "dataset.json").read_bytes()


def test_a_case_follows_its_label_its_image_and_the_options(tmp_path: Path) -> None:
    """A label that was corrected later stayed as it had been written first."""
    first = block_scan(1)
    codes = np.where(first.codes.data == LUMBAR[3], 0, first.codes.data).astype(np.uint8)
    corrected = replace(first, codes=Volume(codes, first.codes.affine))
    changes: list[tuple[LabeledScan, RawOptions]] = [
        (first, RawOptions(disturbed_share=0)),
        (first, RawOptions(disturbed_share=1)),
        (corrected, RawOptions()),
        (replace(first, image=block_scan(2).image), RawOptions()),
        (first, RawOptions()),
        (replace(first, unreviewed=frozenset({LUMBAR[3]})), RawOptions()),
    ]
    for number, (scan, options) in enumerate(changes):
        write(tmp_path / "again", [scan], options)
        write(tmp_path / str(number), [scan], options)
        for path in sorted((tmp_path / str(number)).rglob("*.nii.gz")):
            other = tmp_path / "again" / path.relative_to(tmp_path / str(number))
            assert other.read_bytes() == path.read_bytes(), (number, path.name)


class PowerCut(BaseException):
    """Ends a call anywhere, like a kill."""


@pytest.mark.parametrize("files_written", range(8))
def test_an_interrupted_call_is_continued(tmp_path: Path, files_written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file under its final name is whole, half a dataset is not used for training, and the next call finishes
    it."""
    scans = [block_scan(1), block_scan(2)]
    write(tmp_path, [block_scan(1), block_scan(3)], RawOptions(disturbed_share=0))
    written: list[Path] = []

    def cut(path: Path, *rest: Any) -> None:
        if len(written) == files_written:
            (path.parent / ".partial-abc.nii.gz").write_bytes(b"half")
            raise PowerCut
        written.append(path)
        write_volume(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(raw_folder, "write_volume", cut)
        with pytest.raises(PowerCut):
            write(tmp_path, scans, RawOptions((2,), disturbed_share=1))
    folder = tmp_path / dataset_name(2)
    assert not (folder / "dataset.json").exists()
    for path in folder.rglob("sub-*.nii.gz"):
        assert np.isfinite(nib.load(path).get_fdata()).all()
    times = {path: path.stat().st_mtime_ns for path in written}
    write(tmp_path, scans, RawOptions((2,), disturbed_share=1))
    assert files(tmp_path, 2).keys() == names(*(f"sub-{k}_T2w{v}" for k in (1, 2) for v in ("", "_o2e")), channels=2)
    whole = written[: files_written - files_written % 3]
    assert {path: path.stat().st_mtime_ns for path in whole} == {path: times[path] for path in whole}
    write(tmp_path / "fresh", scans, RawOptions((2,), disturbed_share=1))
    for path in folder.rglob("sub-*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "fresh" / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("file", ["imagesTr/knee_0000.nii.gz", "labelsTr/sub-1_T2w.nii.gz", "dataset.json"])
def test_files_of_others_are_refused_and_left(tmp_path: Path, file: str) -> None:
    stranger = tmp_path / dataset_name(2) / file
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match=f"1 .*'{stranger.name}'.*Move"):
        write(tmp_path, [block_scan(1)])
    assert stranger.read_text(encoding="utf-8") == "mine"
    assert list((tmp_path / dataset_name(1)).glob("imagesTr/*")) == []


def test_a_damaged_record_does_not_delete_the_cases(tmp_path: Path) -> None:
    write(tmp_path, [block_scan(1)])
    (tmp_path / dataset_name(1) / "cases.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cases\.json"):
        write(tmp_path, [])
    assert files(tmp_path, 1).keys() == names("sub-1_T2w", channels=1)


# --- discs that a network found


def reviewed_scan(number: int) -> LabeledScan:
    """Return ``block_scan`` without the strip that nobody reviewed."""
    scan = block_scan(number)
    codes = np.where(scan.codes.data == UNREVIEWED, 0, scan.codes.data).astype(np.uint8)
    return replace(scan, codes=Volume(codes, scan.codes.affine))


class Finder:
    """A step-1 network that finds the disc of ``block_scan`` a voxel too far back, or nothing."""

    def __init__(self, version: str = "finder-1", *, finds: bool = True) -> None:
        self.version = version
        self.finds = finds
        self.images: list[bytes] = []

    def predict(self, channels: npt.NDArray[np.float32], *, soft: object = ()) -> Prediction:
        self.images.append(channels.tobytes())
        disc = np.roll(block_scan(0).codes.data == DISC_L4_L5, -1, axis=1)
        return Prediction((disc & self.finds).astype(np.uint8), {})


def discs_of(raw: Path) -> dict[str, str]:
    return {case: entry["discs"] for case, entry in read_cases(raw / dataset_name(2)).items()}


def second_channel(raw: Path, case: str) -> Any:
    return read_labels(raw / dataset_name(2) / "imagesTr" / f"{case}_0001.nii.gz").data


def test_a_stated_share_shows_what_step_one_found(tmp_path: Path) -> None:
    """Training from scratch saw only true discs and simulated errors, and never what its own step 1 finds."""
    scans = [reviewed_scan(k) for k in range(40)]
    write(tmp_path, scans, RawOptions((2,), finder=Finder()))
    discs = discs_of(tmp_path)
    assert len(discs) == 80
    counted = {kind: list(discs.values()).count(kind) / 80 for kind in (TRUE, f"{FOUND_BY}finder-1", SIMULATED)}
    assert sum(counted.values()) == 1
    assert counted[TRUE] == pytest.approx(EXACT_CHANNEL_SHARE, abs=0.1)
    assert counted[f"{FOUND_BY}finder-1"] == pytest.approx((1 - EXACT_CHANNEL_SHARE) * FOUND_CHANNEL_SHARE, abs=0.1)
    for case, kind in discs.items():
        channel = second_channel(tmp_path, case)
        target = read_labels(tmp_path / dataset_name(2) / "labelsTr" / f"{case}.nii.gz").data
        true = np.isin(target, REGIONS[2]["disc"])
        expected = {TRUE: true, f"{FOUND_BY}finder-1": np.roll(true, -1, axis=1)}
        if kind in expected:
            assert np.array_equal(channel > 0, expected[kind]), case


def test_the_network_runs_only_for_cases_that_show_its_discs(tmp_path: Path) -> None:
    scans = [reviewed_scan(k) for k in range(12)]
    first, again, other = Finder(), Finder(), Finder("finder-2")
    write(tmp_path, scans, RawOptions(finder=first))
    displayed = list(discs_of(tmp_path).values()).count(f"{FOUND_BY}finder-1")
    assert len(first.images) == displayed
    assert 0 < displayed < 24
    before = files(tmp_path, 2), files(tmp_path, 1)
    write(tmp_path, scans, RawOptions(finder=again))
    assert (files(tmp_path, 2), files(tmp_path, 1)) == before
    assert again.images == []
    write(tmp_path, scans, RawOptions(finder=other))
    assert other.images == first.images
    assert f"{FOUND_BY}finder-2" in discs_of(tmp_path).values()
    assert f"{FOUND_BY}finder-1" not in discs_of(tmp_path).values()
    assert files(tmp_path, 1) == before[1]


def test_if_the_network_finds_nothing_errors_are_simulated_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty channel would teach step 2 what it never sees at inference."""
    options = RawOptions((2,), disturbed_share=1, finder=Finder(finds=False))
    write(tmp_path, [reviewed_scan(k) for k in range(6)], options)
    assert set(discs_of(tmp_path).values()) == {SIMULATED}
    printed = [record.getMessage().partition(": ") for record in caplog.records]
    assert all("step 1" in reason and "simulated" in reason for _, _, reason in printed)
    assert 0 < len(printed) < 12
    assert {case for case, _, _ in printed} < set(discs_of(tmp_path))


def test_too_little_memory_to_find_discs_leaves_no_case_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder, scans = Finder(), [reviewed_scan(k) for k in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(finder, "predict", lambda *_, **__: (_ for _ in ()).throw(MemoryShortageError("more memory")))
        with pytest.raises(MemoryShortageError, match="more memory"):
            write(tmp_path, scans, RawOptions((2,), disturbed_share=1, finder=finder))
    write(tmp_path, scans, RawOptions((2,), disturbed_share=1, finder=finder))
    assert len(discs_of(tmp_path)) == 12


# --- names


def test_no_two_names_are_one_case() -> None:
    """ "a b" overwrote "a-b"."""
    different = ["a-b", "a b", "a/b", "a+b", "a–b", "ä-b", "x", "x_o2e", "x" * 200, "x" * 201]  # noqa: RUF001
    different += [case_id(name) for name in ("a b", "x_o2e")]
    ids = [case_id(name) for name in different]
    assert ids[0] == "a-b"
    assert len({*ids, *(f"{case}_o2e" for case in ids)}) == 2 * len(different)
    assert all(len(case) < 200 and case.isascii() and "/" not in case for case in ids)
    assert case_id("a b") == "a-b+c8687a08aa5d"


def test_a_repeated_name_is_reported_and_the_first_scan_stays(tmp_path: Path) -> None:
    skipped: list[Skipped] = []
    scans = [block_scan(1, "same"), block_scan(2, "same"), block_scan(3, "sa me"), block_scan(4, "sa-me")]
    options = RawOptions((1,))
    written = write_raw_datasets(map(source, scans), tmp_path, options, on_skip=skipped.append)
    assert written[1].cases == 3
    (case,) = skipped
    assert "'same'" in case.reason
    assert "Rename" in case.reason
    write(tmp_path / "first", scans[:1], options)
    image = Path(dataset_name(1)) / "imagesTr" / "same_0000.nii.gz"
    assert (tmp_path / image).read_bytes() == (tmp_path / "first" / image).read_bytes()


# --- the command


def bids(folder: Path, *scans: LabeledScan) -> None:
    for scan in scans:
        for part, ending, volume in (("", "", scan.image), ("derivatives/x", "_label-spine_dseg", scan.codes)):
            path = folder / part / scan.subject / "anat" / f"{scan.name}{ending}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, volume.data, volume.grid)


def test_scans_are_found_whatever_the_case_of_their_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only ``.nii.gz`` in lower case was found."""
    folder, raw = tmp_path / "bids", tmp_path / "raw"
    bids(folder, *(block_scan(k) for k in (1, 2)))
    for path in sorted(folder.rglob("sub-2*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.gz")))
    (folder / "sub-1" / "anat" / "sub-1_T1w.mgz").touch()
    assert main(["prepare", str(folder), str(raw), "--step", "1"]) == 0
    assert files(raw, 1).keys() == names("sub-1_T2w", "sub-2_T2w", channels=1)
    assert re.search("'sub-1/anat/sub-1_T1w.mgz'.*Convert", capsys.readouterr().err)


def test_the_command_says_what_it_removed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, raw = tmp_path / "bids", tmp_path / "raw"
    words = ["prepare", str(folder), str(raw), "--step", "1"]
    bids(folder, *(block_scan(k) for k in (1, 2, 3)))
    assert main(words) == 0
    assert "3 cases" in capsys.readouterr().out
    (folder / "sub-2" / "anat" / "sub-2_T2w.nii.gz").unlink()
    label = folder / "derivatives" / "x" / "sub-3" / "anat" / "sub-3_T2w_label-spine_dseg.nii.gz"
    (folder / "derivatives" / label.name).write_bytes(label.read_bytes())
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "1 cases" in printed.out
    assert re.search(r"removed 2 .*sub-2_T2w, sub-3_T2w", printed.out)
    assert re.search(r"left out sub-2_T2w: .*\b0 images\b.*\b1 labels\b.*Rename", printed.err)
    assert re.search(r"left out sub-3_T2w: .*\b1 images\b.*\b2 labels\b.*Rename", printed.err)
    assert files(raw, 1).keys() == names("sub-1_T2w", channels=1)
    assert main(["prepare", str(tmp_path), str(raw)]) == 2
    assert files(raw, 1).keys() == names("sub-1_T2w", channels=1)


def test_the_command_takes_the_discs_of_a_trained_step_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This is prepare 101, train 101, prepare 102 with the discs that step 1 finds; a random network stands for
    nnU-Net's results."""
    bids(tmp_path / "bids", *(reviewed_scan(k) for k in range(4)))
    model = ModelFolder.open(write_model_folder(tmp_path / "results", 1), step=1)
    words = ["prepare", str(tmp_path / "bids"), str(tmp_path / "raw"), "--step", "2", "--disturbed-share", "1"]
    assert main([*words, "--discs-by", str(tmp_path / "results")]) == 0
    found = f"{FOUND_BY}results-{model.digest[:8]}"
    discs = discs_of(tmp_path / "raw")
    count = list(discs.values()).count(found)
    assert 0 < count < 8 and set(discs.values()) == {found, SIMULATED}
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f"{count} {found}" in printed and f"{8 - count} {SIMULATED}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--discs-by", "nobody"], "'nobody'"),
        (["--discs-by", "."], "model folder of step 1"),
        (["--discs-by", "starter", "--device", "abacus"], "'abacus'"),
        (["--discs-by", "starter", "--step", "1"], "--discs-by.*step 1"),
        (["--discs-by", "starter", "--disturbed-share", "0"], "share of 0"),
    ],
    ids=["no such weights", "no step 1", "no such device", "step 1 alone", "no share"],
)
def test_discs_by_nobody_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    bids(tmp_path / "bids", block_scan(1))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "bids", "raw", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "raw").exists()


def test_a_share_is_from_0_to_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", str(tmp_path), "--disturbed-share", "30"])
    assert "'30'" in capsys.readouterr().err


def test_corrections_are_prepared_and_damaged_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A correction with an unreadable record was left out without a word."""
    site = make_site(tmp_path, scans=0)
    words = ["prepare", str(tmp_path / "studies"), str(tmp_path / "raw"), "--step", "1"]
    site.history.mkdir(parents=True)
    assert main(words) == 2
    assert "held out" in capsys.readouterr().err
    stored, damaged = (correct(site, tmp_path, f"sub-{k}", k) for k in range(2))
    (site.corrections.path(damaged) / "record.json").write_text("{", encoding="utf-8")
    assert main(words) == 1
    assert "left out sub-1: " in capsys.readouterr().err
    (case,) = subjects_of(tmp_path / "raw" / dataset_name(1))
    assert case.startswith(f"sub-0--{stored.id}-+")
