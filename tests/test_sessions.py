"""Tests that sessions are removed when they are over, whatever else is in their folder."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from monailabel.utils.sessions import Sessions

from pacs_stand_in import Pacs, pacs_app
from totalspineseg_server.infers.sessions import META_FILE, remove_expired

EXPIRY = 600


def session(root: Path, name: str, *, age: int, meta: Any = None) -> Path:
    """A session's folder as it was left some seconds ago."""
    folder, then = root / name, int(time.time()) - age
    folder.mkdir(parents=True)
    (folder / "image.nii.gz").write_bytes(b"image")
    known = {"image": str(folder / "image.nii.gz"), "last_access_ts": then, "expiry": EXPIRY}
    if meta != "":
        (folder / META_FILE).write_text(json.dumps(known) if meta is None else meta, encoding="utf-8")
    os.utime(folder, (then, then))
    return folder


@pytest.mark.parametrize(
    "meta", [None, "", "{", "[]", '{"expiry": null}'], ids=["whole", "none", "cut", "list", "null"]
)
def test_expired_sessions_go_and_others_stay(tmp_path: Path, meta: str | None) -> None:
    """An upload that a full disk had cut off ended the cleaning for good, and images piled up."""
    old = session(tmp_path, "a-old", age=2 * EXPIRY, meta=meta)
    fresh = session(tmp_path, "b-fresh", age=1, meta=meta)
    last = session(tmp_path, "c-old", age=2 * EXPIRY)
    assert remove_expired(Sessions(str(tmp_path), EXPIRY)) == 2
    assert (old.exists(), fresh.exists(), last.exists()) == (False, True, False)


def test_no_folder_yet(tmp_path: Path) -> None:
    assert remove_expired(Sessions(str(tmp_path / "none"), EXPIRY)) == 0


def test_the_server_starts_although_a_session_is_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash during an upload, the server did not start anymore."""
    half = session(tmp_path / "sessions", "half", age=10**6, meta="")
    app = pacs_app(Pacs(), tmp_path, monkeypatch)
    app.cleanup_sessions()
    assert not half.exists()
