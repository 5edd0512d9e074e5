"""Tests of pictures: the right plane, the right way up, in millimeters, with colors and tags in the right places."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from known_figures import require_known
from totalspineseg_server.anatomy import BY_CODE, CANAL, CODE_OF, CORD
from totalspineseg_server.errors import StorageError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.preview import (
    JPEG_QUALITY,
    OPACITY,
    STEP_PALETTE,
    Picture,
    Plane,
    course_of,
    mid_sagittal,
    save_picture,
    sheet_svg,
)
from totalspineseg_server.preview.axial import WIDTH_MM, Cut, axial_cuts
from totalspineseg_server.preview.tags import DOUBTFUL_COLOR, LINE_PX, Tag, add_tags, spaced

SHAPE = (40, 60, 120)
L4, L5, DISC = CODE_OF["L4"], CODE_OF["L5"], CODE_OF["L4-L5"]


def curved_spine() -> np.ndarray:
    """A canal that moves from x = 10 at the bottom to x = 30 at the top, with L4, disc and L5 in front of it."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for z in range(SHAPE[2]):
        x = 10 + 20 * z // (SHAPE[2] - 1)
        body = L5 if z < 55 else DISC if z < 65 else L4
        labels[x - 5 : x + 6, 30:50, z] = body
        labels[x - 3 : x + 4, 18:26, z] = CANAL
        labels[x - 1 : x + 2, 20:24, z] = CORD
    return labels


def image_like(labels: np.ndarray) -> Volume:
    data = np.random.default_rng(0).uniform(5, 15, labels.shape).astype(np.float32)
    data[labels == CORD] = 100.0
    data[labels > CORD] = 50.0
    return Volume(data, np.eye(4))


def painted(volume: Volume, labels: np.ndarray | None = None, *, sagittal: bool = True, **options: Any) -> Picture:
    return Plane(volume, course_of(labels, volume.grid), sagittal=sagittal).picture(labels, **options)


def color_share(picture: np.ndarray, color: tuple[int, int, int], tolerance: float = 30) -> float:
    return float((np.abs(picture.astype(float) - color).max(axis=-1) < tolerance).mean())


def test_sagittal_plane_follows_the_canal() -> None:
    """In a scoliotic spine, the middle plane of the array shows the cord in one slice only."""
    labels = curved_spine()
    picture = painted(image_like(labels), palette={}, labels=labels, tags=())
    cord_rows = (picture[..., 0] > 200).any(axis=1).mean()
    straight = mid_sagittal(image_like(labels))
    assert cord_rows > 0.98
    assert (straight[..., 0] > 200).any(axis=1).mean() < 0.5


def test_anterior_is_left_and_superior_is_up() -> None:
    labels = curved_spine()
    picture = painted(image_like(labels), labels, tags=())
    rows, columns = picture.shape[:2]
    gray = np.float32(255 * 50 / 100)

    def expected(code: int) -> np.ndarray:
        return gray * (1 - OPACITY) + np.array(BY_CODE[code].color) * OPACITY

    for code, row in ((L4, 0.2), (L5, 0.8)):
        # Bodies at y = 40 of 60: a third from the left.
        pixel = picture[int(row * rows), int(columns * (1 - 40.5 / 60))]
        other = expected(L5 if code == L4 else L4)
        assert np.abs(pixel - expected(code)).sum() < np.abs(pixel - other).sum()


def test_patients_right_is_left_in_the_coronal_picture() -> None:
    labels = curved_spine()
    picture = painted(image_like(labels), labels, sagittal=False, palette={}, tags=())
    bright = (picture[..., 0] > 60).astype(float)
    columns = np.arange(picture.shape[1])
    top, bottom = bright[: len(bright) // 10], bright[-len(bright) // 10 :]
    # Above, the spine is at x = 30 of 40 (to the right): left in the picture.
    assert (top @ columns).sum() / top.sum() < (bottom @ columns).sum() / bottom.sum()
    # Where nothing lies, at the left edge, an R says so.
    middle = slice(len(picture) // 2 - 10, len(picture) // 2 + 10)
    assert (picture[middle, :20] == 255).any()
    assert not (picture[middle, -20:] == 255).any()


@pytest.mark.parametrize("spacing", [(1, 1, 1), (4, 0.6, 1.2), (1, 2, 0.5)], ids=str)
def test_pixels_are_square_millimeters(spacing: tuple[float, float, float]) -> None:
    """Anisotropic scans looked squeezed."""
    volume = Volume(np.random.default_rng(0).random((20, 60, 90)), np.diag([*spacing, 1.0]))
    picture = mid_sagittal(volume)
    assert picture.shape[0] / picture.shape[1] == pytest.approx(90 * spacing[2] / (60 * spacing[1]), rel=0.02)


def test_wide_scans_are_cut_to_the_spine_and_its_margin() -> None:
    """In a scan of 300 mm from front to back, the spine was a third of the picture."""
    labels = np.zeros((40, 300, 120), dtype=np.uint8)
    labels[:, 100:160] = curved_spine()
    points = np.zeros_like(labels)
    points[20, 127, 60] = 24
    volume = image_like(labels)
    picture = painted(volume, labels, tags=())
    # Labels from y = 118 to 149, 50 mm on both sides.
    assert picture.shape[1] / picture.shape[0] == pytest.approx(132 / 120, rel=0.02)
    whole = mid_sagittal(volume)
    assert whole.shape[1] / whole.shape[0] == pytest.approx(300 / 120, rel=0.02)
    marked = painted(volume, labels, points=points, tags=())
    columns = np.nonzero((marked != picture).any(axis=(0, 2)))[0]
    assert columns[0] / picture.shape[1] == pytest.approx((199.5 - 127 - 2.5) / 132, abs=0.03)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=["RAS", "ASR", "SRA"])
@pytest.mark.parametrize("flip", [False, True])
def test_stored_orientation_does_not_matter(axes: tuple[int, int, int], flip: bool) -> None:
    labels = curved_spine()
    plain = mid_sagittal(image_like(labels), labels)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for array_axis, axis in enumerate(axes):
        affine[axis, array_axis] = 1
    data, turned = image_like(labels).data.transpose(axes), labels.transpose(axes)
    if flip:
        data, turned = data[::-1], turned[::-1]
        affine[:, 3] += affine[:, 0] * (data.shape[0] - 1)
        affine[:3, 0] *= -1
    np.testing.assert_array_equal(mid_sagittal(Volume(data, affine), turned), plain)


def test_doubtful_levels_are_striped_and_tagged_in_amber() -> None:
    labels = curved_spine()
    sure = mid_sagittal(image_like(labels), labels)
    unsure = mid_sagittal(image_like(labels), labels, doubtful=[L4])
    assert color_share(unsure, DOUBTFUL_COLOR, 2) > color_share(sure, DOUBTFUL_COLOR, 2)
    plane = Plane(image_like(labels), course_of(labels, image_like(labels).grid), sagittal=True)
    gray = plane.picture(labels, palette={}, tags=())
    l4 = (plane.picture(labels, palette={L4: (255, 0, 0)}, tags=()) != gray).any(axis=-1)
    changed = (plane.picture(labels, tags=(), doubtful=[L4]) != plane.picture(labels, tags=())).any(axis=-1)
    assert changed[l4].mean() == pytest.approx(0.5, abs=0.02)
    assert not changed[~l4].any(), "the other levels are certain"


def test_raw_maps_have_colors_for_every_class() -> None:
    assert set(STEP_PALETTE[1]) == set(range(1, 10))
    assert set(STEP_PALETTE[2]) == set(range(1, 12))
    assert len(set(STEP_PALETTE[2].values())) == 11


def test_level_points_are_drawn_where_they_lie() -> None:
    labels = curved_spine()
    points = np.zeros(SHAPE, dtype=np.uint8)
    points[20, 27, 60] = 24
    with_point = painted(image_like(labels), labels, palette={}, points=points, tags=())
    without = painted(image_like(labels), labels, palette={}, tags=())
    rows, columns = np.nonzero((with_point != without).any(axis=-1))
    height, width = with_point.shape[:2]
    assert rows.mean() / height == pytest.approx(1 - 60.5 / 120, abs=0.02)
    assert columns.min() / width == pytest.approx(1 - 27.5 / 60, abs=0.06)


@pytest.mark.parametrize(
    "data",
    [np.zeros((5, 6, 7)), np.full((5, 6, 7), 3.0), np.eye(7)[np.newaxis].repeat(5, axis=0)],
    ids=["zero", "constant", "thin"],
)
def test_pictures_of_hardly_any_image(data: np.ndarray) -> None:
    assert mid_sagittal(Volume(data, np.eye(4))).dtype == np.uint8


def test_labels_without_canal_or_without_anything(tmp_path: Path) -> None:
    volume = image_like(curved_spine())
    np.testing.assert_array_equal(mid_sagittal(volume, np.zeros(SHAPE, dtype=np.uint8)), mid_sagittal(volume))
    only = np.zeros(SHAPE, dtype=np.uint8)
    only[15:25, 30:50, 50:60] = DISC
    assert mid_sagittal(volume, only).shape[1] > mid_sagittal(volume).shape[1]


def test_arguments_are_not_modified() -> None:
    labels = curved_spine()
    volume = image_like(labels)
    before = labels.copy(), volume.data.copy()
    painted(volume, labels, paint=labels, points=labels * 0, doubtful=[L4])
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(volume.data, before[1])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([0.0, 30.0, 60.0], [0.0, 30.0, 60.0]),
        ([10.0, 12.0], [6.0, 16.0]),
        ([0.0, 1.0, 2.0], [-9.0, 1.0, 11.0]),
    ],
    ids=["none", "one", "far apart", "two near", "three near"],
)
def test_labels_are_spaced_without_overlap(wanted: list[float], expected: list[float]) -> None:
    assert spaced(wanted, 10.0) == pytest.approx(expected)


def test_a_dot_of_five_pixels_marks_what_a_tag_names() -> None:
    """A dot beside a thin disc, or larger than it, marks its neighbor as well."""
    result = add_tags(np.full((80, 60, 3), 90, np.uint8), [Tag("L4-L5", (30.0, 20.0), (255, 0, 0), right=True)])
    rows, columns = np.nonzero((result[:, :60] == (255, 0, 0)).all(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 22, 28, 32)


@pytest.mark.parametrize("height", [40, 300, 2000])
def test_tags_never_overlap(height: int) -> None:
    """The tags of 24 vertebrae beside a low picture were printed over each other."""
    picture = np.zeros((height, 50, 3), dtype=np.uint8)
    rng = np.random.default_rng(height)
    for count in (1, 7, 24):
        heights = np.sort(rng.uniform(0, height, count))
        tags = [Tag(f"T{k}", (25.0, float(y)), (255, 255, 255), right=False) for k, y in enumerate(heights)]
        result = add_tags(picture, tags)
        assert result.shape[0] >= height
        margin = result.shape[1] - 50
        text = result[:, : margin - 16] > 150
        lines = text.any(axis=(1, 2)).astype(int)
        blocks = int((np.diff(np.concatenate([[0], lines])) == 1).sum())
        assert blocks == count, "every tag has its own line, with a gap to the next"
        assert result.shape[0] >= count * LINE_PX


@pytest.mark.parametrize(
    ("ending", "magic"), [(".jpg", b"\xff\xd8\xff"), (".jpeg", b"\xff\xd8\xff"), (".png", b"\x89PNG")]
)
def test_pictures_are_saved_by_their_ending(tmp_path: Path, ending: str, magic: bytes) -> None:
    picture = mid_sagittal(image_like(curved_spine()), curved_spine())
    path = tmp_path / f"a{ending}"
    save_picture(path, picture)
    assert path.read_bytes().startswith(magic)
    assert np.asarray(Image.open(path)).shape == picture.shape
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert JPEG_QUALITY >= 80


def test_other_endings_and_full_disks_are_refused(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"ending in \.jpg"):
        save_picture(tmp_path / "a.gif", picture)
    with pytest.raises(StorageError):
        save_picture(tmp_path / "nowhere" / "a.png", picture)


# --- axial cuts, and the sheet with all of a scan


def cuts_of(volume: Volume, labels: np.ndarray, size_px: int = 76) -> dict[str, Cut]:
    return {cut.name: cut for cut in axial_cuts(volume, labels, course_of(labels, volume.grid), size_px=size_px)}


def test_each_level_is_cut_from_top_to_bottom_at_right_angles_to_the_canal() -> None:
    """A canal that leans by 10 degrees was wider in every cut."""
    labels = curved_spine()
    cuts = cuts_of(image_like(labels), labels, size_px=round(WIDTH_MM))
    assert list(cuts) == ["L4", "L4-L5", "L5"]
    for name, code in (("L4", L4), ("L4-L5", DISC), ("L5", L5)):
        codes = cuts[name].codes
        assert set(np.unique(codes)) == {0, CORD, CANAL, code}
        rows, columns = np.nonzero(codes == code)
        assert rows.max() < np.nonzero(codes == CANAL)[0].min(), "anterior is up"
        assert 10 <= np.ptp(columns) + 1 <= 12
        canal = np.nonzero((codes == CANAL) | (codes == CORD))
        assert (np.ptp(canal[0]) + 1, np.ptp(canal[1]) + 1) == (pytest.approx(8, abs=1), pytest.approx(7, abs=1))


def test_a_canal_half_as_wide_as_the_sac_shows_in_the_cut() -> None:
    """From the side it looks right: it is as deep as the sac, only not as wide."""
    labels = curved_spine()
    image = image_like(labels)
    bright = Volume(np.where(labels == CANAL, 90.0, image.data).astype(np.float32), image.affine)
    half = labels.copy()
    for z in range(SHAPE[2]):
        middle = 10 + 20 * z // (SHAPE[2] - 1)
        half[middle - 3 : middle, :, z][half[middle - 3 : middle, :, z] == CANAL] = 0
    cut = cuts_of(bright, half)["L4"]
    sac, canal = cut.gray > 85, np.isin(cut.codes, (CANAL, CORD))
    assert 0.4 < (sac & canal).sum() / sac.sum() < 0.8


def test_the_patients_right_is_left_in_the_cut() -> None:
    labels = curved_spine()
    volume = image_like(labels)
    data = volume.data.copy()
    data[30:] = 200.0  # the patient's right
    cut = cuts_of(Volume(data, volume.affine), labels)["L4-L5"]
    assert cut.gray[:, :20].mean() > 2 * cut.gray[:, -20:].mean()


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_cuts_do_not_depend_on_how_the_scan_is_stored(axes: tuple[int, int, int]) -> None:
    labels = curved_spine()
    volume = image_like(labels)
    flipped = np.ascontiguousarray(volume.data.transpose(axes)[::-1])
    affine = volume.affine[:, [*axes, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (flipped.shape[0] - 1)
    affine[:3, 0] *= -1
    stored = cuts_of(Volume(flipped, affine), np.ascontiguousarray(labels.transpose(axes)[::-1]))
    for name, cut in cuts_of(volume, labels).items():
        np.testing.assert_array_equal(stored[name].codes, cut.codes)


@pytest.mark.parametrize("code", [0, CANAL, DISC])
def test_a_sheet_of_hardly_any_label_has_its_layers(code: int) -> None:
    labels = np.zeros((3, 4, 1), np.uint8)
    labels[1, 1, 0] = code
    volume = Volume(np.arange(12, dtype=np.float32).reshape(3, 4, 1), np.eye(4))
    sheet = sheet_svg(volume, labels, course_of(labels, volume.grid), doubtful=(DISC,))
    for layer in ("scan", "labels", "names"):
        assert f'<g class="{layer}">' in sheet
    assert sheet.count("L4-L5 ?") == (2 if code == DISC else 0)


def looks(picture: np.ndarray) -> list[float]:
    """Return the size of a picture, the mean color of each of 8 x 4 parts (channel by channel), and a sum with random
    weights, which a line that moves by a pixel changes, too."""
    weighted = float((np.random.default_rng(0).standard_normal(picture.shape) * picture).sum()) / 500
    parts = [part for rows in np.array_split(picture, 8) for part in np.array_split(rows, 4, axis=1)]
    return [*picture.shape[:2], *(round(float(v), 1) for part in parts for v in part.mean(axis=(0, 1))), weighted]


def test_pictures_look_as_they_did() -> None:
    """A changed number moved a tag beside another structure, and no test saw the picture."""
    labels, points = curved_spine(), np.zeros(SHAPE, np.uint8)
    points[20, 27, 60], points[25, 27, 90] = 24, 22
    volume, named = Volume(image_like(labels).data, np.diag([0.9, 0.8, 1.1, 1.0])), (L4, L5, DISC)
    pictures = {
        "from the side": painted(volume, labels, points=points, tags=named, doubtful=[L5]),
        "from the front": painted(volume, labels, sagittal=False, points=points, tags=named, doubtful=[L4]),
        "of step 1": painted(volume, labels, paint=np.minimum(labels, 9), palette=STEP_PALETTE[1]),
        "small": mid_sagittal(Volume(volume.data[:, :, 50:70], np.eye(4))),
        **{f"cut of {name}": cut.gray[..., np.newaxis] for name, cut in cuts_of(volume, labels).items()},
    }
    figures = {name: looks(picture) for name, picture in pictures.items()}
    sheet = sheet_svg(volume, labels, course_of(labels, volume.grid), doubtful=[L5])
    for k, content in enumerate(re.findall(r"base64,([^\"]+)", sheet)):
        layer = Image.open(io.BytesIO(base64.b64decode(content)))
        figures[f"layer {k} of the sheet"] = looks(np.asarray(layer.convert("RGBA")))
    numbers = re.findall(r"(?<![\w#])-?\d+(?:\.\d+)?", re.sub(r"base64,[^\"]+|>[^<]*", "", sheet))
    figures["sheet"] = [float(number) for number in numbers]
    require_known("pictures", figures, rel=0.002, abs=0.6)
