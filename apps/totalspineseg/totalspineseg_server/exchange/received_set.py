"""Import labeled images of a BIDS data set as studies with finished labels."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, NAME_OF, OWN_NUMBERS, UNREVIEWED, UNREVIEWED_NAME
from totalspineseg_server.bids import LEFT_AS_PREDICTED, MANUAL
from totalspineseg_server.corrections.comparison import LEFT
from totalspineseg_server.corrections.correction_store import FINAL_TAG, CorrectionStore
from totalspineseg_server.corrections.ids import HISTORY_DIR, STUDIES_DIR
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.interpretation import UNCHANGED_PARAMETER
from totalspineseg_server.corrections.predictions import MapStore, PredictionStore
from totalspineseg_server.corrections.receipts import Receipts, Sender, receipt_of
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import StorageError, TotalSpineSegError
from totalspineseg_server.exchange import exchange_messages
from totalspineseg_server.exchange.labeled_pairs import Pair, labeled_pairs, read_pair_label
from totalspineseg_server.files import read_json_or, sha256_of
from totalspineseg_server.geometry import Volume, on_grid, to_ras
from totalspineseg_server.io.volumes import NIFTI_SUFFIXES, read_image, stem, write_volume
from totalspineseg_server.numbering.linter import require_plausible

IMPORTED: Final = "import"
"""Name of the user under which imported labels are stored."""


@dataclass(frozen=True)
class Imported:
    """The outcome of an import.

    Attributes:
        added: Ids of images whose label was added.
        known: Ids of images whose label was imported before.
        left_out: Name -> reason.
    """

    added: tuple[str, ...]
    known: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def import_set(
    source: Path,
    studies: Path,
    *,
    suffix: str,
    numbers: str = OWN_NUMBERS,
    work: Path | None = None,
) -> Imported:
    """Add the labeled images of a data set to studies, each with its label as a finished one.

    Args:
        source: The data set.
        studies: Folder of images; it is made if it is missing. A server may be running on it.
        suffix: See ``labeled_pairs``.
        numbers: See ``read_pair_label``.
        work: Folder that the server of these studies writes to; None for one inside ``studies``.

    Raises:
        StorageError: There is no labeled image, or something cannot be written.
    """
    pairs = list(labeled_pairs(source, suffix))
    if not pairs:
        raise StorageError(exchange_messages.NO_LABELED_IMAGES.format(source=str(source)))
    studies.mkdir(parents=True, exist_ok=True)
    desk = _Desk(studies, work)
    added, known, left_out = list[str](), list[str](), dict[str, str]()
    for pair in pairs:
        try:
            (added if desk.add(pair, numbers, source.resolve().name) else known).append(pair.name)
        except StorageError:
            raise
        except (TotalSpineSegError, FileExistsError, OSError, ValueError) as error:
            left_out[pair.name] = str(error)
    return Imported(tuple(added), tuple(known), left_out)


class _Desk:
    """Adds images and submits labels as the server does."""

    def __init__(self, studies: Path, work: Path | None) -> None:
        history = work or studies / HISTORY_DIR
        self._corrections = CorrectionStore(history)
        self._store = StudiesDatastore(
            str(work / STUDIES_DIR) if work else str(studies),
            images=str(studies) if work else "",
            corrections=self._corrections,
        )
        self._inbox = Inbox(
            Receipts(history), self._corrections, PredictionStore(history), MapStore(history), self._store
        )

    def add(self, pair: Pair, numbers: str, origin: str) -> bool:
        """Add an image with its label; return False if the label was added before."""
        image_file, label_file = pair.require_one()
        image = read_image(image_file)
        label = on_grid(read_pair_label(label_file, pair.root, numbers), image.grid)
        require_plausible(to_ras(label).data)
        with tempfile.TemporaryDirectory(prefix="totalspineseg-import-") as folder:
            if not image_file.name.lower().endswith(NIFTI_SUFFIXES):
                image_file = Path(folder) / f"{stem(image_file)}.nii.gz"
                write_volume(image_file, image.data, image.grid)
            image_id = self._store.add_image(pair.name, str(image_file), {"user": IMPORTED})
            file = Path(folder) / "label.nii.gz"
            names = _write_numbered(file, label)
            raw_sha256 = sha256_of(file)
            if any(earlier.raw_sha256 == raw_sha256 for earlier in self._corrections.of_image(image_id)):
                return False
            sender = Sender(user=IMPORTED, client=origin, file_name=label_file.name)
            about: Mapping[str, Any] = read_json_or(label_file.with_name(f"{stem(label_file)}.json"), {})
            params: Mapping[str, Any] = {
                "label_info": [{"name": name} for name in names],
                UNCHANGED_PARAMETER: about.get(MANUAL) is False,
                LEFT: about.get(LEFT_AS_PREDICTED),
            }
            self._inbox.submit(receipt_of(image_id, file, tag=FINAL_TAG, sender=sender, params=params), file)
        return True


def _write_numbered(file: Path, label: Volume) -> list[str]:
    """Write a label with values 1..N without gaps, as clients send it; return the name of each value."""
    codes = [int(code) for code in np.unique(label.data) if code != BACKGROUND]
    table = np.zeros(256, dtype=np.uint8)
    table[codes] = np.arange(1, len(codes) + 1)
    write_volume(file, table[label.data], label.grid)
    return [UNREVIEWED_NAME if code == UNREVIEWED else NAME_OF[code] for code in codes]
