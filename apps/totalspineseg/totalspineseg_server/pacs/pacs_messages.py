"""Hold the sentences about a PACS; ``str.format`` fills in the names in braces."""

from typing import Final

# series
NO_SERIES: Final = "The PACS has no series {series!r}. Load the list of images again."
SERIES_GONE: Final = "The PACS no longer has the series {series!r}. Load the list of images again."
INCOMPLETE_SERIES: Final = (
    "The PACS sent an incomplete or damaged DICOM file of this series ({fault}). Send the series to the PACS again."
)
STORE_THERE: Final = "This server takes its images from a PACS. Store the series there."
REMOVE_THERE: Final = "This server takes its images from a PACS. Remove the series there."
NO_RESOURCE: Final = "The address is not a DICOMweb resource such as 'studies/UID/series'. Correct it."

# results and submissions
NO_SEG_OF_MARKS: Final = (
    "This model marks places to check, not structures, so there is no DICOM SEG of it. Ask for the image instead."
)
NOT_PUT_BACK: Final = "The PACS has not accepted the corrected names yet. Until then it shows the names that you sent."
OWN_RESULT: Final = "A model's own result was stored. It does not count as a correction."
NOT_OFFERED: Final = "Not counted: the segmentation belongs to a series that this server does not offer."
