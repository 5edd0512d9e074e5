"""Tests of SPIDER slabs as training cases: names by counting, and regions that nobody checked."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import spider_cases

from totalspineseg_server.nnunet.real_spines import RealSpine

SPACING = (2.0, 1.5, 1.5)


@pytest.fixture(scope="module")
def slab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A drawn lumbar spine with SPIDER's labels, and its codes."""
    folder = tmp_path_factory.mktemp("slabs")
    rng = np.random.default_rng(11)
    options = SpineOptions(
        field=Field.LUMBAR, thoracic=12, lumbar=5, spacing_mm=SPACING, width_mm=30, depth_mm=170, jitter=0.3
    )
    spine = random_spine(rng, options)
    label = np.zeros(spine.labels.shape, np.uint8)
    label[np.isin(spine.labels, anatomy.DISCS)] = spider_cases.DISC
    label[np.isin(spine.labels, anatomy.VERTEBRAE)] = spider_cases.VERTEBRA
    label[np.isin(spine.labels, (anatomy.CANAL, anatomy.CORD))] = spider_cases.WHOLE_CANAL
    image = render(rng, spine, RenderOptions(contrast="T2", strength=0.2))
    nib.save(nib.Nifti1Image(image, spine.affine), folder / "005_image.nii.gz")
    nib.save(nib.Nifti1Image(label, spine.affine), folder / "005_label.nii.gz")
    return folder, spine.labels


def convert(slab: Path, out: Path, *, sure: bool = True) -> RealSpine:
    spider_cases.write_case(slab, out, spider_cases.Patient("005", held_out=False, sure=sure, note=""))
    return RealSpine.read(out / "spider_005.npz")


def test_levels_are_named_as_they_are(slab: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    case, truth = convert(slab[0], tmp_path), slab[1]
    for code in (*anatomy.LUMBAR[:5], 92, 93, 94, 95, anatomy.DISC_L5_S):
        same = (case.labels == code)[truth == code].mean()
        assert same > (0.95 if code > 50 else 0.85), f"{anatomy.NAME_OF[code]}: {same}"


def test_sacrum_is_unknown_up_to_the_tilted_disc_and_holds_no_disc(
    slab: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """A plane through the lowest disc taught the upper front of the sacrum as background."""
    case, truth = convert(slab[0], tmp_path), slab[1]
    sacrum = (truth == anatomy.SACRUM) & (case.labels != anatomy.DISC_L5_S)
    assert (case.second[sacrum] == anatomy.SACRUM).mean() > 0.97
    discs = [*anatomy.DISCS]
    assert not np.isin(case.second, discs)[sacrum].any()
    assert not np.isin(case.labels, discs)[sacrum].any()
    before = (truth == 0) & (case.second == anatomy.SACRUM)
    assert before.mean() < 0.25, "most of the background stays known"


def test_cord_is_unknown_in_the_canal_above_l3_alone(slab: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    case, truth = convert(slab[0], tmp_path), slab[1]
    cord = (truth == anatomy.CORD) & (case.labels != anatomy.UNREVIEWED)
    assert cord.any()
    assert (case.labels[cord] == anatomy.CANAL).all()
    assert (case.second[cord] == anatomy.CORD).all()
    low = np.nonzero(truth == anatomy.LUMBAR[3])[2].max()
    assert not (case.second[..., :low] == anatomy.CORD).any()


def test_unsure_names_show_no_landmark_but_the_disc_on_the_sacrum(
    slab: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    case = convert(slab[0], tmp_path, sure=False)
    thoracolumbar = case.labels == anatomy.DISC_T12_L1
    assert thoracolumbar.any()
    assert not (case.second[thoracolumbar] == anatomy.DISC_T12_L1).any()
    lowest = case.labels == anatomy.DISC_L5_S
    assert (case.second[lowest] == anatomy.DISC_L5_S).all()


def test_eighteen_patients_are_for_training_and_seven_are_held_out() -> None:
    patients = spider_cases.read_patients()
    assert len({p.number for p in patients}) == 25
    assert sum(p.held_out for p in patients) == 7
    assert all(p.sure for p in patients if p.held_out), "who reports names must have sure ones"
    assert all(p.note for p in patients)


def test_a_slab_without_discs_is_left_out(
    slab: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = nib.load(slab[0] / "005_label.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine), tmp_path / "005_label.nii.gz")
    (tmp_path / "005_image.nii.gz").write_bytes((slab[0] / "005_image.nii.gz").read_bytes())
    patients = [p for p in spider_cases.read_patients() if p.number == "005"]
    monkeypatch.setattr(spider_cases, "read_patients", lambda: patients)
    monkeypatch.setattr(sys, "argv", ["spider_cases", str(tmp_path), str(tmp_path / "out")])
    assert spider_cases.main() == 1
    assert "005" in capsys.readouterr().err


@pytest.mark.parametrize("touching", [False, True])
def test_endplates_are_unknown_where_the_masks_of_discs_touch_the_bodies(
    slab: tuple[Path, np.ndarray], tmp_path: Path, touching: bool
) -> None:
    """Some patients' discs were labeled up to the bodies, others without the endplates: a network learned neither."""
    label = nib.load(slab[0] / "005_label.nii.gz")
    image = nib.load(slab[0] / "005_image.nii.gz")
    values, affine = np.asarray(label.dataobj), np.diag([0.6, 0.6, 0.6, 1.0]) @ label.affine
    bone = values == spider_cases.VERTEBRA
    away = ndimage.distance_transform_edt(~bone, sampling=0.6 * np.array(SPACING))
    if touching:
        discs = ndimage.binary_dilation(values == spider_cases.DISC, np.ones((1, 1, 5))) & (away < 3)
        values = np.where(discs & (values == 0), spider_cases.DISC, values)
    else:
        values = np.where((values == spider_cases.DISC) & (away < 1.8), 0, values)
    nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), tmp_path / "005_label.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(), affine), tmp_path / "005_image.nii.gz")
    case = RealSpine.read(_written(tmp_path))
    disc = np.isin(case.labels, anatomy.DISCS)
    unknown = disc & (case.second == anatomy.BACKGROUND)
    assert bool(unknown.any()) is touching
    assert not (unknown & (away >= 1.8)).any()


def _written(folder: Path) -> Path:
    spider_cases.write_case(folder, folder, spider_cases.Patient("005", held_out=False, sure=True, note=""))
    return folder / "spider_005.npz"
