"""Hold the sentences about models and their requests; ``str.format`` fills in the names in braces."""

from typing import Final

# what the models are
FULL_SPINE: Final = (
    "Vertebrae, intervertebral discs, spinal cord and canal of a spine MRI, each with its name. Not validated for cord "
    "cross-sectional area."
)
STEP1: Final = (
    "Step 1: discs with their levels, cord, canal, C1, and all other vertebrae in one piece. Correct the discs' names "
    "here, submit, then run totalspineseg_step2."
)
STEP2: Final = (
    "Step 2 from a corrected step-1 label: the one sent with the request, or else the one last submitted for the "
    "image. Names follow the corrected discs."
)
REVIEW: Final = (
    "Marks where to look: structures whose names are doubtful, and structures that the checks find odd. Counted names "
    "(up from the sacrum, down from C2) are not marked. Remove these segments before you submit."
)

# requests
NO_LABEL: Final = "The image {image!r} has no label with the tag {tag!r}. Choose one from the list of labels."
NO_STEP1_LABEL: Final = (
    "This image has no step-1 label. Run totalspineseg_step1, correct its result and submit it, or send a label with "
    "the request as 'label'."
)
TOO_MANY_PINS: Final = "There are too many pins: {count} (limit {limit}). One pin is usually enough."
RESERVED_TAG: Final = (
    "The result cannot be saved under the tag {tag!r} (as {whole!r}). Choose a short tag for predictions, such as "
    "'original'."
)
NO_RESULT: Final = (
    "The pin names a level as an earlier result named it ({was}), but there is no earlier result for this image. Run "
    "the model without 'pin' first."
)
NO_SUCH_LEVEL: Final = (
    "The pin '{was} -> {now}' names a level that the last result does not have. Its levels are {levels}. Write one of "
    "them before the arrow."
)

# localizers
NO_LOCALIZER_LABEL: Final = "The localizer {image!r} has no label. Submit a label of it first."
UNCERTAIN_LOCALIZER: Final = (
    "The localizer {image!r} cannot name this scan: its own names are counted or doubtful, not certain. Correct its "
    "label and submit it first."
)
MOVED_LOCALIZER: Final = (
    "The localizer {image!r} has a different frame of reference (the patient was moved between the two). Choose "
    "another localizer, or pin a level."
)

# results
NOT_RECORDED: Final = (
    "The server could not record this prediction (its log has the reason). If you rename one level in it, the others "
    "will not follow, and the server will not know which prediction your label corrects."
)
CHECK_MARKED: Final = "Check the names marked with '{mark}'."
