"""Tests of the benchmarks of the starter weights: their requests, their pictures, and what counts as found."""

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import bench_real
import bench_starter
import numpy as np
import pytest

import columns
from phantom import RAS, lumbar_codes
from totalspineseg_server import pipeline
from totalspineseg_server.anatomy import CODE_OF, CORD, DISC_L5_S, DISC_T12_L1
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.preview import Plane, course_of
from totalspineseg_server.preview.plane import Picture
from totalspineseg_server.trust import Trust

SPACING = 2.0


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, np.ndarray]:
    """A spine that runs beside the middle of its image, and its labels."""
    labels = np.pad(columns.built(1, fov="lumbar", spacing=SPACING)[0].truth, ((0, 30), (0, 0), (0, 0)))
    image = np.random.default_rng(0).normal(10.0 * (labels > 0), 1.0).astype(np.float32)
    return Volume(image, np.diag([SPACING] * 3 + [1.0])), labels


def test_pictures_without_real_scans_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The option was accepted and had no effect."""
    with pytest.raises(SystemExit):
        bench_starter.main(["--cases", "0", "--pictures", str(tmp_path)])
    assert "--real" in capsys.readouterr().err


def test_the_bare_image_beside_a_result_is_the_same_plane_whole(scan: tuple[Volume, np.ndarray]) -> None:
    """The plain image was the flat middle slice, the other followed the canal, and the taller one was cut."""
    volume, labels = scan
    plane = Plane(volume, course_of(labels, volume.grid), sagittal=True)
    bare, named = plane.picture(None), plane.picture(labels)
    both = bench_starter.beside(volume, labels)
    assert both.shape == (max(len(bare), len(named)), bare.shape[1] + named.shape[1], 3)
    np.testing.assert_array_equal(both[: len(bare), : bare.shape[1]], bare)
    np.testing.assert_array_equal(both[: len(named), bare.shape[1] :], named)


def test_the_taller_picture_is_not_cut(scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    def picture(self: Plane, labels: np.ndarray | None = None) -> Picture:
        return np.full((4 if labels is None else 6, 3, 3), 9, np.uint8)

    monkeypatch.setattr(Plane, "picture", picture)
    both = bench_starter.beside(*scan)
    assert both.shape == (6, 6, 3)
    assert not both[4:, :3].any()
    assert (both[:, 3:] == 9).all()


def test_a_scan_in_which_nothing_is_found_is_pictured_in_its_middle(scan: tuple[Volume, np.ndarray]) -> None:
    volume, labels = scan
    both = bench_starter.beside(volume, np.zeros_like(labels))
    bare = Plane(volume, course_of(None, volume.grid), sagittal=True).picture(None)
    np.testing.assert_array_equal(both[: len(bare), : bare.shape[1]], bare)


def test_real_scans_with_labels_are_scored_as_the_gate_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A level with a quarter of its voxels labeled was found by the gate's rule, but not by the benchmark's."""
    truth = lumbar_codes()
    found = truth.copy()
    where = np.flatnonzero(truth == DISC_T12_L1)
    found.reshape(-1)[where[where.size // 4 + 1 :]] = 0
    found[found == DISC_L5_S] = DISC_T12_L1
    (tmp_path / "scan").mkdir()
    write_volume(tmp_path / "scan" / "cord.nii.gz", (truth == CORD).astype(np.uint8), RAS)
    write_volume(tmp_path / "scan" / "codes.nii.gz", truth, RAS)
    files = {
        "CORDS": {"scan": ("", "cord.nii.gz")},
        "DISCS": {"scan": ("", "codes.nii.gz")},
        "POINTS": {},
        "CENTERS": {},
    }
    for name, content in files.items():
        monkeypatch.setattr(bench_starter, name, content)
    monkeypatch.setattr(bench_starter, "segment", lambda *_: (truth, found, True))
    bench_starter.real(tmp_path, None, None)
    rows = capsys.readouterr().out.splitlines()[3:]
    assert rows == ["| scan | cord | 1.00 | 1.00 | | | yes |", "| scan | discs | 1.00 | 0.93 | 6 of 6 | 5 of 6 | yes |"]


def test_a_disc_is_found_in_front_of_a_mark_in_the_cord_and_not_a_level_away() -> None:
    """Thinner discs of a template, 10 mm in front of the marks in its cord, counted as not found."""
    result, marks = np.zeros((20, 40, 60), np.uint8), np.zeros((20, 40, 60), np.uint8)
    result[8:12, 22:32, 38:42] = CODE_OF["C3-C4"]
    marks[10, 10, 40], marks[10, 10, 22] = 4, 5
    volume = Volume(result, np.eye(4))
    scan = bench_real.Scan("a", "neck", pipeline.prepare(volume), {"discpoints": Volume(marks, np.eye(4))}, clear=True)
    assert list(bench_real.judged(scan, volume)) == [(CODE_OF["C3-C4"],) * 2, (CODE_OF["C4-C5"], 0)]


class Counted:
    """A network of constant answers that counts its calls."""

    version = "counted"

    def __init__(self, checkpoint: Path, trust: Trust) -> None:
        self.folder, self.trust, self.calls = SimpleNamespace(checkpoint=checkpoint), trust, 0

    def predict(self, channels: np.ndarray, *, soft: Collection[str] = ()) -> Prediction:
        self.calls += 1
        maps = dict.fromkeys(soft, channels[0] / 2)
        return Prediction(np.full(channels.shape[1:], self.calls, np.uint8), maps, self.trust)


def test_a_kept_answer_is_that_of_the_same_weights_image_and_threshold(tmp_path: Path) -> None:
    """Kept answers of step 2 were those for the discs that an earlier numbering had marked."""
    checkpoint = tmp_path / "checkpoint.pth"
    checkpoint.write_bytes(b"old")
    network = Counted(checkpoint, Trust(cord_logit=0.5))
    image = np.ones((2, 3, 3, 3), np.float32)
    cached = bench_real.CachedPredictor(network, tmp_path / "kept")  # type: ignore[arg-type]
    for _ in range(2):
        again = cached.predict(image, soft=("cord",))
        assert (again.labels == 1).all()
        assert (again.soft["cord"] == 0.5).all()
        assert again.trust is network.trust
        assert again.mirror_difference is None
    marked = image.copy()
    marked[1, 0, 0, 0] = 0
    assert (cached.predict(marked, soft=("cord",)).labels == 2).all()
    network.trust = Trust(cord_logit=0.75)
    other = bench_real.CachedPredictor(network, tmp_path / "kept")  # type: ignore[arg-type]
    assert (other.predict(image, soft=("cord",)).labels == 3).all()
    checkpoint.write_bytes(b"new")
    newer = bench_real.CachedPredictor(network, tmp_path / "kept")  # type: ignore[arg-type]
    assert (newer.predict(image, soft=("cord",)).labels == 4).all()
