"""Tests that fetched series stay within their disk space, and that the PACS gets no needless requests."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pacs_stand_in import FIRST, SECOND, Pacs, named, pacs_app, two_studies
from totalspineseg_server.corrections import ids
from totalspineseg_server.errors import StorageError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.pacs import listing
from totalspineseg_server.pacs.cache import IN_USE_SECONDS, CachedSeries, excess
from totalspineseg_server.pacs.listing import Listing
from totalspineseg_server.pacs.pacs_datastore import PacsDatastore
from totalspineseg_server.training.holdout import update_split

pytestmark = pytest.mark.slow

OLD = time.time() - 2 * IN_USE_SECONDS
SERIES = tuple(CachedSeries(uid, used, 10) for uid, used in (("b", 2.0), ("a", 1.0), ("c", 3.0)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_studies(tmp_path_factory.mktemp("files"))


def kept_in(
    pacs: Pacs, folder: Path, *, cache_gb: float, is_needed: Callable[[str], bool] = lambda uid: False
) -> PacsDatastore:
    return PacsDatastore(
        pacs, folder, {"Modality": "MR"}, publisher=lambda *_: None, is_needed=is_needed, cache_gb=cache_gb
    )


def leave(store: PacsDatastore, uid: str) -> Path:
    """Fetch a series and stop using it."""
    volume = Path(store.get_image_uri(uid))
    os.utime(volume, (OLD, volume.stat().st_mtime))
    return volume


@pytest.mark.parametrize(
    ("room", "needed", "removed"),
    [(30, "", ""), (29, "", "a"), (10, "", "ab"), (0, "", "abc"), (29, "a", "b"), (0, "b", "ac"), (0, "abc", "")],
)
def test_what_was_unused_for_longest_goes_first(room: int, needed: str, removed: str) -> None:
    assert excess(SERIES, room, lambda uid: uid in needed) == tuple(removed)


def test_a_series_makes_room_for_another_and_comes_back_the_same(tmp_path: Path, files: Path) -> None:
    """Every series that was ever opened stayed on the server's disk for good."""
    pacs = Pacs(files)
    store = kept_in(pacs, tmp_path, cache_gb=0)
    content = Path(store.get_image_uri(FIRST)).read_bytes()
    first = leave(store, FIRST)
    assert Path(store.get_image_uri(SECOND)).is_file()
    assert (first.exists(), (tmp_path / "dicom" / FIRST).exists()) == (False, False)
    assert store.present_file(FIRST) is None
    again = kept_in(pacs, tmp_path, cache_gb=0)
    assert Path(again.get_image_uri(FIRST)).read_bytes() == content
    assert pacs.fetched == [FIRST, SECOND, FIRST]


@pytest.mark.parametrize("why", ["room", "needed", "labeled", "just used", "files just used"])
def test_what_stays(tmp_path: Path, files: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs = Pacs(files)
    cache_gb = 1.0 if why == "room" else 0.0
    store = kept_in(pacs, tmp_path, cache_gb=cache_gb, is_needed=lambda uid: why == "needed")
    first = leave(store, FIRST)
    if why == "labeled":
        image = read_image(first)
        labels: LabelArray = np.ones(image.data.shape, np.uint8)
        write_volume(tmp_path / "label.nii.gz", labels, image.grid)
        store.save_label(FIRST, str(tmp_path / "label.nii.gz"), "original", {})
        os.utime(first, (OLD, OLD))
    if why == "just used":
        assert store.get_image_uri(FIRST) == str(first)
    if why == "files just used":
        assert store.series_folder(FIRST).is_dir()
    assert Path(store.get_image_uri(SECOND)).is_file()
    assert (first.exists(), (tmp_path / "dicom" / FIRST).exists()) == (True, True)
    assert store.get_image_uri(FIRST) == str(first)


def test_a_series_used_while_room_is_made_stays(tmp_path: Path, files: Path) -> None:
    """A series that was about to be removed was requested, and then removed."""
    store: Any = None

    def asked_meanwhile(uid: str) -> bool:
        assert store.get_image_uri(uid)
        return False

    store = kept_in(Pacs(files), tmp_path, cache_gb=0, is_needed=asked_meanwhile)
    first = leave(store, FIRST)
    assert store.get_image_uri(SECOND)
    assert first.exists()


def test_who_asks_for_a_series_gets_it_although_no_room_can_be_made(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = kept_in(Pacs(files), tmp_path, cache_gb=0)
    leave(store, FIRST)

    def held(uid: str) -> None:
        raise StorageError("another process holds the index")

    monkeypatch.setattr(store, "_remove_unused", held)
    assert Path(store.get_image_uri(SECOND)).is_file()
    assert "another process" in caplog.text


def test_corrected_series_and_patients_with_a_role_stay(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = pacs_app(Pacs(files), tmp_path, monkeypatch)
    assert not app._is_needed(FIRST)
    (tmp_path / "work" / "corrections" / ids.folder_name(SECOND) / "2026").mkdir(parents=True)
    assert app._is_needed(SECOND)
    update_split(tmp_path / "work" / "holdout.json", [app._subject(FIRST)])
    assert app._is_needed(FIRST)
    (tmp_path / "work" / "holdout.json").write_text("{", encoding="utf-8")
    assert app._is_needed(FIRST), "nobody knows who judges"


def test_a_large_list_is_read_less_often(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While anybody worked, the list of all series was read every ten seconds, however long that took."""
    pacs, now = Pacs(files), [1000.0]
    displayed = Listing(pacs, {"Modality": "MR"})
    monkeypatch.setattr(listing.time, "monotonic", lambda: now[0])
    answer = pacs.answer

    def slow(seconds: float) -> None:
        monkeypatch.setattr(pacs, "answer", lambda: (now.__setitem__(0, now[0] + seconds), answer()))

    for took, fresh in ((0.1, 10.0), (3.0, 60.0), (100.0, 300.0)):
        slow(took)
        displayed.changed()
        displayed.all()
        searches = pacs.searches
        now[0] += fresh
        displayed.all()
        assert pacs.searches == searches
        now[0] += 1
        displayed.all()
        assert pacs.searches == searches + 1


def test_a_new_series_is_found_with_one_request(tmp_path: Path, files: Path) -> None:
    pacs = Pacs(files)
    coming = pacs.series.pop(SECOND)
    store = kept_in(pacs, tmp_path, cache_gb=1)
    assert set(store.list_images()) == {FIRST}
    assert (store.offers(SECOND), store.get_image_uri(SECOND)) == (False, "")
    pacs.series[SECOND] = coming
    pacs.series["1.2"] = named("1.2", description="localizer")
    pacs.series |= {f"1.3.{k}": named(f"1.3.{k}") for k in range(3)}
    searches = pacs.searches
    assert store.offers(SECOND)
    assert set(store.list_images()) == {FIRST, SECOND}, "its study's other series must find it, too"
    assert pacs.searches == searches + 1
    assert store.series_folder(SECOND).is_dir()
    assert not store.offers("1.2")
    assert not store.offers("../x")


def test_a_series_that_was_still_arriving_is_fetched_again_although_the_list_is_old(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader worked on a part of a series as long as the list of a large PACS was not read again."""
    pacs, now = Pacs(files), [1000.0]
    whole = pacs.series[FIRST]
    pacs.series[FIRST] = whole[: len(whole) // 2]
    monkeypatch.setattr(listing.time, "monotonic", lambda: now[0])
    store = kept_in(pacs, tmp_path, cache_gb=1)
    monkeypatch.setattr(listing, "REST", 1e9)
    answer = pacs.answer
    monkeypatch.setattr(pacs, "answer", lambda: (now.__setitem__(0, now[0] + 1), answer()))
    part = read_image(Path(store.get_image_uri(FIRST))).data.shape
    pacs.series[FIRST] = whole
    now[0] += 11
    searches = pacs.searches
    assert np.prod(read_image(Path(store.get_image_uri(FIRST))).data.shape) == 2 * np.prod(part)
    store.get_image_uri(FIRST)
    assert pacs.searches == searches + 1


def test_a_label_is_no_reason_to_list_all_series_again(tmp_path: Path, files: Path) -> None:
    """Each submission made the server list all series again, although a segmentation changes none of them."""
    pacs = Pacs(files)
    store = kept_in(pacs, tmp_path, cache_gb=1)
    image = read_image(Path(store.get_image_uri(FIRST)))
    labels: LabelArray = np.ones(image.data.shape, np.uint8)
    write_volume(tmp_path / "label.nii.gz", labels, image.grid)
    searches = pacs.searches
    store.save_label(FIRST, str(tmp_path / "label.nii.gz"), "final", {})
    assert store.get_unlabeled_images() == [SECOND]
    assert pacs.searches == searches
