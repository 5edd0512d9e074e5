"""What can go wrong with a scan, a label or a model, as types.

Every message says what happened, then what the reader can do.
"""


class TotalSpineSegError(ValueError):
    """A request that cannot be served because of what was sent; the message is for the user."""


class ImageError(TotalSpineSegError):
    """The file is not an image that can be segmented (unreadable, 2D, empty, constant, not finite)."""


class NoSpineError(TotalSpineSegError):
    """The scan was read and segmented, but holds no disc or no canal, so no level can be named."""


class GridError(TotalSpineSegError):
    """Two volumes that must share a grid (shape and affine) do not."""


class EmptySegmentationError(TotalSpineSegError):
    """A label map without a single marked voxel, where a format has no way to say "nothing"."""


class LabelError(TotalSpineSegError):
    """A submitted label map cannot be understood by name."""


class UnknownImageError(TotalSpineSegError):
    """No image of the studies has this id.

    Args:
        image_id: The id.
        note: Another sentence for the user; empty for none.
    """

    def __init__(self, image_id: str, note: str = "") -> None:
        sentence = f"There is no image {image_id!r} in the studies. Ask for the list, or upload it."
        super().__init__(f"{sentence} {note}".strip())


class SubmissionError(TotalSpineSegError):
    """A submission is kept, but the server could not read it for a fault of its own."""


class WeightsError(TotalSpineSegError):
    """Model weights are missing, damaged or unsafe to load."""


class StorageError(TotalSpineSegError):
    """A result or a correction could not be written (disk full, no permission)."""


class BusyError(StorageError):
    """Another process has held what is needed for too long; nothing was written."""


class MemoryShortageError(TotalSpineSegError):
    """A scan does not fit into this machine's memory."""


class TrainingError(TotalSpineSegError):
    """A training cannot start or go on: nothing to learn from, another one is running, or memory does not suffice."""


class AddressError(TotalSpineSegError):
    """The server cannot listen where it should, or an address of another server is none."""


class ClusterError(TotalSpineSegError):
    """Other processes or machines that were asked to help cannot, or would give other results."""
