"""Define the errors for scans, labels and models.

Every message says what happened, then what the reader can do.
"""


class TotalSpineSegError(ValueError):
    """A request cannot be carried out because of its content; the message is for the user."""


class ImageError(TotalSpineSegError):
    """The file is not an image that can be segmented (unreadable, 2D, empty, constant, not finite)."""


class NoSpineError(TotalSpineSegError):
    """The scan was read and segmented, but shows no disc or no canal, so no level can be named."""


class GridError(TotalSpineSegError):
    """Two volumes that must share a grid (shape and affine) do not."""


class EmptySegmentationError(TotalSpineSegError):
    """A label map is empty, and the format cannot store an empty one."""


class LabelError(TotalSpineSegError):
    """A submitted label map cannot be understood by name."""


class ArchiveError(TotalSpineSegError):
    """A .zip is not readable, is unsafe, or contains nothing that is needed."""


class TooLargeError(ArchiveError):
    """An archive is larger than the limit."""


class SettingError(TotalSpineSegError):
    """A setting of a request has an invalid value."""


class UnknownImageError(TotalSpineSegError):
    """No image of the studies has this id.

    Args:
        image_id: The id.
        note: Another sentence for the user; empty for none.
    """

    def __init__(self, image_id: str, note: str = "") -> None:
        sentence = f"There is no image {image_id!r} in the studies. Choose one from the list of images, or upload it."
        super().__init__(f"{sentence} {note}".strip())


class SubmissionError(TotalSpineSegError):
    """A submission is stored, but the server failed to read it through a fault of its own."""


class ConflictError(TotalSpineSegError):
    """Something is not in the state that a person saw, or that the request needs."""


class WeightsError(TotalSpineSegError):
    """Model weights are missing, damaged or unsafe to load."""


class StorageError(TotalSpineSegError):
    """A result or a correction could not be written (disk full, no permission)."""


class BusyError(StorageError):
    """Another process has been using a needed resource for too long; nothing was written."""


class MemoryShortageError(TotalSpineSegError):
    """A scan does not fit into this machine's memory."""


class TrainingError(TotalSpineSegError):
    """A training cannot start or continue: nothing to learn from, another one is running, or too little memory."""


class AddressError(TotalSpineSegError):
    """The server cannot listen at an address, or the address of another server is not valid."""


class ClusterError(TotalSpineSegError):
    """Other processes or machines cannot take part in a run, or would give other results."""
