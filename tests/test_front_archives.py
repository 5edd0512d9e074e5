"""Tests that a .zip of a series is accepted, and that one that could harm the server is refused with a sentence."""

import errno
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.utils.sessions import Sessions

from dicom_series import save, slices
from phantom import RAS, image_of, lumbar_codes, own_image
from serving import Server
from totalspineseg_server.errors import ArchiveError, StorageError, TooLargeError
from totalspineseg_server.front.studies import _add_session, unpack_series
from totalspineseg_server.infers.http import status_of
from totalspineseg_server.io import zips
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume
from totalspineseg_server.segments import from_wire

LIMIT = 1 << 20
LINK = 0o120777 << 16


def zipped(*names: str, content: bytes = b"x", kind: int = zipfile.ZIP_DEFLATED, attributes: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = kind, attributes
            archive.writestr(entry, content)
    return stream.getvalue()


def locked() -> bytes:
    """Mark the entries as if they had a password."""
    return (
        zipped("a")
        .replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1")
        .replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")
    )


HOSTILE = {
    "a bomb": (zipped("a", content=bytes(LIMIT + 1)), 413, "more than 1 MiB"),
    "a bomb in pieces": (zipped("a", "b", content=bytes(LIMIT // 2 + 1)), 413, "more than 1 MiB"),
    "unpacked at once": (zipped("a", kind=zipfile.ZIP_BZIP2), 422, "nor deflated"),
    "climbs": (zipped("a", "../b"), 422, "leaves its folder"),
    "climbs on Windows": (zipped("a", "b\\..\\..\\c"), 422, "leaves its folder"),
    "absolute": (zipped("/etc/b"), 422, "leaves its folder"),
    "a drive": (zipped("c:/b"), 422, "leaves its folder"),
    "a link": (zipped("a", attributes=LINK), 422, "a link"),
    "without a name": (zipped("a").replace(b"\1\0\0\0", b"\0\0\1\0"), 422, "no name"),
    "nothing": (zipped("a/", "__MACOSX/a/._b", ".hidden"), 422, "no files"),
    "with a password": (locked(), 422, "without a password"),
    "no zip": (b"no zip", 422, "not a readable .zip"),
    "damaged": (zipped("a", content=bytes(range(256))).replace(bytes(range(9)), bytes(9)), 422, "not a readable .zip"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case: str, tmp_path: Path) -> None:
    content, status, text = HOSTILE[case]
    (tmp_path / "series").mkdir()
    with pytest.raises(ArchiveError, match=text) as caught:
        unpack_series(io.BytesIO(content), tmp_path / "series", max_bytes=LIMIT)
    assert status_of(caught.value) == status
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_too_many_entries_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of entries is read into memory in one piece, whatever its length."""
    many = zipped(*map(str, range(30)))
    monkeypatch.setattr(zips, "MAX_ENTRIES", 29)
    with pytest.raises(TooLargeError, match="more than 29 entries"):
        unpack_series(io.BytesIO(many), tmp_path, max_bytes=LIMIT)
    monkeypatch.setattr(zipfile, "ZipInfo", None)
    monkeypatch.setattr(zips, "BYTES_PER_ENTRY", 34)
    with pytest.raises(TooLargeError, match="more than 29 entries"):
        unpack_series(io.BytesIO(many), tmp_path, max_bytes=LIMIT)


def test_a_lack_of_space_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(StorageError, match="Free space") as caught:
        unpack_series(io.BytesIO(zipped("a")), tmp_path, max_bytes=LIMIT)
    assert (status_of(caught.value), list(tmp_path.iterdir())) == (507, [])


def test_a_series_in_folders_is_read(tmp_path: Path) -> None:
    """Exports have a folder for each series, in which the reader of a series does not look; macOS adds files of its
    own."""
    series, unpacked = tmp_path / "series", tmp_path / "unpacked"
    unpacked.mkdir()
    save(series, slices())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(series.iterdir()):
            archive.write(file, f"patient/T2 sag/{file.name}")
            archive.writestr(f"__MACOSX/patient/T2 sag/._{file.name}", b"\0\5\x16\7")
    folder = unpack_series(stream, unpacked, max_bytes=LIMIT)
    np.testing.assert_array_equal(read_image(folder).data, read_image(series).data)


def test_a_session_that_cannot_be_stored_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "image.nrrd").write_bytes(b"image")
    monkeypatch.setattr(Sessions, "_write_meta_info", full)
    with pytest.raises(OSError, match="No space"):
        _add_session(Sessions(str(tmp_path / "sessions")), tmp_path / "image.nrrd", 0)
    assert list((tmp_path / "sessions").iterdir()) == []


def test_a_bomb_leaves_nothing_on_the_server(server: Server) -> None:
    """A zip bomb filled the disk, and what had been unpacked until then stayed."""
    sessions = server.studies / ".totalspineseg" / "sessions"
    before = sorted(sessions.iterdir()) if sessions.is_dir() else []
    answer = upload(server, zipped("a", content=bytes(9 << 20)))
    assert (answer.status_code, "8 MiB" in answer.json()["detail"]) == (413, True)
    assert (sorted(sessions.iterdir()) if sessions.is_dir() else []) == before


def test_a_packed_image_is_segmented(server: Server, tmp_path: Path) -> None:
    write_volume(tmp_path / "mine.nrrd", own_image("packed", image_of(lumbar_codes())), RAS)
    session = upload(server, zipped("deep/mine.nrrd", content=(tmp_path / "mine.nrrd").read_bytes())).json()
    answer = requests.post(
        f"{server.url}/infer/totalspineseg",
        params={"session_id": session["session_id"], "output": "image"},
        data={"params": json.dumps({"result_extension": ".nii.gz"})},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    (tmp_path / "result.nii.gz").write_bytes(answer.content)
    np.testing.assert_array_equal(from_wire(read_labels(tmp_path / "result.nii.gz").data), lumbar_codes())


def upload(server: Server, content: bytes) -> requests.Response:
    return requests.put(
        f"{server.url}/session/", params={"uncompress": True}, files={"files": ("series.zip", content)}, timeout=60
    )
