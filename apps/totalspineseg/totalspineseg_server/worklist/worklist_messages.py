"""Hold the sentences that readers see on the lab's page; ``str.format`` fills in the names in braces."""

from typing import Final

# listing
NO_LIST: Final = (
    "The scans cannot be listed, because the PACS does not answer or a file cannot be read. What is shown may be old; "
    "the list is read again by itself."
)

# naming
NO_MAPS_TO_PIN: Final = "The segmentation of this result is no longer stored. Predict the scan again, then pin a level."
OTHER_KIND: Final = "A disc can only be named as a disc, and a vertebra as a vertebra or the sacrum."
CANNOT_FOLLOW: Final = (
    "With {pins} the other levels cannot be named without a conflict. Choose another name, or correct the scan in "
    "3D Slicer."
)
NO_LEVEL: Final = "{name!r} is not a level. Choose one."
NO_LEVEL_HERE: Final = "{name!r} is not a level of this result. Choose one."
NOTHING_CHANGES: Final = "Every level keeps its name; {certainty}."
ONE_LEVEL_CHANGES: Final = "1 level changes its name; {certainty}."
LEVELS_CHANGE: Final = "{count} levels change their names; {certainty}."

# accepting and rejecting
FINISHED_BEFORE_ACCEPTING: Final = "This scan is finished already. Undo that first, or correct it in 3D Slicer."
DOUBTFUL: Final = (
    "The names of this result are doubtful, so it cannot be accepted unchanged. Pin a level, or correct the scan in"
    " 3D Slicer."
)
NOT_LOOKED_AT: Final = "Look at the {views} view first, then accept."
FINISHED_BEFORE_REJECTING: Final = "This scan is finished. Undo that first, then reject its result."
NO_REASON: Final = "A rejection needs a reason, so that the next reader knows what to look for."
NO_MAPS: Final = "The segmentation of this result is no longer stored. Predict the scan again."
ACCEPTED: Final = "Accepted as it is."
OTHER_RESULT: Final = "Another result is shown for this scan now. Open the scan again."

# undoing
NOTHING_TO_UNDO: Final = "There is nothing to undo on this scan."
REJECTION_UNDONE: Final = "The rejection was taken back."
LABEL_UNDONE: Final = "The label was taken back."
EARLIER_LABEL_RETURNS: Final = "The label was taken back. The one before it is shown again."
OTHER_READER: Final = "{reader} did this. Only {reader} or an administrator can undo it."

# choosing and merging
NOT_FINISHED: Final = "{label!r} is not a finished label of this scan now. Open the scan again."
OTHER_IMAGE: Final = "Labels of different images cannot be merged. Choose one of them as it is."
NOT_IN_LABEL: Final = "{name!r} is not in the label that you chose for it. Choose another label."
