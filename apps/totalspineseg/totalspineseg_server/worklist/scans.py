"""Prepare a scan for the review: the image, the label on its voxels, and a description of each level."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, DISCS, NAME_OF, SACRUM, VERTEBRAE, Kind
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps, PredictionRecord
from totalspineseg_server.errors import UnknownImageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid, LabelArray, Volume, labels_from_iso, to_ras
from totalspineseg_server.io.volumes import read_image
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.report import DOUBTFUL_PROBABILITY
from totalspineseg_server.segments import without_regions
from totalspineseg_server.trust import is_doubtful
from totalspineseg_server.worklist.rows import Row

MAX_SCANS: Final = 3
"""Number of scans in memory, some hundred megabytes: a page asks for the image, the label and the levels of one
scan."""
GRAY_LEVELS: Final = 32_000
"""Brightest value in an image that is sent: 16 bits are enough to look at it, and half the data."""
BRIGHT_PERCENTILE: Final = 99.9
"""Brighter voxels (hot spots near a coil) are clipped to it, so that the spine keeps its contrast."""
PREDICTION, FINISHED = "prediction", "finished"


@dataclass(frozen=True)
class Label:
    """The label that is displayed over a scan.

    Attributes:
        of: ``FINISHED``: a reader's; ``PREDICTION``: the model's; empty if there is none.
        codes: (X, Y, Z) nearest RAS, on the voxels of ``View.image``; all 0 if there is none.
        record: Record of the prediction; None if it is not known.
        maps: Maps of the networks; None if they are gone, and then no level can be pinned.
    """

    of: str
    codes: LabelArray
    record: PredictionRecord | None = None
    maps: PredictionMaps | None = None


@dataclass(frozen=True)
class View:
    """A scan in memory.

    Attributes:
        image: The image, int16, on the axes nearest to RAS.
        grid: Grid of the stored image.
        sha256: Hash of the image.
        label: The label over it.
    """

    image: Volume
    grid: Grid
    sha256: str
    label: Label


class Scans:
    """Scans of the studies; the last few stay in memory.

    Args:
        image_file: ``image_file(image_id)`` returns the file or folder of an image, or None.
        fingerprint: See ``SpineDatastore.fingerprint``.
        record: Returns the record of the result that a row describes, or None.
        maps: Stored maps of the networks.
        corrections: The submitted labels.
    """

    def __init__(
        self,
        image_file: Callable[[str], Path | None],
        fingerprint: Callable[[str], str],
        record: Callable[[Row], PredictionRecord | None],
        maps: MapStore,
        corrections: CorrectionStore,
    ) -> None:
        self._image_file, self._fingerprint = image_file, fingerprint
        self._record, self._maps, self._corrections = record, maps, corrections
        self._memory = OrderedDict[tuple[str, ...], View]()
        self._guard = threading.Lock()

    def view(self, row: Row) -> View:
        """Return a scan with its label.

        Args:
            row: Its row.

        Raises:
            UnknownImageError: There is no such image.
            ImageError: The image cannot be read.
        """
        finished = self._finished(row)
        key = (row.id, self._fingerprint(row.id), row.prediction, "" if finished is None else finished.id)
        # One scan at a time: of two requests for the same one, the second finds it in memory.
        with self._guard:
            view = self._memory.get(key)
            if view is None:
                view = self._read(row, finished)
                # Without a fingerprint it is not known whether the image is still the same.
                if key[1]:
                    self._memory[key] = view
            else:
                self._memory.move_to_end(key)
            while len(self._memory) > MAX_SCANS:
                self._memory.popitem(last=False)
        return view

    def glance(self, row: Row) -> View:
        """Return a scan with its label like ``view``, without keeping it."""
        return self._read(row, self._finished(row))

    def _finished(self, row: Row) -> Correction | None:
        return self._corrections.latest_accepted(row.id) if row.status == "finished" else None

    def _read(self, row: Row, finished: Correction | None) -> View:
        file = self._image_file(row.id)
        if file is None:
            raise UnknownImageError(row.id)
        image = read_image(file)
        ras = to_ras(image)
        record = self._record(row)
        sha256 = record.image_sha256 if record is not None else ""
        sha256 = sha256 or (finished.image_sha256 if finished is not None else sha256_of(file))
        maps = None if record is None else self._maps.of_prediction(sha256, record.id)
        codes, of = np.zeros(image.grid.shape, dtype=np.uint8), ""
        if finished is not None:
            codes, of = without_regions(self._corrections.codes(finished)), FINISHED
        elif maps is not None:
            codes, of = labels_from_iso(maps.labels, maps.iso, image.grid), PREDICTION
        on_image = np.ascontiguousarray(to_ras(Volume(codes, image.affine)).data)
        gray = Volume(_gray(ras.data), ras.affine)
        return View(gray, image.grid, sha256, Label(of, on_image, record, maps))


def levels_of(view: View) -> list[dict[str, Any]]:
    """Describe each structure of the label, from top to bottom; cord and canal come last.

    Returns:
        ``code``, ``name``, ``kind``, ``color``, ``probability`` and ``runner_up`` (None if not known), ``doubtful``,
        ``findings`` (sentences) and ``at``: a point inside it, as shares of the image to the right, anterior and
        superior, from 0 to 1.
    """
    label = view.label
    numbering: Mapping[str, Any] = (label.record.numbering if label.record else None) or {}
    known = {int(level["code"]): level for level in numbering.get("levels", ())} if label.of == PREDICTION else {}
    unsure = doubtful_of(numbering) if label.of == PREDICTION else frozenset()
    points = _points(label.codes)
    found = []
    for code, point in points.items():
        structure, level = BY_CODE[code], known.get(code, {})
        runner_up = level.get("runner_up") or {}
        found.append(
            {
                "code": code,
                "name": structure.name,
                "kind": structure.kind.value,
                "color": list(structure.color),
                "probability": level.get("probability"),
                "runner_up": _runner_up(runner_up),
                "doubtful": code in unsure,
                "findings": _findings(numbering, code) if label.of == PREDICTION else [],
                "at": [(place + 0.5) / size for place, size in zip(point, label.codes.shape, strict=True)],
            }
        )
    found.sort(key=lambda entry: (entry["code"] not in ORDER, ORDER.get(entry["code"], entry["code"])))
    return found


def doubtful_of(numbering: Mapping[str, Any]) -> frozenset[int]:
    """Return the doubtful levels of a recorded numbering, like ``doubtful_codes`` of the numbering itself."""
    if not is_doubtful(numbering):
        return frozenset()
    levels = {int(level["code"]): float(level["probability"]) for level in numbering.get("levels", ())}
    unsure = {code for code, probability in levels.items() if probability < DOUBTFUL_PROBABILITY}
    return frozenset(unsure if unsure and not numbering.get("contradicted") else levels)


def pin_names() -> dict[str, list[str]]:
    """Return the names that a level can have: those of bones and those of discs."""
    bones = [NAME_OF[code] for code in (*VERTEBRAE, SACRUM)]
    return {Kind.VERTEBRA.value: bones, Kind.SACRUM.value: bones, Kind.DISC.value: [NAME_OF[code] for code in DISCS]}


def _runner_up(known: Mapping[str, Any]) -> dict[str, Any] | None:
    name = NAME_OF.get(known.get("code", BACKGROUND))
    return {"name": name, "probability": known.get("probability")} if name and known.get("probability") else None


def _findings(numbering: Mapping[str, Any], code: int) -> list[str]:
    return [str(one.get("message", "")) for one in numbering.get("findings", ()) if one.get("code") == code]


def _points(codes: LabelArray) -> dict[int, tuple[int, int, int]]:
    """Return the deepest voxel of each structure: for a vertebra it is in the body, not between the processes."""
    boxes = ndimage.find_objects(codes, max_label=int(codes.max(initial=0)))
    points: dict[int, tuple[int, int, int]] = {}
    for code, box in enumerate(boxes, start=1):
        if box is None or code not in BY_CODE:
            continue
        inside = np.pad(codes[box] == code, 1)
        depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1, 1:-1]
        # If several are equally deep, take the middle one.
        deepest = np.argwhere(depth >= depth.max() - 0.5)
        away = ((deepest - deepest.mean(axis=0)) ** 2).sum(axis=1)
        x, y, z = (deepest[int(away.argmin())] + [part.start for part in box]).tolist()
        points[code] = (x, y, z)
    return points


def _gray(data: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return the brightness of an image in 16 bits."""
    low, high = float(data.min()), float(np.percentile(data, BRIGHT_PERCENTILE))
    scaled = (data.astype(np.float32) - low) * (GRAY_LEVELS / max(high - low, 1e-6))
    return np.ascontiguousarray(np.clip(scaled, 0, GRAY_LEVELS)).astype(np.int16)
