"""Tests of the lab's page and of a run's report in Firefox: all else is tested in Chromium."""

import io
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from firefox import ENTER, Firefox, firefox, found
from phantom import RAS, image_of, lumbar_codes
from serving import running_server
from totalspineseg_server.anatomy import BY_CODE, CODE_OF
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.io.volumes import write_volume

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (found("firefox-esr", "firefox") and found("Xvfb")), reason="needs Firefox and Xvfb"),
]
SIZE = (1366, 850)


def pixels_of(browser: Firefox, code: int) -> int:
    """How many pixels of the page have about the hue of a structure."""
    rgb = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB"), dtype=np.float64)
    rgb -= rgb.mean(axis=-1, keepdims=True)
    color = np.array(BY_CODE[code].color, dtype=np.float64)
    color -= color.mean()
    length = np.linalg.norm(rgb, axis=-1)
    near = (rgb @ color) > 0.97 * length * np.linalg.norm(color)
    return int((near & (length > 30)).sum())


def test_a_reader_looks_and_accepts_in_firefox(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    for name in ("sub-1", "sub-2"):
        write_volume(tmp_path / "studies" / f"{name}.nii.gz", image_of(lumbar_codes()), RAS)
    with running_server(tmp_path) as server, firefox(tmp_path) as browser:
        for name in ("sub-1", "sub-2"):
            requests.post(f"{server.url}/infer/totalspineseg?image={name}&output=json", timeout=120).raise_for_status()
        browser.resize(*SIZE)
        browser.open(server.url)
        browser.wait("document.querySelectorAll('td img[src^=blob]').length === 2")
        browser.press("v")
        browser.wait("document.querySelector('td img').getBoundingClientRect().height > 400")
        browser.press("v", "j", ENTER)
        browser.wait("location.hash.endsWith('review/sub-2') && document.querySelector('canvas[data-ready=true]')")
        browser.press("h")
        browser.wait("document.querySelector('#light').ariaPressed === 'true'")
        chosen = str(browser.value("document.querySelector('.levels [aria-pressed=true]').dataset.level"))
        before = pixels_of(browser, CODE_OF[chosen])
        assert before > 500
        browser.press("l")
        assert pixels_of(browser, CODE_OF[chosen]) < before / 4
        browser.press("a")
        browser.wait("document.querySelector('#message').textContent.includes('Accepted as it is')")
        (accepted,) = CorrectionStore(server.studies / ".totalspineseg").of_image("sub-2")
        assert accepted.unchanged
        browser.open(f"{server.url}/#/learning")
        browser.wait("document.querySelector('#start-training')")
