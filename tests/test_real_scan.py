"""Tests of the starter weights on a scan of a person: every level between the two known ones has its name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import shift

from totalspineseg_server import pipeline
from totalspineseg_server.anatomy import CODE_OF, CORD, DISCS, NAME_OF, VERTEBRAE
from totalspineseg_server.cli import main
from totalspineseg_server.geometry import LabelArray, Volume, to_ras
from totalspineseg_server.io.volumes import read_image, read_labels
from totalspineseg_server.nnunet.model_folder import models_in
from totalspineseg_server.nnunet.predictor import WarmPredictor

pytestmark = pytest.mark.slow

SCAN = Path(__file__).parent / "real" / "cervical_t2"
MARKS_MM = {"C3": (-6.2, 0.8, 24.7), "C5": (-6.2, -0.2, -10.3)}
"""Points (RAS) in the cord behind the middle of two vertebrae, set by the people who published the scan."""
STARTER = Path(__file__).parents[1] / "apps" / "totalspineseg" / "model" / "starter"
SLAB_MM = 3
CORD_DICE = 0.75


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    out = tmp_path_factory.mktemp("real")
    assert main([str(SCAN / "t2.nii.gz"), str(out), "--weights", "starter", "--device", "cpu"]) == 0
    return to_ras(read_labels(out / "step2_output" / "t2.nii.gz"))


def vertebra_at(labels: Volume, height_mm: float) -> str:
    """Return the name of the vertebra with most voxels around a height."""
    heights = labels.affine[2, 3] + labels.affine[2, 2] * np.arange(labels.data.shape[2])
    found = labels.data[:, :, np.abs(heights - height_mm) <= SLAB_MM]
    return NAME_OF[max(VERTEBRAE, key=lambda code: int((found == code).sum()))]


def test_vertebrae_and_discs_of_a_neck_have_their_names(labels: Volume) -> None:
    assert {name: vertebra_at(labels, point[2]) for name, point in MARKS_MM.items()} == {"C3": "C3", "C5": "C5"}
    discs = [float(np.argwhere(labels.data == CODE_OF[name])[:, 2].mean()) for name in ("C4-C5", "C3-C4", "C2-C3")]
    assert discs == sorted(discs)
    assert {"C4", "cord", "canal"} <= {NAME_OF[int(code)] for code in np.unique(labels.data) if code}


def test_the_cord_of_a_neck_is_where_a_person_drew_it(labels: Volume) -> None:
    painted = to_ras(read_labels(SCAN / "cord.nii.gz")).data > 0
    found = labels.data == CORD
    assert 2 * (painted & found).sum() / (painted.sum() + found.sum()) > CORD_DICE


@pytest.fixture(scope="module")
def networks() -> dict[int, WarmPredictor]:
    return {step: WarmPredictor(model, device="cpu") for step, model in models_in(STARTER).items()}


def by_half_a_voxel(axis: int) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    return lambda image: shift(image, 0.5 * np.eye(3)[axis], order=1, mode="nearest")


def renamed(before: LabelArray, after: LabelArray) -> dict[str, str]:
    """Return each level of either map that mostly has another name in the other one."""
    changes = {}
    for one, other in ((before, after), (after, before)):
        for code in set(np.unique(one).tolist()) & {*VERTEBRAE, *DISCS}:
            there = int(np.bincount(other[one == code]).argmax())
            if there != code:
                changes[NAME_OF[code]] = NAME_OF.get(there, "nothing")
    return changes


@pytest.mark.parametrize(
    ("move", "back"),
    [
        *(pytest.param(by_half_a_voxel(axis), slice(None), id=name) for axis, name in enumerate("xyz")),
        pytest.param(lambda image: image[::-1].copy(), slice(None, None, -1), id="mirror"),
    ],
)
def test_no_level_of_a_neck_changes_its_name_without_doubt_when_the_scan_is_shifted_or_mirrored(
    labels: Volume,
    networks: dict[int, WarmPredictor],
    move: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    back: slice,
) -> None:
    """Where the voxels begin, and which side is which, must not change a name; a guess is doubtful."""
    image = to_ras(read_image(SCAN / "t2.nii.gz"))
    scan = pipeline.prepare(Volume(move(image.data.astype(np.float32)), image.affine))
    moved = pipeline.finish(pipeline.locate(scan, networks[1]), networks[2])
    assert moved.numbering is not None
    assert moved.numbering.certainty == "doubtful" or renamed(labels.data, moved.labels[back]) == {}
