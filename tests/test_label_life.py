"""Tests of a label on a running server: its tag, its replacement, and its withdrawal."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from pacs_serving import wait_for
from phantom import RAS, image_of, lumbar_codes, own_image
from serving import Server
from test_server import add_image
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.errors import StorageError
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.site import Site

CODES = lumbar_codes()
# The client leaves its sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="slicer-of-labels")


def displayed(server: Server, image: str) -> dict[str, Any]:
    """What clients read about an image's labels, by tag."""
    objects = requests.get(f"{server.url}/datastore/", params={"output": "all"}, timeout=10).json()["objects"]
    labels: dict[str, Any] = objects[image]["labels"]
    return labels


def client_info(server: Server, image: str, tag: str) -> dict[str, Any]:
    query = {"label": image, "tag": tag}
    known: dict[str, Any] = requests.get(f"{server.url}/datastore/label/info", params=query, timeout=10).json()
    return known


def submit(client: MONAILabelClient, image: str, folder: Path, tag: str = "final", *, step: int = 2) -> dict[str, Any]:
    """Return the reply to a label with one level; a label of step 1 has discs and all vertebrae in one piece."""
    one, other = ("L4", "L4-L5") if step == 2 else ("vertebrae", "L4-L5")
    bone = CODE_OF["L4"] == CODES if step == 2 else np.isin(CODES, [CODE_OF["L4"], CODE_OF["L5"]])
    labels = np.select([bone, CODE_OF["L4-L5"] == CODES], [1, 2]).astype(np.uint8)
    write_volume(folder / "label.nii.gz", labels, RAS)
    params = {"label_info": [{"name": one}, {"name": other}]}
    reply: dict[str, Any] = client.save_label(image, str(folder / "label.nii.gz"), tag=tag, params=params)
    return reply


class CorrectionsOf(CorrectionStore):
    """The corrections of one image, because all corrections together decide which images are held out."""

    def __init__(self, root: Path, image: str) -> None:
        super().__init__(root)
        self.image = image

    def readable(self, on_damaged: Callable[[str, StorageError], None]) -> Iterator[Correction]:
        return (correction for correction in super().readable(on_damaged) if correction.image == self.image)


def training(server: Server, folder: Path, image: str) -> list[str]:
    """Return the ids of the corrections of an image that would be used for training."""
    store = CorrectionsOf(server.studies / ".totalspineseg", image)
    material = site_material(Site(folder, ModelStore(folder), store, lambda image: None))
    sources = (source.provenance for source in (*material.training, *material.holdout))
    return [source["correction"] for source in sources if source["image"] == image]


def delete(server: Server, image: str, tag: str) -> requests.Response:
    return requests.delete(f"{server.url}/datastore/label", params={"id": image, "tag": tag}, timeout=10)


def test_a_saved_result_is_sent_with_rows_for_what_was_found_alone(server: Server, client: MONAILabelClient) -> None:
    """3D Slicer, which loads a saved result with the next sample, made 54 rows of it, most of them empty."""
    image = add_image(server, "saved ü", image_of(CODES))
    present = set(np.unique(CODES)) - {0}
    for model, tag in (("totalspineseg", "original"), ("totalspineseg_step1", "original-step1")):
        reply = client.infer(model, image, {"save_label": True, "result_extension": ".nii.gz"})
        known = displayed(server, image)[tag]["info"]
        names = known["params"]["label_names"]
        assert list(names.values()) == list(range(1, len(names) + 1)), "the k-th name has the value k"
        assert known["params"] == client_info(server, image, tag)["params"]
        labels = read_labels(Path(client.download_label(image, tag))).data
        assert names == reply[1]["label_names"]
        if tag == "original":
            assert {CODE_OF[name] for name in names} == present
            for name, value in names.items():
                np.testing.assert_array_equal(labels == value, CODE_OF[name] == CODES)
        else:
            np.testing.assert_array_equal(labels == names["L4-L5"], CODE_OF["L4-L5"] == CODES)


def test_a_damaged_label_is_refused_with_a_sentence(server: Server, client: MONAILabelClient) -> None:
    image = add_image(server, "damaged", image_of(CODES))
    client.infer("totalspineseg", image, {"save_label": True, "result_extension": ".nii.gz"})
    (file,) = (server.studies / "labels" / "original").glob(f"{image}.nii.gz")
    file.write_bytes(b"no image")
    query = {"label": image, "tag": "original"}
    answer = requests.get(f"{server.url}/datastore/label", params=query, timeout=20)
    assert answer.status_code in (404, 422)
    assert answer.json()["detail"]


def test_only_a_whole_prediction_is_shown_as_one(server: Server, client: MONAILabelClient) -> None:
    """The two marks of a review replaced the prediction: readers got marks, and step 2 read them as cord and canal."""
    image = add_image(server, "predicted", image_of(CODES))

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
    assert set(displayed(server, image)) == {"original"} | beside
    assert Path(client.download_label(image, "original")).read_bytes() == whole


def test_a_label_taken_back_is_neither_displayed_nor_used_for_training(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """A wrong label that was deleted was still used for training, which reads the history."""
    image = add_image(server, "wrong", image_of(CODES))
    step1 = submit(client, image, tmp_path, "step1", step=1)["correction"]
    wrong = [submit(client, image, tmp_path)["correction"] for _ in range(2)]
    assert training(server, tmp_path, image) == wrong[1:]
    answer = delete(server, image, "final")
    assert (answer.status_code, answer.json()["withdrawn"]) == (200, wrong)
    assert set(displayed(server, image)) == {"step1"}
    assert training(server, tmp_path, image) == [step1], "what it had stood before counts again"
    store = CorrectionStore(server.studies / ".totalspineseg")
    assert [stored.id for stored in store.of_image(image)] == [step1, *wrong], "nothing is deleted"
    record = json.loads(next((store.withdrawals._root / image / wrong[0]).iterdir()).read_text(encoding="utf-8"))
    assert (record["user"], record["correction"], bool(record["received"])) == ("admin", wrong[0], True)
    right = submit(client, image, tmp_path)["correction"]
    assert (set(displayed(server, image)), training(server, tmp_path, image)) == ({"final", "step1"}, [right])
    assert delete(server, image, "step1").json()["withdrawn"] == [step1]
    assert set(displayed(server, image)) == {"final"}


def test_a_prediction_can_be_removed_and_what_is_not_there_cannot(server: Server, client: MONAILabelClient) -> None:
    image = add_image(server, "removed", image_of(CODES))
    client.infer("totalspineseg", image, {"save_label": True})
    assert delete(server, image, "original").json()["withdrawn"] == []
    assert displayed(server, image) == {}
    for name in (image, "nobody"):
        answer = delete(server, name, "original")
        assert (answer.status_code, "'original'" in answer.json()["detail"]) == (404, True)


def test_a_replaced_image_is_offered_again_and_its_old_labels_are_used_for_nothing(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """The label still counted as finished, so the image was never offered again, and the label named the levels of
    other scans."""
    image = add_image(server, "replaced", image_of(CODES))
    file, before = server.studies / "replaced.nii.gz", tmp_path / "before.nii.gz"
    client.infer("totalspineseg", image, {"save_label": True})
    submit(client, image, tmp_path)
    finished = client.info()["datastore"]["completed"]
    shutil.copy(file, before)
    write_volume(file, own_image("in its place", np.roll(image_of(CODES), 6, axis=1)), RAS)
    assert displayed(server, image) == {}
    for tag in ("final", "original"):
        assert requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": tag}).status_code == 404
    with pytest.raises(MONAILabelClientException, match="localizer"):
        client.infer("totalspineseg", "z-last", {"localizer": image})
    assert client.info()["datastore"]["completed"] == finished - 1
    shutil.copy(before, file)
    assert set(displayed(server, image)) == {"final", "original"}, "restored, by its content"
    assert client.info()["datastore"]["completed"] == finished


def test_an_image_that_was_away_does_not_get_its_old_labels_back(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """An image that was removed and copied again was finished by the old label's file, about which nothing was
    known."""
    image = add_image(server, "renewed", image_of(CODES))
    file = server.studies / "renewed.nii.gz"
    correction = submit(client, image, tmp_path)["correction"]
    shutil.copy(file, tmp_path)
    for renewed in (True, False):
        file.unlink()
        wait_for(lambda: image not in client.datastore()["objects"])
        if renewed:
            add_image(server, image, np.roll(image_of(CODES), 6, axis=1))
            assert displayed(server, image) == {}
        else:
            shutil.copy(tmp_path / file.name, file)
            wait_for(lambda: image in client.datastore()["objects"])
            assert displayed(server, image)["final"]["info"]["correction"] == correction


def test_clients_cannot_change_what_the_server_relies_on(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """A client wrote ``{"strategy": 1}`` into the information about one image, and nobody got a next sample."""
    write_volume(tmp_path / "odd.nii.gz", own_image("odd", image_of(CODES)), RAS)
    odd = {"strategy": 1, "ward": "3b", "id": "9", "warning": "9"}
    image = client.upload_image(str(tmp_path / "odd.nii.gz"), "odd", params=odd)["image"]
    correction = submit(client, image, tmp_path)["correction"]
    for path, data in (
        ("image/info", {"image": image}),
        ("label/info", {"label": image, "tag": "final"}),
        ("updatelabelinfo", {"label": image, "tag": "final"}),
    ):
        field = "params" if path == "updatelabelinfo" else "info"
        reported = {**odd, "correction": "9", "image_sha256": "9", "image_imprint": 9, "id": "9", "path": "9"}
        answer = requests.put(
            f"{server.url}/datastore/{path}", params=data, data={field: json.dumps(reported)}, timeout=10
        )
        assert answer.status_code == 200, answer.text
    known = requests.get(f"{server.url}/datastore/image/info", params={"image": image}, timeout=10).json()
    assert (known["ward"], known.keys() & {"strategy", "id", "warning"}) == ("3b", set())
    label = displayed(server, image)["final"]["info"]
    assert (label["ward"], label["correction"]) == ("3b", correction)
    assert (
        requests.put(f"{server.url}/datastore/image/info", params={"image": image}, data={"info": "1"}).status_code
        == 422
    )
    for strategy in ("first", "last", "random"):
        assert client.next_sample(strategy, {})["id"]
