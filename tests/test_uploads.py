"""A label belongs to its volume, though that was renamed on the way; other labels stay where they were sent."""

from collections.abc import Callable

import pytest

from lib.corrections import uploads as module
from lib.corrections.uploads import Uploads
from lib.errors import LabelError

READER, OTHER = "user-xyz", "script"
BOTH = ("5: t2", "of Ada")


def on(*images: str) -> Callable[[str], bool]:
    return lambda image_id: image_id in images


def meant(uploads: Uploads, image: str, *fitting: str, shown: str = "", client: str = READER) -> str:
    return uploads.meant(client, image, on(*fitting), lambda images: shown if shown in images else "")


def is_unclear(uploads: Uploads, image: str, *fitting: str) -> bool:
    with pytest.raises(LabelError, match=r"'Upload Volume'.*Client/User-ID"):
        meant(uploads, image, *fitting)
    return True


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be so late that no label comes at once any more."""
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.AT_ONCE_SECONDS + 1)


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


@pytest.fixture
def renamed(uploads: Uploads) -> Uploads:
    """A reader's volume was refused its name, and uploaded under another one."""
    uploads.refused(READER, "5: t2", "ab")
    uploads.came(READER, "of Ada", "ab")
    return uploads


def test_a_label_fits_the_volume_that_was_uploaded_last_or_stays(uploads: Uploads) -> None:
    assert meant(uploads, "5: t2", "5: t2") == "5: t2"
    uploads.came(READER, "of Ada", "ab")
    assert meant(uploads, "5: t2", "of Ada") == "of Ada"
    assert meant(uploads, "5: t2", "of Ada") == "of Ada", "submitted again"
    assert meant(uploads, "5: t2") == "5: t2"
    assert meant(uploads, "5: t2", "of Ada", client=OTHER) == "5: t2", "another client's volume"


def test_a_label_of_no_image_is_not_one_of_an_image_that_has_its_own(uploads: Uploads) -> None:
    """The second upload of a script failed: the label of that scan became the newest of the first scan."""
    uploads.came(OTHER, "case1", "ab")
    assert meant(uploads, "case1", "case1", client=OTHER) == "case1"
    assert meant(uploads, "case2", "case1", client=OTHER) == "case2"


def test_many_are_uploaded_before_the_labels_of_all_are_submitted(uploads: Uploads) -> None:
    images = ("case1", "case2", "case3")
    for image in images:
        uploads.came(OTHER, image, image)
    for image in ("case1", "case1", "case2", "case3"):
        assert meant(uploads, image, *images, client=OTHER) == image


def test_a_volume_that_was_refused_its_name_gets_its_label(renamed: Uploads) -> None:
    assert meant(renamed, "5: t2", *BOTH) == "of Ada"


def test_a_label_of_two_readers_of_one_name_is_nobodys_for_certain(renamed: Uploads) -> None:
    """The second reader's label of "5: t2" was taken for one of the volume that the first one had renamed."""
    assert meant(renamed, "5: t2", *BOTH) == "of Ada"
    assert is_unclear(renamed, "5: t2", *BOTH)
    assert meant(renamed, "5: t2", *BOTH, shown="5: t2") == "5: t2"
    assert meant(renamed, "5: t2", *BOTH, shown="of Ada") == "of Ada"
    assert meant(renamed, "5: t2", "5: t2") == "5: t2", "on another grid"
    assert meant(renamed, "of Ada", *BOTH) == "of Ada", "as the answer says"
    assert meant(renamed, "5: t2", *BOTH, client="bob") == "5: t2", "as the answer says"


@pytest.mark.parametrize("how", ["given", "uploaded", "later"])
def test_who_has_the_other_image_open_may_have_labeled_that(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    uploads.refused(READER, "5: t2", "ab")
    if how == "given":
        uploads.given(READER, "5: t2", is_user=False)
    if how == "uploaded":
        uploads.came(READER, "5: t2", "cd")
    uploads.came(READER, "of Ada", "ab")
    if how == "later":
        later(monkeypatch)
    assert is_unclear(uploads, "5: t2", *BOTH)


def test_two_readers_are_refused_the_same_name(renamed: Uploads) -> None:
    """The label of the first was taken for one of the second, or for one of the image that has the name."""
    renamed.refused(READER, "5: t2", "cd")
    assert meant(renamed, "5: t2", *BOTH) == "of Ada"
    renamed.came(READER, "of Bob", "cd")
    assert meant(renamed, "5: t2", *BOTH, "of Bob") == "of Bob"
    assert is_unclear(renamed, "5: t2", "of Ada", "of Bob")


def test_a_volume_renamed_before_it_was_refused_is_not_the_image_that_has_its_name(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its label was accepted as one of another patient's image, since the two lie on one grid."""
    uploads.came(READER, "of Ada", "ab")
    meant(uploads, "another reader's", "another reader's")
    for _ in range(2):
        assert is_unclear(uploads, "5: t2", *BOTH)
        later(monkeypatch)
    assert meant(uploads, "5: t2", *BOTH, shown="of Ada") == "of Ada"


def test_a_label_of_an_image_that_lay_in_the_folder_long_after_another_was_uploaded(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.came(OTHER, "uploaded", "ab")
    later(monkeypatch)
    assert meant(uploads, "in the folder", "in the folder", "uploaded", client=OTHER) == "in the folder"


@pytest.mark.parametrize("stranger", ["admin", READER])
def test_the_next_sample_of_a_stranger_makes_no_label_another_patients(renamed: Uploads, stranger: str) -> None:
    """A script that names no client is "admin", as are all users: it made the server forget what every reader did."""
    renamed.given(stranger, "other", is_user=False)
    if stranger == READER:
        assert is_unclear(renamed, "5: t2", *BOTH)
    assert meant(renamed, "5: t2", *BOTH, shown="of Ada") == "of Ada"


def test_a_user_with_a_name_of_his_own_has_a_new_scene(renamed: Uploads) -> None:
    renamed.given(READER, "5: t2", is_user=True)
    assert meant(renamed, "5: t2", *BOTH) == "5: t2"
