"""Tests of OHIF in a real browser with a real Orthanc: a session from the list to the training."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import requests
from orthanc import fill
from pydicom import dcmread

from pacs_serving import PacsServer, make_enhanced, pacs_server, wait_for, write_study
from phantom import PIR, lumbar_codes
from tiny_models import write_models
from totalspineseg_server.anatomy import BY_CODE, CANAL, CODE_OF, NAME_OF
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.io.dicom.stack import LPS_TO_RAS
from totalspineseg_server.registry.registry_messages import STARTER_WARNING
from training_site import SPACING_MM
from viewer import Picture, Rectangle, Viewer, browser

pytestmark = [
    pytest.mark.ohif,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
COLUMN = [
    *("T12", "T12-L1", "L1", "L1-L2", "L2", "L2-L3", "L3", "L3-L4", "L4", "L4-L5", "L5", "L5-S", "sacrum"),
    *("cord", "canal"),
]
CODES = lumbar_codes()
SERIES_CODES = np.ascontiguousarray(CODES.transpose(1, 2, 0)[::-1, ::-1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacsServer]:
    with pacs_server(tmp_path_factory.mktemp("ohif"), ("Alpha", "Beta")) as running:
        write_models(running.app / "model" / "starter", spacing=SPACING_MM)
        yield running


@pytest.fixture(scope="module")
def viewer(server: PacsServer) -> Iterator[Viewer]:
    with browser(server.url) as window:
        yield window


def corner(index: npt.NDArray[np.int_], half: float) -> npt.NDArray[np.float64]:
    """Return the LPS mm of a voxel's outer corner."""
    lps: npt.NDArray[np.float64] = (LPS_TO_RAS @ PIR @ [*(index + half), 1])[:3]
    return lps


def place(viewer: Viewer, name: str) -> Rectangle:
    """Return where a structure must lie in the sagittal view."""
    at = np.argwhere(CODE_OF[name] == SERIES_CODES)
    return viewer.box(corner(at.min(axis=0), -0.5), corner(at.max(axis=0), 0.5))


def distance(picture: Picture, color: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """Return how far each pixel's hue is from a color: both without their gray part, as directions."""
    own, wanted = (values - values.mean(axis=-1, keepdims=True) for values in (picture, np.array(color, float)))
    length = np.linalg.norm(own, axis=-1) * np.linalg.norm(wanted)
    cosine = (own @ wanted) / np.where(length == 0, 1, length)
    return np.where(np.linalg.norm(own, axis=-1) < 6, np.inf, np.arccos(np.clip(cosine, -1, 1)))


def test_an_annotators_session(server: PacsServer, viewer: Viewer, tmp_path: Path) -> None:
    """List, open, connect, run, look, export, edit, export again, next sample, train, stop."""
    first, second = server.studies
    patients = " ".join(viewer.list_studies())
    assert "Alpha" in patients
    assert "Beta" in patients
    viewer.filter_by_patient("Beta")
    viewer.page.get_by_text("Alpha").first.wait_for(state="detached")

    viewer.open(first.uid)
    viewer.settle()
    assert viewer.page.locator("#totalspineseg-warning").inner_text() == STARTER_WARNING
    the_panel_has_nothing_of_other_organs(viewer)
    no_model_replaces_the_segmentation_by_marks(server, viewer)
    plain = viewer.picture(tmp_path / "plain.png")
    viewer.run()
    overlaid = viewer.picture(tmp_path / "overlaid.png")
    counts = {NAME_OF[int(code)]: int(n) for code, n in zip(*np.unique(CODES, return_counts=True), strict=True) if code}
    assert viewer.voxels() == counts
    the_overlay_covers_the_structures(viewer, plain, overlaid)
    names = viewer.segments()
    assert [name for name in names if name in counts] == COLUMN
    assert viewer.name_at(place(viewer, "L3")) == "L3"
    assert viewer.name_at(place(viewer, "L2-L3")) == "L2-L3"
    assert not any("?" in name for name in names), "certain names have no mark"

    printed = viewer.export()
    assert "finished label with 15 structures" in printed
    store = CorrectionStore(server.work)
    (stored,) = store.of_image(first.series)
    np.testing.assert_array_equal(store.codes(stored), SERIES_CODES)
    assert stored.prediction is not None

    viewer.erase("L3", place(viewer, "L3"))
    edited = viewer.voxels()
    viewer.picture(tmp_path / "edited.png")
    assert 0 < edited["L3"] < counts["L3"]
    assert {name: n for name, n in edited.items() if name != "L3"} == {n: c for n, c in counts.items() if n != "L3"}
    viewer.export()
    before, after = store.of_image(first.series)
    assert before == stored
    codes = store.codes(after)
    changed = codes != SERIES_CODES
    assert (SERIES_CODES[changed] == CODE_OF["L3"]).all()
    assert int((codes == CODE_OF["L3"]).sum()) == edited["L3"]

    the_next_sample_is_another(viewer, second.uid)
    a_training_starts_and_stops(server, viewer, after.id)
    assert viewer.errors == []


def test_doubt_is_seen_in_the_viewer_and_what_is_confirmed_counts(
    server: PacsServer, viewer: Viewer, tmp_path: Path
) -> None:
    """OHIF showed doubtful names like all others; and what became of a submission was gone after some seconds."""
    study = write_study(tmp_path, 4, "Delta", without=[CODE_OF[n] for n in ("T12", "T12-L1", "L5-S", "sacrum")])
    fill(server.orthanc, tmp_path)
    wait_for(lambda: study.series in requests.get(f"{server.url}/datastore/?output=all", timeout=300).text)
    viewer.open(study.uid)
    viewer.settle()
    (server.signals / "slow").write_text("3", encoding="utf-8")
    viewer.run(during=lambda: viewer.page.locator("#totalspineseg-side progress").wait_for())
    (server.signals / "slow").unlink()
    marked = {name for name in viewer.voxels() if name.endswith(" ?")}
    assert {name for name in viewer.voxels() if name not in ("cord", "canal")} == marked != set()
    side = viewer.page.locator("#totalspineseg-side")
    assert "doubtful" in side.locator("#totalspineseg-message").inner_text()
    side.locator("li button").first.wait_for()
    assert {line.split(" or ")[0] for line in side.locator("li button").all_inner_texts()} == marked
    assert study.series in str(side.locator("a").get_attribute("href"))
    viewer.picture(tmp_path / "doubtful.png")

    first, *others = sorted(marked)
    viewer.rename(first, first.removesuffix(" ?"))
    printed = viewer.export()
    assert all(name in printed for name in others[:2])
    store = CorrectionStore(server.work)
    (stored,) = store.of_image(study.series)
    assert {f"{NAME_OF[code]} ?" for code in stored.unconfirmed} == set(others)
    exported = {segment.SegmentLabel for segment in dcmread(store.path(stored) / stored.raw).SegmentSequence}
    assert exported & {first, first.removesuffix(" ?"), *others} == {first.removesuffix(" ?"), *others}
    answer = viewer.page.locator(".totalspineseg-answer")
    viewer.page.wait_for_timeout(1000)
    viewer.panel("monailabel")
    assert printed in answer.inner_text()
    answer.get_by_role("button", name="Close").click()
    answer.wait_for(state="detached")
    viewer.button("Confirm all names").click()
    assert not any(name.endswith(" ?") for name in viewer.segments())
    viewer.export()
    assert store.of_image(study.series)[-1].unconfirmed == ()
    assert viewer.errors == []


def test_an_enhanced_image_is_corrected_slice_by_slice(server: PacsServer, viewer: Viewer, tmp_path: Path) -> None:
    """The viewer mistook the first frame for the last, so that one slice of every correction lay at the other end."""
    study = write_study(tmp_path, 3, "Gamma")
    make_enhanced(study)
    fill(server.orthanc, tmp_path)
    wait_for(lambda: study.series in requests.get(f"{server.url}/datastore/?output=all", timeout=300).text)
    viewer.open(study.uid)
    viewer.settle()
    viewer.run()
    viewer.export()
    (stored,) = CorrectionStore(server.work).of_image(study.series)
    np.testing.assert_array_equal(CorrectionStore(server.work).codes(stored), SERIES_CODES)


def the_panel_has_nothing_of_other_organs(viewer: Viewer) -> None:
    """The panel praised a segmentation of everything, and had buttons for lungs and muscles."""
    text = viewer.page.locator(".monaiLabelPanel").inner_text()
    for foreign in ("everything", "Class Prompts", "Muscles", "Organs"):
        assert foreign not in text
    viewer.page.get_by_text("Active Learning", exact=True).click()
    shares = viewer.page.locator(".monaiLabelPanel .w3-center")
    colors = "one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]"
    for share in shares.all():
        letters, below = share.evaluate(colors)
        assert letters != below, "white on white"
    assert shares.all_inner_texts()[1] == "0%", "nothing trains"
    viewer.page.get_by_text("Active Learning", exact=True).click()


def no_model_replaces_the_segmentation_by_marks(server: PacsServer, viewer: Viewer) -> None:
    """A second result replaces the first one: the review wiped the segmentation and all unsaved edits."""
    offered = set(requests.get(f"{server.url}/info/", timeout=300).json()["models"])
    options = viewer.page.locator("select.selectBox").first.locator("option")
    names = options.evaluate_all("all => all.map(option => option.value)")
    assert offered - set(names) == {"totalspineseg_review"}
    assert not any("review" in name for name in viewer.segments())


def the_overlay_covers_the_structures(viewer: Viewer, plain: Picture, overlaid: Picture) -> None:
    """Each structure has its color at its place in the picture, and nothing outside the column has a color."""
    for name in ("L1", "L2", "L3", "L4", "L5", "L1-L2", "L4-L5", "sacrum"):
        inside = place(viewer, name).cut(overlaid)
        assert inside.size > 0
        near = distance(inside, BY_CODE[CODE_OF[name]].color) < 0.35
        assert near.mean() > 0.95, name
    boxes = [place(viewer, NAME_OF[int(code)]) for code in np.unique(CODES) if code]
    whole = Rectangle(
        min(b.left for b in boxes), min(b.top for b in boxes), max(b.right for b in boxes), max(b.bottom for b in boxes)
    )
    # The gray phantom itself shows where the patient is: what is bright before must be what is colored after.
    view = viewer.page.locator("[data-cy='viewport-pane']").nth(1).bounding_box()
    assert view is not None
    pane = Rectangle(view["x"], view["y"], view["x"] + view["width"], view["y"] + view["height"])
    changed = np.abs(pane.cut(overlaid) - pane.cut(plain)).max(axis=-1) > 8
    bright = pane.cut(plain).min(axis=-1) > 10
    rows, columns = np.nonzero(changed)
    margin = 3 + 2
    assert whole.left - pane.left - margin <= columns.min() + 3
    assert columns.max() + 3 <= whole.right - pane.left + margin
    assert whole.top - pane.top - margin <= rows.min() + 3
    assert rows.max() + 3 <= whole.bottom - pane.top + margin
    expected = (whole.right - whole.left) * (whole.bottom - whole.top)
    assert 0.8 * expected < changed.sum() < 1.1 * expected
    inside = bright & changed
    assert inside.sum() > 0.9 * changed.sum() * (CODES > CANAL).sum() / (CODES > 0).sum() * 0.8


def the_next_sample_is_another(viewer: Viewer, study: str) -> None:
    viewer.panel("monailabel")
    viewer.page.get_by_text("Active Learning", exact=True).click()
    viewer.button("Next Sample").click()
    viewer.page.locator(".nextSampleForm").get_by_text(study, exact=True).wait_for()
    viewer.page.on("dialog", lambda dialog: dialog.accept())
    viewer.page.locator(".nextSampleForm").get_by_role("button", name="OK").click()
    viewer.page.wait_for_url(f"**StudyInstanceUIDs={study}")
    viewer.page.get_by_text("Options / Configurations").wait_for()


def a_training_starts_and_stops(server: PacsServer, viewer: Viewer, correction: str) -> None:
    """The training uses what was exported last."""
    viewer.page.get_by_text("Active Learning", exact=True).click()
    viewer.button("Update Model").click()
    viewer.button("Stop Training").wait_for()
    training = server.work / "training"
    wait_for(lambda: list(training.glob("*/run.json")))
    (run,) = training.glob("*/run.json")
    assert [case["correction"] for case in json.loads(run.read_text(encoding="utf-8"))["training"]] == [correction]
    wait_for(lambda: requests.get(f"{server.url}/train/?check_if_running=true", timeout=300).status_code == 200)
    viewer.button("Stop Training").click()
    viewer.button("Update Model").wait_for()
