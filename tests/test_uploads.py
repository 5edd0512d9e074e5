"""Tests that a label is filed under the image it was sent for, or under none, never under another patient's."""

from collections.abc import Callable

import pytest

from totalspineseg_server.corrections import receipts as module
from totalspineseg_server.corrections.interpretation import resolve_image
from totalspineseg_server.corrections.receipts import Claims, Uploads
from totalspineseg_server.errors import LabelError, UnknownImageError

READER, OTHER = "user-xyz", "script"
BOTH = ("5: t2", "of Ada")


def among(*images: str) -> Callable[[str], bool]:
    return lambda image_id: image_id in images


def resolved(uploads: Uploads, image: str, *fitting: str, client: str = READER, known: tuple[str, ...] = BOTH) -> str:
    """Return the image under which a label on some grids is filed; "unclear" if it is parked, "404" if there is
    none."""
    try:
        return resolve_image(image, uploads.claims(client, image), among(*known), among(*fitting))
    except LabelError as error:
        assert "'Upload Volume'" in str(error)
        return "unclear"
    except UnknownImageError:
        return "404"


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so much time pass that no label can belong to an upload anymore."""
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.AT_ONCE_SECONDS + 1)


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


@pytest.fixture
def renamed(uploads: Uploads) -> Uploads:
    """A reader's volume was refused under its name and uploaded under another one."""
    uploads.record_refusal(READER, "5: t2", "ab")
    uploads.record_upload(READER, "of Ada", "ab")
    return uploads


@pytest.mark.parametrize("fitting", [(), ("of Ada",)], ids=["no grid", "its grid"])
def test_a_label_of_no_image_does_not_go_to_another_one(uploads: Uploads, fitting: tuple[str, ...]) -> None:
    """The label of a scan that was not uploaded was filed under the scan that was uploaded before."""
    uploads.record_upload(READER, "of Ada", "ab")
    assert resolved(uploads, "nobody", *fitting) == "404"


def test_many_are_uploaded_before_the_labels_of_all_are_submitted(uploads: Uploads) -> None:
    images = ("case1", "case2", "case3")
    for image in images:
        uploads.record_upload(OTHER, image, image)
    for image in ("case1", "case1", "case2", "case3"):
        assert resolved(uploads, image, *images, client=OTHER, known=images) == image


def test_a_volume_that_was_refused_its_name_gets_its_label(renamed: Uploads) -> None:
    """3D Slicer uploads it under the new name and at once sends the label for the old one."""
    assert resolved(renamed, "5: t2", *BOTH) == "of Ada"
    assert resolved(renamed, "5: t2", "of Ada") == "of Ada", "submitted again, and on its grid alone"
    assert resolved(renamed, "5: t2", *BOTH) == "unclear", "submitted again, by whomever"
    assert resolved(renamed, "5: t2", "5: t2") == "5: t2", "on another grid"
    assert resolved(renamed, "of Ada", *BOTH) == "of Ada", "as the answer says"
    assert resolved(renamed, "5: t2", *BOTH, client="bob") == "5: t2", "as the answer says"
    assert resolved(renamed, "5: t2", "of Ada", known=("of Ada",)) == "of Ada", "the other one was removed"
    assert resolved(renamed, "5: t2", known=("of Ada",)) == "404"


@pytest.mark.parametrize("how", ["offered", "uploaded", "later", "offered another"])
def test_a_client_that_may_have_the_other_image_open_may_have_labeled_it(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    uploads.record_refusal(READER, "5: t2", "ab")
    if how == "offered":
        uploads.record_offer(READER, "5: t2")
    if how == "uploaded":
        uploads.record_upload(READER, "5: t2", "cd")
    uploads.record_upload(READER, "of Ada", "ab")
    if how == "offered another":
        uploads.record_offer(READER, "other")
    if how == "later":
        later(monkeypatch)
    assert resolved(uploads, "5: t2", *BOTH) == "unclear"


def test_two_readers_are_refused_the_same_name(renamed: Uploads) -> None:
    """The label of the first reader was filed under the second reader's image, or under the image that has the name."""
    renamed.record_refusal(READER, "5: t2", "cd")
    renamed.record_upload(READER, "of Bob", "cd")
    known = (*BOTH, "of Bob")
    assert resolved(renamed, "5: t2", "of Bob", known=known) == "of Bob"
    assert resolved(renamed, "5: t2", "of Ada", known=known) == "of Ada"
    assert resolved(renamed, "5: t2", "of Ada", "of Bob", known=known) == "unclear"


def test_a_volume_renamed_before_it_was_refused_is_not_the_image_that_has_its_name(uploads: Uploads) -> None:
    """Its label was accepted for another patient's image, because both images have the same grid."""
    uploads.record_upload(READER, "of Ada", "ab")
    assert resolved(uploads, "5: t2", *BOTH) == "unclear"
    uploads.record_upload(READER, "of Ada", "ab")
    assert resolved(uploads, "of Ada", *BOTH) == "of Ada"


def test_a_label_of_an_image_in_the_folder_after_another_was_uploaded(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ("in the folder", "uploaded")
    uploads.record_upload(OTHER, "uploaded", "ab")
    assert resolved(uploads, "in the folder", *known, client=OTHER, known=known) == "unclear"
    uploads.record_upload(OTHER, "uploaded", "ab")
    later(monkeypatch)
    assert resolved(uploads, "in the folder", *known, client=OTHER, known=known) == "in the folder"


def test_no_claims_leave_every_label_where_it_was_sent() -> None:
    assert resolve_image("a", Claims(), among("a"), among()) == "a"
