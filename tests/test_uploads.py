"""A label belongs to its volume, though that was renamed on the way; other labels stay where they were sent."""

from collections.abc import Callable

from lib.corrections.uploads import Uploads

READER, OTHER = ("user-xyz", "admin"), ("script", "admin")


def on(*images: str) -> Callable[[str], bool]:
    return lambda image_id: image_id in images


def test_a_label_fits_the_volume_that_was_uploaded_last_or_stays() -> None:
    uploads = Uploads()
    assert uploads.meant(READER, "5: t2", on("5: t2")) == "5: t2"
    uploads.came(READER, "of Ada", "ab")
    assert uploads.meant(READER, "5: t2", on("of Ada")) == "of Ada"
    assert uploads.meant(READER, "5: t2", on()) == "5: t2"
    assert uploads.meant(READER, "of Ada", on("of Ada")) == "of Ada"
    assert uploads.meant(READER, "5: t2", on("5: t2", "of Ada")) == "5: t2", "both fit, and nothing was refused"
    assert uploads.meant(OTHER, "5: t2", on("of Ada")) == "5: t2", "another client's volume"


def test_images_on_one_grid_are_told_apart_by_what_was_refused() -> None:
    """A script that uploads a whole data set again, some of it changed, submits the labels of all."""
    uploads = Uploads()
    uploads.refused(READER, "5: t2", "ab")
    assert uploads.meant(READER, "5: t2", on("5: t2")) == "5: t2"
    uploads.came(READER, "next", "cd")
    assert uploads.meant(READER, "5: t2", on("5: t2", "next")) == "5: t2", "another volume than the refused one"
    uploads.came(READER, "of Ada", "ab")
    assert uploads.meant(READER, "5: t2", on("5: t2", "of Ada")) == "of Ada"
    uploads.forget("user-xyz")
    assert uploads.meant(READER, "5: t2", on("5: t2", "of Ada")) == "5: t2", "a new scene"
