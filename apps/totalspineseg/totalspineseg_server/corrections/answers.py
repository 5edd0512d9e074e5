"""Hold the sentences about submitted labels and about the studies, in one place so that they can be read in a row."""

from collections.abc import Sequence
from typing import Final

from totalspineseg_server.errors import ImageError
from totalspineseg_server.places import COMMAND

LISTED: Final = 5
"""Largest number of names in a sentence, so that it stays readable."""
FINDINGS_LISTED: Final = 3
"""Largest number of findings in an answer: a notice of the viewer shows a few lines."""
FOLLOWERS_LISTED: Final = 3
"""Largest number of renamed levels in a sentence."""

# The label is accepted.


def submitted(step: int | None, structures: int, *, renumbered: str, findings: Sequence[str], is_finished: bool) -> str:
    """Confirm a label: the answer begins with the effect of a rename, and ends with the places to check."""
    kind = "corrected step-1 label" if step == 1 else "finished label"
    unfinished = ""
    if not is_finished:
        kind = "label in progress"
        unfinished = " It does not count as finished, because its tag is not 'final'."
    plural = "" if structures == 1 else "s"
    more = f" And {len(findings) - FINDINGS_LISTED} more." if len(findings) > FINDINGS_LISTED else ""
    check = f" Please check: {' '.join(findings[:FINDINGS_LISTED])}{more}" if findings else ""
    return f"{renumbered} Submitted as a {kind} with {structures} structure{plural}.{unfinished}{check}".strip()


# One level was renamed, and the others follow.


def followed(was: str, now: str, names: dict[str, str]) -> str:
    """Say which levels were renamed to match the one that the reader renamed."""
    some = ", ".join(f"{before} is now {after}" for before, after in list(names.items())[:FOLLOWERS_LISTED])
    more = f" and {len(names) - FOLLOWERS_LISTED} more" if len(names) > FOLLOWERS_LISTED else ""
    return (
        f"You renamed {was} to {now}; the other levels follow: {some}{more}. No outline changed, and your file is "
        "kept as you sent it. If one of these names is wrong now, rename that level, too, and submit again."
    )


def cannot_follow(was: str, now: str) -> str:
    """Say that the other levels could not be renamed to match."""
    return (
        f"You renamed {was} to {now}. The other levels cannot be renamed to match without a conflict, so they stay as "
        "you sent them. Check their names."
    )


def nothing_to_follow(was: str, now: str) -> str:
    """Say that the other levels match the new name already."""
    return f"You renamed {was} to {now}. The names of the other levels match it already."


# The label is accepted, but its reader should look again (findings).


def unchanged(chance: str) -> str:
    """Say that a doubtful prediction was submitted as it was."""
    return (
        f"You changed nothing, although the level names of this prediction are doubtful{chance}. Check them. If they "
        "are right, there is nothing else to do."
    )


def unconfirmed(names: Sequence[str], mark: str, segment: str) -> str:
    """Say that names of doubtful levels were left as they were."""
    plural, are = ("s", "are") if len(names) > 1 else ("", "is")
    return (
        f"The name{plural} {listed(names)} {are} still marked as doubtful ({mark!r}), so this is not used to train or "
        f"to compare models. If a name is right, remove its {mark!r} and submit again; if all are, add an empty "
        f"segment named {segment!r}."
    )


def odd_rename(was: str, now: str, chance: str, odd: Sequence[str]) -> str:
    """Say that a rename made the sequence of certain levels odd."""
    return (
        f"You renamed {was} to {now}, although the level names were certain{chance}. Now {' and '.join(odd)}. If that "
        "is not so, correct the name and submit again."
    )


def is_missing(name: str) -> str:
    """Say that a level is missing, as a part of another sentence."""
    return f"{name} is missing"


THERE_IS_A_T13: Final = "there is a T13"


def somebody_else(who: str, when: str) -> str:
    """Say that somebody else has submitted a label of the image in the meantime; ``when`` is in UTC, ISO 8601."""
    return (
        f"{who!r} submitted another label of this image at {when[:10]} {when[11:16]} UTC, after the prediction that "
        "you corrected was made. Both labels are kept, and the newer one is shown. Compare them."
    )


IMAGE_REPLACED: Final = (
    "The image was replaced after this prediction was made. Check that your label fits the new image."
)


def incomplete(missing: Sequence[str], unreviewed: str) -> str:
    """Say that a label shows only some of the structures in view."""
    return (
        f"There is no {' and no '.join(missing)} in this label, so it is not used to train or to compare models. Add "
        f"everything in view, or mark what nobody checked with a segment named {unreviewed!r}, and submit it again."
    )


# The label is parked: it is kept but not used.


def parked(reason: str, correction: str, image: str) -> str:
    """Say why a label is not used, and where it is kept."""
    return f"{_sentence(reason)} The file is kept but not used (correction {correction} of image {image!r})."


EMPTY: Final = "The label is empty. Draw something, or load a result, and submit again."


def same_structure(one: str, other: str) -> str:
    """Say that two segments have names of the same structure."""
    return f"The segments {one!r} and {other!r} stand for the same structure. Merge them, or rename one."


def unknown_names(names: Sequence[str]) -> str:
    """Say which names are not known; each name is quoted, perhaps with the one it may stand for."""
    plural, them = ("", "this segment") if len(names) == 1 else ("s", "them")
    return f"The server does not know the segment name{plural} {listed(names)}. Rename or remove {them}."


def or_perhaps(name: str, known: str) -> str:
    """Quote an unknown name, with the known name that it may stand for."""
    return f"{name!r} ({known!r}?)"


def unnamed_value(value: int) -> str:
    """Say that a value of the label has no name."""
    return f"The label has voxels of value {value} without a name. Submit all segments with their names."


def review_marks(names: Sequence[str]) -> str:
    """Say that review marks are still in the label."""
    return (
        f"The label still has review marks ({listed(names)}), which hide the structures below. Remove the marks, check "
        "what was below, and submit again."
    )


def painted_acceptance(segment: str) -> str:
    """Say that the segment by which a reader accepts the rest must be empty."""
    return (
        f"The segment {segment!r} has voxels, which hide the structures below. Leave it empty: its name alone says "
        "that you checked what you left as predicted."
    )


def both_steps(vertebrae: str, single: Sequence[str]) -> str:
    """Say that a label has all vertebrae in one piece and single vertebrae as well."""
    return (
        f"The label has {vertebrae!r} in one piece (step 1) and single vertebrae ({listed(single)}). Remove "
        f"{vertebrae!r} from a finished label, or the single vertebrae from a step-1 label."
    )


ONE_VALUE_TWICE: Final = "The file has one value for two segments. Save the segmentation again."


def no_such_layer(layers: int) -> str:
    """Say that a segment is in a layer that the file does not have."""
    return f"A segment refers to a layer that is not in the file, which has {layers}. Save the segmentation again."


def no_names(label_info: object) -> str:
    """Say that the names of the segments are missing."""
    return (
        "The names of the segments are missing (label_info must be a list of {'name': ..} in the order of the voxel "
        f"values, got {label_info!r}). Submit the label from 3D Slicer or another client that sends them."
    )


def nameless(entry: object) -> str:
    """Say that the name of a segment is missing."""
    return f"A segment has no name (the entry {entry!r} of label_info lacks 'name'). Name it."


def unnamed_layers(layers: int) -> str:
    """Say that a file with overlapping segments does not name them."""
    return f"The file has {layers} overlapping layers without segment names. Save the segmentation as .seg.nrrd again."


def unusable_segment(number: int, fields: object) -> str:
    """Say that a segment of a file cannot be read."""
    return f"Segment {number} of the file lacks a usable Name or LabelValue ({fields!r}). Save it again."


def too_many_segments(count: int, limit: int) -> str:
    """Say that a label has more segments than a spine."""
    return f"The label has {count} segments, more than {limit}. Submit the spine only."


UNREADABLE_NRRD: Final = "The NRRD file of the label cannot be read. Save the segmentation again."


def not_3d(dimensions: int) -> str:
    """Say that a label is not a volume."""
    return f"The label has {dimensions} dimensions instead of 3. Save the segmentation of the whole volume."


def not_whole(limit: int) -> str:
    """Say that a label has values that no segment can have."""
    return f"The label has values that are not whole numbers from 0 to {limit}. Export it as a label map."


def unsafe_tag(tag: str) -> str:
    """Say that a tag has characters that it may not have."""
    return f"The tag {tag!r} has characters other than letters, digits, '-' and '_'. Use 'final'."


def other_image(image: str, other: str) -> str:
    """Say that a label corrects a prediction for another image."""
    return f"This label corrects a prediction for {other!r}, but it was sent for {image!r}. Send it for {other!r}."


def which_image(image: str, others: Sequence[str]) -> str:
    """Say that a label may belong to another image, and how to settle it."""
    return (
        f"This label was sent for {image!r}, but it may belong to {' or '.join(map(repr, others))}. If you renamed the "
        "volume, press 'Upload Volume' and then 'Submit Label' in 3D Slicer. If the label belongs to "
        f"{image!r}, set a Client/User-ID of your own in the settings of MONAI Label and submit it again."
    )


def all_unreviewed(names: Sequence[str]) -> str:
    """Say that a label has no structure that was checked."""
    return f"Every structure of the label is listed as unreviewed ({', '.join(names)}). Check at least one."


def no_list_of_names(parameter: str, names: object) -> str:
    """Say that a parameter of a submission does not list names."""
    return f"{parameter!r} must be a list of structure names, got {names!r}. Send names such as 'T12'."


def not_in_label(parameter: str, name: str, or_else: str) -> str:
    """Say that a parameter of a submission names a structure that the label does not have."""
    return f"{parameter!r} names {name!r}, which is not in the label. Name only structures of the label{or_else}."


def or_mark_region(segment: str) -> str:
    """Return the end of ``not_in_label``: another way to say that something was not checked."""
    return f", or mark a region that nobody checked with a segment named {segment!r}"


# The label is kept, but the server could not read or show it, or knows no image for it.


def kept_for_a_while(submission: str) -> str:
    """Say that a label that belongs to no image is kept for a while."""
    return f"The file is kept for a while (submission {submission})."


def not_usable(reason: str, submission: str) -> str:
    """Say why a label cannot be used with its image."""
    return f"{_sentence(reason)} {kept_for_a_while(submission)}"


def not_used(submission: str) -> str:
    """Say that another server found a label unusable."""
    return f"The label is not used. {kept_for_a_while(submission)}"


def not_read(reason: str, submission: str) -> str:
    """Say why a label was not read yet, and what to do."""
    return f"{_sentence(reason)} The label is kept (submission {submission}) but not read yet. Submit it again later."


DISK_IS_FULL: Final = "The server's disk is full."
NO_MEMORY: Final = "The server did not have enough memory to read the label."
NOT_READABLE: Final = "The server failed to read the label. Its log has the reason."


def stored_only(reason: str, correction: str, image: str) -> str:
    """Say why a label that was read is not shown."""
    return f"{_sentence(reason)} The label is kept, but not shown (correction {correction} of image {image!r})."


NOT_SHOWABLE: Final = "The server failed to show the label. Its log has the reason."

# Why a label waits, as the list of submissions shows it.

NOT_TRIED: Final = "The server stopped before the label was read."
STOPPED_WHILE_READING: Final = "The server stopped while it read the label."


# Images and labels of the studies.

CHANGED_SINCE: Final = "Somebody has changed the label since. Open the scan again."
LOST_RECORD: Final = (
    "Restore it from a backup. If there is none, delete it: the image's patient and offers are then not known."
)
NO_ARCHIVES: Final = "This server does not make archives of the studies. Copy the studies folder instead."


def no_label(image: str, tag: str) -> str:
    """Say that an image has no label with a tag."""
    return f"The image {image!r} has no label with the tag {tag!r}. Choose one from the list of labels."


def not_offered(ending: str) -> str:
    """Say that images of this kind are not offered."""
    return f"The image ends in {ending!r}. Convert it to .nii.gz, .nii or .nrrd."


def out_of_reach(image: str) -> str:
    """Say that an uploaded image cannot be compared with the one that the server knows by this name."""
    return (
        f"The server has a record of an image {image!r}, but none of its images can be read now, so it cannot tell "
        "whether yours is another one. Mount the folder of images, or rename yours."
    )


def same_name(image: str) -> str:
    """Say that another image has the name of an uploaded one."""
    return (
        f"Another image here is named {image!r}. Rename yours (in 3D Slicer, the volume in the module Data) and press "
        "'Upload Volume' before 'Submit Label'."
    )


def folder_of_dicom(image: str) -> str:
    """Say that an image is a folder, which is not removed through the server."""
    return f"{image!r} is a folder of DICOM files. Remove the folder itself."


# Why a file or folder of the studies is not offered; its name stands before the sentence.

FOREIGN: Final = (
    "was not made by this server, so the names of its structures are not known and it does not count. Load it in "
    "3D Slicer as a segmentation over its image, name its segments (such as L5 or L4-L5), and submit it. To train from "
    f"many such maps, see '{COMMAND} prepare --help'"
)
WITHOUT_IMAGE: Final = "is the label of an image that is not here. Restore the image or remove the label"
UNUSABLE_NAME: Final = "has a name that is too long or has characters that some systems do not allow. Rename it"
_LOOSE_IMAGES: Final = (
    "only files directly in the studies folder and those of a BIDS tree (sub-01/anat/sub-01_T2w.nii.gz) are offered. "
    "Link or copy the images there, or serve the folder that has the sub- folders"
)
_DICOM: Final = (
    "only MR series that have a folder of their own below the studies are offered, if they are volumes and not "
    "localizers. Give each series a folder, convert it to NIfTI, or serve a DICOMweb server"
)
DICOM_FILE: Final = f"is a DICOM file; {_DICOM}"
SEVERAL_SERIES: Final = "contains several DICOM series. Put each into a folder of its own"


def no_access(reason: str | None) -> str:
    """Say that a file or folder cannot be read."""
    return f"cannot be read ({reason}). Grant the server access to it"


def name_taken(other: str) -> str:
    """Say that another file of the same name is offered."""
    return f"has the name of {other!r}, which is offered. Rename or remove one"


def not_a_volume(error: ImageError) -> str:
    """Say why a folder of DICOM files is not a volume."""
    return f"cannot be used: {str(error).rstrip('.')}"


def other_format(endings: Sequence[str]) -> str:
    """Say that a format is not offered."""
    return f"is in a format that is not offered. Convert it to {', '.join(endings)}, or unpack it"


def holds_missing(way: str, missing: str) -> str:
    """Say that the content of an image in a folder is missing."""
    return f"contains {way!r}, which {missing}"


def holds_images(way: str) -> str:
    """Say that a folder has images where they are not offered."""
    return f"contains image files ({way!r}); {_LOOSE_IMAGES}"


def holds_dicom(way: str) -> str:
    """Say that a folder has DICOM files that are not offered."""
    return f"contains DICOM files ({way!r}); {_DICOM}"


def listed(names: Sequence[str]) -> str:
    """Join the first names."""
    return ", ".join(names[:LISTED]) + (" and others" if len(names) > LISTED else "")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
