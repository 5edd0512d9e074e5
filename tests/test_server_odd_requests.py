"""Tests of odd requests that ``make fuzz`` found: none may cause a fault of the server."""

import json
from typing import Any

import pytest
import requests

from serving import Server
from totalspineseg_server.front.studies import MAX_FILE_NAME, plain_name
from totalspineseg_server.version import VERSION

FILES = [("files", ("a.dcm", b"one")), ("files", ("b.dcm", b"two"))]


def session(server: Server, files: list[tuple[str, tuple[str, bytes]]]) -> str:
    answer = requests.put(f"{server.url}/session/", files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["session_id"])


@pytest.mark.parametrize("query", ["id=&tag=", "id=&tag=final", "id=z-last&tag=", "id=nobody&tag=final"])
def test_a_label_without_a_name_is_not_there(server: Server, query: str) -> None:
    """``DELETE /datastore/label?id=&tag=`` was answered with 500."""
    answer = requests.delete(f"{server.url}/datastore/label?{query}", timeout=60)
    assert (answer.status_code, "label" in answer.json()["detail"]) == (404, True)


def test_an_image_without_a_name_has_no_label(server: Server) -> None:
    """``GET /datastore/label/info?label=&tag=final`` was answered with 500, and so were HEAD and PUT."""
    url, label = f"{server.url}/datastore/label", {"label": "", "tag": "final"}
    assert requests.get(f"{url}/info", params=label, timeout=60).json() == {}
    assert requests.get(url, params=label, timeout=60).status_code == 404
    assert requests.head(url, params={"image": "", "tag": "final"}, timeout=60).status_code == 404
    assert requests.put(f"{url}/info", params=label, data={"info": "{}"}, timeout=60).status_code == 404


def test_a_series_in_a_session_is_not_sent_back_as_one_file(server: Server) -> None:
    """``GET /session/ID?image=true`` was answered with 500 if the session has a folder."""
    series, one = session(server, FILES), session(server, FILES[:1])
    url = f"{server.url}/session"
    answer = requests.get(f"{url}/{series}?image=true", timeout=60)
    assert (answer.status_code, "series of files" in answer.json()["detail"]) == (422, True)
    assert requests.get(f"{url}/{series}", timeout=60).json()["name"] == series
    assert requests.get(f"{url}/{one}?image=true", timeout=60).content == b"one"
    assert requests.get(f"{url}/{one[:-1]}0a?image=true", timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("ü" * 150 + ".dcm", "ü" * 98 + ".dcm"),
        ("脊" * 200, "脊" * 66),
        ("..", ""),
        ("a/..", ""),
        ("a\\..", ""),
        (".", ""),
        ("\ud800.dcm", ".dcm"),
        ("C:\\scans\\a\n.dcm", "a.dcm"),
    ],
)
def test_a_file_of_any_name_can_be_stored(sent: str, stored: str) -> None:
    """Names were cut by characters instead of bytes, so that 150 umlauts, or a file called ``..``, were answered with
    500."""
    assert plain_name(sent) == stored
    assert len(stored.encode()) <= MAX_FILE_NAME


@pytest.mark.parametrize("name", ["ü" * 150 + ".dcm", "..", "meta.info"])
def test_a_session_of_a_file_of_any_name(server: Server, name: str) -> None:
    """An image called ``meta.info`` was overwritten by MONAI Label's information about the session."""
    made = session(server, [("files", (name, b"image"))])
    assert requests.get(f"{server.url}/session/{made}?image=true", timeout=60).content == b"image"
    session(server, [("files", (name, b"image")), ("files", (name, b"image"))])


@pytest.fixture(scope="module")
def description(server: Server) -> Any:
    return requests.get(f"{server.url}/openapi.json", timeout=60).json()


def test_the_description_is_of_this_server(server: Server, description: Any) -> None:
    """The description was that of MONAI Label: models were any text, and closed routes were listed as open."""
    assert (description["info"]["title"], description["info"]["version"]) == ("TotalSpineSeg", VERSION)
    info = requests.get(f"{server.url}/info/", timeout=60).json()
    for path, known in {
        "/infer/{model}": info["models"],
        "/batch/infer/{model}": info["models"],
        "/train/{model}": info["trainers"],
        "/scoring/{method}": info["scoring"],
        "/activelearning/{strategy}": info["strategies"],
    }.items():
        assert parameter(description, path, "post", path.rpartition("{")[2][:-1])["enum"] == sorted(known)
    paths = description["paths"]
    assert {"/model/{model}", "/infer/wsi_v2/{model}", "/datastore/dataset", "/reload"} & set(paths) == set()
    assert not [path for path in paths if path.startswith(("/proxy", "/submissions/{"))]
    assert {"/submissions/", "/submissions/interpret"} <= set(paths)
    assert {"get", "delete"} <= set(paths["/train/"])


def parameter(description: Any, path: str, method: str, name: str) -> Any:
    (schema,) = [entry["schema"] for entry in description["paths"][path][method]["parameters"] if entry["name"] == name]
    return schema


def test_the_description_says_what_the_guard_takes(description: Any) -> None:
    assert parameter(description, "/datastore/label", "get", "tag")["pattern"].startswith("^[A-Za-z0-9]")
    assert parameter(description, "/datastore/image", "get", "image")["maxLength"] == 200
    assert {"const": ""} in parameter(description, "/infer/{model}", "post", "image")["anyOf"]
    assert "totalspineseg_step1" in parameter(description, "/infer/{model}", "post", "model")["enum"]
    assert "enum" not in parameter(description, "/infer/{model}", "post", "image")
    names = {entry["name"] for entry in description["paths"]["/batch/infer/{model}"]["post"]["parameters"]}
    assert names == {"model", "images"}
    assert [entry["name"] for entry in description["paths"]["/scoring/{method}"]["post"]["parameters"]] == ["method"]
    (form,) = description["paths"]["/datastore/label"]["put"]["requestBody"]["content"].values()
    fields = description["components"]["schemas"][form["schema"]["$ref"].rpartition("/")[2]]["properties"]
    assert fields["params"]["contentSchema"] == {"type": "object"}
    assert json.dumps(description)
