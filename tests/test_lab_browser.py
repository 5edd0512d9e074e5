"""Tests of the lab's page in a real browser, as a reader and the person who runs the lab use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
from playwright.sync_api import Page

from page_faults import faults
from phantom import RAS, image_of, lumbar_codes
from serving import Server, running_server
from tiny_models import write_models
from totalspineseg_server.anatomy import CODE_OF, NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.segments import to_wire
from viewer import window

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
SIZE = {"width": 1366, "height": 768}
"""A common small screen."""
CODES = lumbar_codes()
ENDS = [CODE_OF[name] for name in ("T12-L1", "L5-S", "sacrum", "T12")]
REFUSED = "trained-refused"
FALL = {
    "active": 0.95,
    "candidate": 0.8,
    "change": -0.15,
    "lower": -0.2,
    "margin": 0.05,
    "subjects": 4,
    "allowed": False,
}


def doubtful_codes() -> npt.NDArray[np.uint8]:
    """Return a column without any landmark."""
    return np.where(np.isin(CODES, ENDS), 0, CODES).astype(np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve a certain and a doubtful scan, a third without a result, and a version that the gate refused."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "studies").mkdir()
    for name, codes in (("a-whole", CODES), ("b-doubtful", doubtful_codes()), ("c-next", CODES), ("d-two", CODES)):
        write_volume(folder / "studies" / f"{name}.nii.gz", image_of(codes), RAS)
    models = folder / "app" / "model"
    write_models(models / "starter")
    for name in (REFUSED, "trained-good"):
        write_models(models / "versions" / name)
    gate = {
        "active": "starter",
        "candidate": REFUSED,
        "publish": False,
        "reason": "not served: levels fell",
        "sets": [{"name": "hold-out", "verdict": "fail", "subjects": 4, "reason": "", "measures": {"levels": FALL}}],
    }
    record_version(models, REFUSED, gate)
    record_version(
        models, "trained-good", {**gate, "candidate": "trained-good", "publish": True, "reason": "served", "sets": []}
    )
    (folder / "studies" / "e-other.mha").write_bytes(b"ObjectType = Image")
    with running_server(folder) as running:
        yield running


def record_version(models: Path, name: str, gate: dict[str, Any]) -> None:
    parents = {step: {"name": "starter", "version": "starter"} for step in ("1", "2")}
    training = [{"correction": "1", "image": "x", "client": "ada"}]
    content = {
        "name": name,
        "created": "2026-06-01",
        "steps": [1, 2],
        "parents": parents,
        "training": training,
        "gate": gate,
    }
    (models / "versions" / name / "version.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    with window(SIZE) as opened:
        errors: list[str] = []
        opened.set_default_timeout(120_000)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on(
            "console", lambda message: errors.append(message.text) if "Content Security" in message.text else None
        )
        opened.goto(server.url)
        yield opened
        assert errors == []


def submit(server: Server, scan: str, codes: npt.NDArray[np.uint8], reader: str) -> None:
    """Submit a finished label as a client does."""
    file = server.studies.parent / "label.nii.gz"
    write_volume(file, to_wire(codes), RAS)
    params = {"label_info": [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()], "client_id": reader}
    with file.open("rb") as stream:
        answer = requests.put(
            f"{server.url}/datastore/label?image={scan}&tag=final",
            data={"params": json.dumps(params)},
            files={"label": (file.name, stream)},
            timeout=60,
        )
    assert answer.status_code == 200, answer.text


def status_of(page: Page, scan: str) -> str:
    return page.locator(f"tr[data-scan='{scan}'] .tag").last.inner_text()


def test_from_the_worklist_to_a_finished_scan(server: Server, page: Page) -> None:
    """Look, predict, review, pin, accept, next."""
    page.locator("tr[data-scan='a-whole']").wait_for()
    page.fill("#name", "ada")
    page.locator("#name").press("Enter")
    page.locator("#not-offered summary").click()
    assert "e-other.mha" in page.locator("#not-offered li").inner_text()
    assert faults(page) == []
    page.locator("#not-offered summary").click()
    for scan in ("a-whole", "b-doubtful"):
        requests.post(f"{server.url}/infer/totalspineseg?image={scan}&output=json", timeout=120).raise_for_status()

    page.fill("#search", "whole")
    page.locator("tr[data-scan='b-doubtful']").wait_for(state="detached")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.locator("canvas[data-ready=true]").wait_for()
    assert page.locator("canvas").get_attribute("data-seen") == "axial coronal sagittal"
    assert page.locator(".levels [data-level]").first.get_attribute("data-level") == "T12"
    before = page.screenshot()
    page.click("[data-level='L4']")
    assert page.locator("#under").inner_text() == "Chosen: L4"
    page.wait_for_timeout(300)
    assert page.screenshot() != before
    assert faults(page) == []

    page.keyboard.press("a")
    page.get_by_text("Accepted as it is").wait_for()
    store = CorrectionStore(server.studies / ".totalspineseg")
    (accepted,) = store.of_image("a-whole")
    assert (accepted.unchanged, accepted.client) == (True, "ada")
    page.keyboard.press("n")
    page.wait_for_url(lambda url: "review" in url and not url.endswith("a-whole"))

    page.goto(f"{server.url}/#/review/b-doubtful")
    page.locator("canvas[data-ready=true]").wait_for()
    assert page.locator("#accept").is_disabled()
    level = page.locator(".levels [data-level^='L']:not([data-level*='-'])").first.get_attribute("data-level") or ""
    page.click(f"[data-level='{level}']")
    page.keyboard.press("p")
    page.locator("#pin-name").select_option(NAME_OF[CODE_OF[level] + 1])
    page.locator("#dialog-yes").click()
    page.get_by_text("levels change their names").wait_for()
    assert f"was {level}" in page.locator(".levels").inner_text()
    page.keyboard.press("s")
    page.get_by_text("Submitted as a finished label").wait_for()
    (pinned,) = store.of_image("b-doubtful")
    assert pinned.renumbered is not None

    page.goto(f"{server.url}/#/worklist")
    page.fill("#search", "")
    page.locator("tr[data-scan='c-next']").wait_for()
    assert status_of(page, "a-whole") == "finished"
    assert status_of(page, "b-doubtful") == "finished"


def test_from_a_refusal_by_the_gate_to_going_back(server: Server, page: Page) -> None:
    """Read why the gate refused a version, put another version into use, and take it back."""
    page.goto(f"{server.url}/#/learning")
    refused = page.locator(f"li[data-version='{REFUSED}']")
    refused.wait_for()
    assert page.get_by_label(f"Activate {REFUSED}").is_disabled()
    page.get_by_label(f"Verdict on {REFUSED}").click()
    table = page.locator("#verdict").inner_text()
    assert "levels" in table
    assert "fell" in table
    assert faults(page) == []

    page.get_by_label("Activate trained-good").click()
    assert "starter is replaced by trained-good" in page.locator("#dialog").inner_text()
    page.locator("#dialog-yes").click()
    page.get_by_text("In use now: step 1 trained-good").wait_for()
    page.locator("#go-back:enabled").click()
    assert "trained-good is replaced by starter" in page.locator("#dialog").inner_text()
    page.locator("#dialog-yes").click()
    page.get_by_text("In use now: step 1 starter").wait_for()
    assert requests.get(f"{server.url}/versions", timeout=60).json()["in_use"] == {"1": "starter", "2": "starter"}


def test_a_version_is_judged_in_the_background_and_that_can_be_stopped(server: Server, page: Page) -> None:
    """A judgment takes minutes, and the page and the readers go on meanwhile."""
    page.goto(f"{server.url}/#/learning")
    page.get_by_label("Judge trained-good").click()
    assert "does not change which version is in use" in page.locator("#dialog").inner_text()
    page.locator("#dialog-yes").click()
    page.locator("#judgment").get_by_text("trained-good").wait_for()
    assert requests.post(f"{server.url}/versions/trained-good/judge", timeout=60).status_code == 429
    assert requests.get(f"{server.url}/worklist", timeout=60).status_code == 200
    page.locator("#stop-judging").click()
    page.get_by_text("The judgment was stopped").wait_for()
    page.locator("#judgment").wait_for(state="detached")
    page.get_by_label("Judge starter").click()
    page.locator("#dialog-yes").click()
    # It is in use, and nothing was before.
    page.get_by_text("'starter' could not be judged").wait_for()


def test_an_administrator_chooses_which_of_two_readers_labels_counts(server: Server, page: Page) -> None:
    """Of two finished labels the newest one trained, and nobody could say otherwise."""
    store = CorrectionStore(server.studies / ".totalspineseg")
    eroded = CODES.copy()
    eroded[:24][eroded[:24] == CODE_OF["L3"]] = 0
    for reader, codes in (("ben", CODES), ("cai", eroded)):
        submit(server, "d-two", codes, reader)
    ben, cai = store.of_image("d-two")
    page.goto(f"{server.url}/#/review/d-two")
    page.locator("#choose").click()
    page.locator("#choose-label").select_option(cai.id)
    page.locator("#choose-other").select_option(ben.id)
    page.locator("#choose-parts").select_option("L3")
    assert faults(page) == []
    page.locator("#dialog-yes").click()
    page.get_by_text("This label counts from now on").wait_for()
    chosen = store.of_image("d-two")[-1]
    assert chosen.chosen == (cai.id, ben.id)
    np.testing.assert_array_equal(store.codes(chosen), CODES)
    assert "chosen from cai and ben" in (page.locator("details").first.text_content() or "")


def test_a_batch_shows_how_far_it_is_and_can_be_stopped(server: Server, page: Page) -> None:
    slow = server.signals / "slow"
    slow.write_text("600", encoding="utf-8")
    page.goto(f"{server.url}/#/worklist")
    page.locator("tr[data-scan='c-next']").wait_for()
    page.fill("#search", "next")
    page.locator("tr[data-scan='a-whole']").wait_for(state="detached")
    page.get_by_role("button", name="Predict these (1)").click()
    page.get_by_text("0 of 1 scans done. Now: c-next").wait_for()
    assert page.locator("tr[data-scan='c-next'] .tag").last.inner_text() == "running"
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("was stopped").wait_for()
    assert requests.get(f"{server.url}/worklist", timeout=60).json()["batch"] is None
    assert status_of(page, "c-next") in ("new", "in progress")
    slow.unlink()
    page.get_by_role("button", name="Predict these (1)").click()
    # It was offered to a reader before, so its status says that.
    page.locator("tr[data-scan='c-next'] .tag.certain, tr[data-scan='c-next'] .tag.counted").wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="hidden")
    page.fill("#search", "")


def test_the_next_scan_comes_in_the_order_chosen_in_the_worklist(server: Server, page: Page) -> None:
    """The review offered the doubtful scans first, whatever order was chosen."""
    page.goto(f"{server.url}/#/worklist")
    page.get_by_label("Order of the next scan").select_option("last")
    page.goto(f"{server.url}/#/review/a-whole")
    page.locator("canvas[data-ready=true]").wait_for()
    with page.expect_request(lambda request: "/activelearning/" in request.url) as asked:
        page.keyboard.press("n")
    assert asked.value.url.endswith("/activelearning/last")


def test_two_readers_and_their_corrections_are_shown(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/#/learning")
    table = page.get_by_role("region", name="Corrections by reader")
    table.wait_for()
    assert "ada" in table.inner_text()
    assert "L4" in page.get_by_role("region", name="Corrections by structure").inner_text()
    assert faults(page) == []


def test_the_page_is_readable_in_dark_colors(server: Server, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(f"{server.url}/#/worklist")
    page.locator("tr[data-scan='c-next']").wait_for()
    assert faults(page) == []
