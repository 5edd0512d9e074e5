"""What the networks drew, kept for a while: so that levels can be named again without running them."""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from lib.certainty import certainty_of
from lib.corrections import history
from lib.errors import ImageError, StorageError, WeightsError
from lib.files import read_json, staged_folder, write_json
from lib.geometry import Grid, LabelArray, Volume
from lib.numbering.evidence import Localizer, Step1Names
from lib.numbering.renumber import NamedMap
from lib.transforms.components import Box, labels_present
from lib.trust import UNMEASURED, trust_from_json
from lib.volume_io import read_labels, write_volume

KEPT_PER_IMAGE: Final = 4
"""Of each image the maps of this many latest predictions are kept: they can be made again, and take half a megabyte."""
KEPT_DAYS: Final = 365
"""The maps of an image that nothing was predicted for in this time go; their records stay."""
KEPT_IMAGES: Final = 1000
"""The maps of this many latest images are kept, some gigabytes at most: images sent along never come again."""
RAW_FILE: Final = "raw.nii.gz"
LABELS_FILE: Final = "labels.nii.gz"
STEP1_FILE: Final = "step1.nii.gz"
RECORD_FILE: Final = "record.json"
Chances: TypeAlias = Mapping[int, Mapping[int, float]]
"""Code -> how probable each code is for what carries it."""


@dataclass(frozen=True)
class KeptMaps:
    """The maps of one prediction.

    Attributes:
        prediction: Id of its record.
        drawn: What the network drew, on the part of the 1 mm grid it looked at.
        iso: The whole 1 mm grid of the scan.
        versions: Weights by step.
        levels: Code -> how probable each name is for it, for other series of the patient (44 -> {44: 0.97, 45: 0.02});
            empty where they should not count it.
        helped_by: Images whose numbering helped to name this one.
        image: What the image was called; empty when it was not among the studies, and in older records.
    """

    prediction: str
    drawn: NamedMap
    iso: Grid
    versions: Mapping[str, str]
    levels: Chances
    helped_by: tuple[str, ...]
    image: str = ""

    @property
    def box(self) -> Box:
        """The part of the 1 mm grid the network looked at."""
        first = np.linalg.inv(self.iso.affine) @ self.drawn.raw.affine[:, 3]
        x, y, z = (slice(round(a), round(a) + n) for a, n in zip(first[:3], self.drawn.labels.shape, strict=True))
        return x, y, z

    @property
    def labels(self) -> LabelArray:
        """The codes on the whole 1 mm grid."""
        whole = np.zeros(self.iso.shape, dtype=np.uint8)
        whole[self.box] = self.drawn.labels
        return whole


class DrawnMaps:
    """Maps below a history folder, by the content of the image they were drawn on."""

    def __init__(self, root: Path) -> None:
        self._root = root / "maps"

    def keep(self, image_sha256: str, kept: KeptMaps) -> None:
        """Add the maps of a prediction; the oldest go, of this image and of all images.

        Raises:
            StorageError: They could not be written.
        """

        folder, drawn = self._root / image_sha256, kept.drawn
        with staged_folder(folder / kept.prediction) as entry:
            write_volume(entry / RAW_FILE, drawn.raw.data, drawn.raw.grid)
            write_volume(entry / LABELS_FILE, drawn.labels, drawn.raw.grid)
            record: dict[str, Any] = {
                "prediction": kept.prediction,
                "step": drawn.step,
                "affine": drawn.raw.affine.tolist(),
                "iso_shape": list(kept.iso.shape),
                "iso_affine": kept.iso.affine.tolist(),
                "versions": dict(kept.versions),
                "levels": _plain(kept.levels),
                "helped_by": list(kept.helped_by),
                "image": kept.image,
                "trust": drawn.trust.as_json(),
            }
            if drawn.step1 is not None:
                write_volume(entry / STEP1_FILE, drawn.step1.discs.codes, drawn.raw.grid)
                record["step1"] = {
                    "names": _plain(drawn.step1.discs.names),
                    "probability": drawn.step1.probability,
                    "certainty": drawn.step1.certainty,
                    "usual": drawn.step1.usual,
                    "as_usual": drawn.step1.as_usual,
                    "by_reader": drawn.step1.by_reader,
                }
            write_json(entry / RECORD_FILE, record)
        images = sorted(history.entries(self._root), key=_changed)
        expiry = time.time() - KEPT_DAYS * 24 * 3600
        expired = [image for image in images[-KEPT_IMAGES:] if _changed(image) < expiry]
        for old in (*history.entries(folder)[:-KEPT_PER_IMAGE], *images[:-KEPT_IMAGES], *expired):
            shutil.rmtree(old, ignore_errors=True)

    def images(self) -> Iterator[tuple[str, str]]:
        """Yield the hash and the latest name of each image that maps are kept of, by hash; without a name none."""
        for folder in history.entries(self._root):
            for entry in reversed(self._entries(folder.name)):
                try:
                    image = read_json(entry / RECORD_FILE).get("image")
                except StorageError:
                    continue
                if image:
                    yield folder.name, str(image)
                break

    def ids(self, image_sha256: str) -> tuple[str, ...]:
        """Ids of the predictions whose maps are kept, oldest first."""
        return history.names(self._root / image_sha256)

    def of_prediction(self, image_sha256: str, prediction: str) -> KeptMaps | None:
        """The maps of one prediction, or None."""
        return next((_read(e) for e in self._entries(image_sha256) if e.name == prediction), None)

    def newest_first(self, image_sha256: str) -> Iterator[KeptMaps]:
        """What is kept for an image, each read when it is asked for."""
        return (kept for entry in reversed(self._entries(image_sha256)) if (kept := _read(entry)) is not None)

    def codes_before(self, image_sha256: str, prediction: str) -> frozenset[int] | None:
        """Return the codes that earlier predictions for an image showed, or None where not all of them are kept.

        Args:
            image_sha256: Hash of the image.
            prediction: The prediction that is asked for; it does not count itself.
        """
        ids = self.ids(image_sha256)
        earlier = [_read(entry) for entry in self._entries(image_sha256) if entry.name != prediction]
        if len(ids) >= KEPT_PER_IMAGE or any(kept is None for kept in earlier):
            return None
        masks = [labels_present(kept.drawn.labels) for kept in earlier if kept is not None]
        return frozenset(int(code) for mask in masks for code in np.flatnonzero(mask))

    def latest(self, image_sha256: str, step: int, versions: Mapping[str, str] | None = None) -> KeptMaps | None:
        """The newest maps of a step, or None.

        Args:
            image_sha256: Hash of the image.
            step: 1 or 2.
            versions: Only maps of these weights.
        """
        for kept in self.newest_first(image_sha256):
            if kept.drawn.step == step and (versions is None or dict(kept.versions) == dict(versions)):
                return kept
        return None

    def _entries(self, image_sha256: str) -> tuple[Path, ...]:
        return history.entries(self._root / image_sha256)


def _changed(folder: Path) -> float:
    """When an entry was added; 0 where another process has removed the folder meanwhile."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(entry: Path) -> KeptMaps | None:
    """An entry; None when it is damaged or was removed meanwhile: it can be made again."""
    try:
        record: dict[str, Any] = read_json(entry / RECORD_FILE)
        affine = np.array(record["affine"])
        raw, labels = read_labels(entry / RAW_FILE).data, read_labels(entry / LABELS_FILE).data
        x, y, z = record["iso_shape"]
        return KeptMaps(
            prediction=record["prediction"],
            drawn=NamedMap(
                Volume(raw, affine),
                labels,
                1 if record["step"] == 1 else 2,
                _step1(entry, record),
                trust_from_json(record["trust"], source=RECORD_FILE) if "trust" in record else UNMEASURED,
            ),
            iso=Grid((x, y, z), np.array(record["iso_affine"])),
            versions=record["versions"],
            levels=_chances(record["levels"]),
            helped_by=tuple(record["helped_by"]),
            image=str(record.get("image") or ""),
        )
    except (StorageError, ImageError, WeightsError, KeyError, ValueError, TypeError, AttributeError):
        return None


def _plain(chances: Chances) -> dict[str, dict[str, float]]:
    """As JSON holds it; ``_chances`` reads it back."""
    return {str(code): {str(name): p for name, p in names.items()} for code, names in chances.items()}


def _chances(record: Mapping[str, Mapping[str, float]]) -> Chances:
    return {int(code): {int(name): float(p) for name, p in names.items()} for code, names in record.items()}


def _step1(entry: Path, record: Mapping[str, Any]) -> Step1Names | None:
    """What step 1 had named; None where it was not kept (a step-1 map, an older entry)."""
    known = record.get("step1")
    if known is None:
        return None
    codes, by_reader = read_labels(entry / STEP1_FILE).data, bool(known.get("by_reader", False))
    discs = Localizer(codes, _chances(known["names"]), by_reader=by_reader)
    return Step1Names(
        discs,
        float(known["probability"]),
        certainty_of(known) or "doubtful",
        float(known.get("usual", 0.0)),
        float(known.get("as_usual", 0.0)),
    )
