"""The life of a label on a running server: its tag, what takes its place, and how it is taken back."""

from pathlib import Path
from typing import Any

import pytest
import requests
from monailabel.client.client import MONAILabelClient

from phantom import image_of, lumbar_codes
from serving import Server
from test_server import add_image

CODES = lumbar_codes()
# The client leaves its sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="slicer-7")


def shown(server: Server, image: str) -> dict[str, Any]:
    """What clients are told of an image's labels, by tag."""
    objects = requests.get(f"{server.url}/datastore/", params={"output": "all"}, timeout=10).json()["objects"]
    labels: dict[str, Any] = objects[image]["labels"]
    return labels


def test_only_a_whole_prediction_is_shown_as_one(server: Server, client: MONAILabelClient) -> None:
    """A review's two marks took the prediction's place: readers got marks, and step 2 read them as cord and canal."""
    image = add_image(server, "predicted", image_of(CODES) + 1)

    def keep(model: str, **settings: Any) -> None:
        client.infer(model, image, {"save_label": True, "result_extension": ".nii.gz", **settings})

    keep("totalspineseg")
    whole = Path(client.download_label(image, "original")).read_bytes()
    keep("totalspineseg_review")
    keep("totalspineseg_step1")
    keep("totalspineseg", structures="discs")
    keep("totalspineseg", output_grid="iso", label_tag="second")
    keep("totalspineseg_step1", output_grid="iso", label_prompt=[1])
    beside = {"original-review", "original-step1", "original-part", "second-iso", "original-step1-part-iso"}
    assert set(shown(server, image)) == {"original"} | beside
    assert Path(client.download_label(image, "original")).read_bytes() == whole
