"""Everything the lab's page asks about scans."""

from dataclasses import dataclass

from totalspineseg_server.errors import UnknownImageError
from totalspineseg_server.worklist.acts import Acts
from totalspineseg_server.worklist.rows import Row
from totalspineseg_server.worklist.scans import Scans, View
from totalspineseg_server.worklist.thumbnails import Thumbnails
from totalspineseg_server.worklist.worklist import Worklist


@dataclass(frozen=True)
class Lab:
    """Everything the lab's page asks about scans.

    Attributes:
        worklist: The lines of all scans.
        scans: Images with their labels.
        thumbnails: Small pictures.
        acts: What readers do.
    """

    worklist: Worklist
    scans: Scans
    thumbnails: Thumbnails
    acts: Acts

    def row(self, image_id: str) -> Row:
        """Return the line of a scan as it is now.

        Raises:
            UnknownImageError: There is no such scan.
        """
        row = self.worklist.row(image_id)
        if row is None:
            raise UnknownImageError(image_id)
        return row

    def view(self, image_id: str) -> tuple[Row, View]:
        """Return the line of a scan, and the scan with its label.

        Raises:
            UnknownImageError: There is no such scan.
            ImageError: Its image cannot be read.
        """
        row = self.row(image_id)
        return row, self.scans.view(row)
