"""Record each prediction, and keep recent output of the networks.

The record states the image and the weights, so that a correction can be compared with its prediction. The maps, which
are deleted after a while, allow naming the levels again without running the networks.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from totalspineseg_server.corrections import ids
from totalspineseg_server.errors import ImageError, StorageError, WeightsError
from totalspineseg_server.files import read_json, read_json_or, staged_folder, write_json
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.numbering.evidence import Localizer, Step1Names
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.transforms.components import Box, labels_present
from totalspineseg_server.transforms.pieces import Step
from totalspineseg_server.trust import UNMEASURED, certainty_of, trust_from_json

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Pattern of an id. It is checked, because clients may state ids and each is the name of a folder."""
UNLISTED = "unlisted"
"""Beginning of the folder name for predictions of images that are not in the studies, such as those of a session. There
is a folder for each image, with its hash after this word, so that no request has to read all of them. Older records are
in one folder."""
MAX_PER_IMAGE: Final = 4
"""Number of predictions for an image whose maps are kept: they can be made again, and take half a megabyte each."""
MAX_DAYS: Final = 365
"""Days without a new prediction after which the maps of an image are deleted; the records stay."""
MAX_IMAGES: Final = 1000
"""Number of images whose maps are kept, which is some gigabytes at most. Most images sent with a request are never sent
again."""
RAW_FILE: Final = "raw.nii.gz"
LABELS_FILE: Final = "labels.nii.gz"
STEP1_FILE: Final = "step1.nii.gz"
UNUSABLE: Final = (StorageError, ImageError, WeightsError, KeyError, ValueError, TypeError, AttributeError)
"""Errors from an entry that is damaged, was removed, or was written by another version."""
Chances: TypeAlias = Mapping[int, Mapping[int, float]]
"""Code -> probability of each code for the structure that has it."""


@dataclass(frozen=True)
class PredictionMaps:
    """The maps of one prediction.

    Attributes:
        prediction: Id of its record.
        step: 1 or 2.
        codes: The codes, on the part of the 1 mm grid that the network saw.
        iso: The whole 1 mm grid of the scan.
        versions: Weights by step.
        levels: Code -> probability of each name, for use by other series of the patient (44 -> {44: 0.97, 45: 0.02});
            empty if they should not use it.
        series_used: Images whose levels helped to name this one.
        image: Name of the image at that time; empty if it was not in the studies, and in older records.
        output: Returns the network's output, which is read only to name the levels again; None if it is damaged or was
            removed.
    """

    prediction: str
    step: Step
    codes: Volume
    iso: Grid
    versions: Mapping[str, str]
    levels: Chances
    series_used: tuple[str, ...]
    image: str
    output: Callable[[], NamedMap | None]

    @classmethod
    def of(
        cls,
        prediction: str,
        output: NamedMap,
        iso: Grid,
        versions: Mapping[str, str],
        levels: Chances,
        series_used: tuple[str, ...],
        image: str = "",
    ) -> "PredictionMaps":
        """Return the maps of a new prediction; see the attributes."""
        codes = Volume(output.labels, output.raw.affine)
        return cls(prediction, output.step, codes, iso, versions, levels, series_used, image, lambda: output)

    @property
    def box(self) -> Box:
        """The part of the 1 mm grid that the network saw."""
        first = np.linalg.inv(self.iso.affine) @ self.codes.affine[:, 3]
        x, y, z = (slice(round(a), round(a) + n) for a, n in zip(first[:3], self.codes.data.shape, strict=True))
        return x, y, z

    @property
    def labels(self) -> LabelArray:
        """The codes on the whole 1 mm grid."""
        whole = np.zeros(self.iso.shape, dtype=np.uint8)
        whole[self.box] = self.codes.data
        return whole


class MapStore:
    """The maps below a history folder, by the content of their image."""

    def __init__(self, root: Path) -> None:
        self._root = root / "maps"

    def keep(self, image_sha256: str, maps: PredictionMaps) -> None:
        """Add the maps of a prediction, and delete the oldest of this image and of all images. Nothing is added without
        the network's output.

        The newest maps under each name of the image stay: copies of a scan have the same content.

        Raises:
            StorageError: They could not be written.
        """

        folder, output = self._root / image_sha256, maps.output()
        if output is None:
            return
        with staged_folder(folder / maps.prediction) as entry:
            write_volume(entry / RAW_FILE, output.raw.data, output.raw.grid)
            write_volume(entry / LABELS_FILE, output.labels, output.raw.grid)
            record: dict[str, Any] = {
                "prediction": maps.prediction,
                "step": output.step,
                "affine": output.raw.affine.tolist(),
                "iso_shape": list(maps.iso.shape),
                "iso_affine": maps.iso.affine.tolist(),
                "versions": dict(maps.versions),
                "levels": _plain(maps.levels),
                "helped_by": list(maps.series_used),
                "image": maps.image,
                "trust": output.trust.as_json(),
            }
            if output.step1 is not None:
                write_volume(entry / STEP1_FILE, output.step1.discs.codes, output.raw.grid)
                record["step1"] = {
                    "names": _plain(output.step1.discs.names),
                    "probability": output.step1.probability,
                    "certainty": output.step1.certainty,
                    "usual": output.step1.usual,
                    "as_usual": output.step1.as_usual,
                    "landmarks": sorted(output.step1.landmarks),
                    "by_reader": output.step1.by_reader,
                }
            write_json(entry / ids.RECORD_FILE, record)
        images = sorted(ids.entries(self._root), key=_changed)
        expiry = time.time() - MAX_DAYS * 24 * 3600
        expired = [image for image in images[-MAX_IMAGES:] if _changed(image) < expiry]
        for old in (*_replaced(ids.entries(folder)), *images[:-MAX_IMAGES], *expired):
            shutil.rmtree(old, ignore_errors=True)

    def images(self) -> Iterator[tuple[str, str]]:
        """Yield the hash and the latest name of each image with maps, ordered by hash; skip images without a name."""
        for folder in ids.entries(self._root):
            for entry in reversed(self._entries(folder.name)):
                image = _image_of(entry)
                if image is None:
                    continue
                if image:
                    yield folder.name, image
                break

    def made_for(self, image_sha256: str) -> Iterator[tuple[str, str]]:
        """Yield the id of each prediction whose maps are kept, and the name of its image then, newest first; the maps
        themselves are not read."""
        for entry in reversed(self._entries(image_sha256)):
            if (image := _image_of(entry)) is not None:
                yield entry.name, image

    def ids(self, image_sha256: str) -> tuple[str, ...]:
        """Return the ids of the predictions whose maps are kept, oldest first."""
        return ids.names(self._root / image_sha256)

    def of_prediction(self, image_sha256: str, prediction: str) -> PredictionMaps | None:
        """Return the maps of one prediction, or None."""
        return next((_read(e) for e in self._entries(image_sha256) if e.name == prediction), None)

    def newest_first(self, image_sha256: str) -> Iterator[PredictionMaps]:
        """Yield the maps of an image, newest first; each is read only when it is needed."""
        return (maps for entry in reversed(self._entries(image_sha256)) if (maps := _read(entry)) is not None)

    def codes_of(self, image_sha256: str, prediction: str) -> frozenset[int] | None:
        """Return the codes in the map of a prediction; None if it is not kept."""
        maps = self.of_prediction(image_sha256, prediction)
        return None if maps is None else frozenset(np.flatnonzero(labels_present(maps.codes.data)).tolist())

    def latest(self, image_sha256: str, step: int, versions: Mapping[str, str] | None = None) -> PredictionMaps | None:
        """Return the newest maps of a step, or None.

        Args:
            image_sha256: Hash of the image.
            step: 1 or 2.
            versions: Weights that made the maps; None for any weights.
        """
        for entry in reversed(self._entries(image_sha256)):
            record = read_json_or(entry / ids.RECORD_FILE, {})
            is_of_versions = versions is None or record.get("versions") == dict(versions)
            if record.get("step") == step and is_of_versions and (maps := _read(entry)) is not None:
                return maps
        return None

    def _entries(self, image_sha256: str) -> tuple[Path, ...]:
        return ids.entries(self._root / image_sha256)


def _replaced(entries: tuple[Path, ...]) -> list[Path]:
    """Return those of an image's maps, oldest first, that newer ones under the same name have replaced."""
    named = {_image_of(entry) for entry in entries[-MAX_PER_IMAGE:]} | {None, ""}
    old = []
    for entry in reversed(entries[:-MAX_PER_IMAGE]):
        name = _image_of(entry)
        if name in named:
            old.append(entry)
        named.add(name)
    return old


def _image_of(entry: Path) -> str | None:
    """Return the name of the image for which maps were made; "" if it had none, None if the record is damaged."""
    try:
        return str(read_json(entry / ids.RECORD_FILE).get("image") or "")
    except StorageError:
        return None


def _changed(folder: Path) -> float:
    """Return when an entry was added; 0 if another process has removed the folder."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(entry: Path) -> PredictionMaps | None:
    """Return an entry; None if it is damaged or was removed, because it can be made again."""
    try:
        record: dict[str, Any] = read_json(entry / ids.RECORD_FILE)
        codes = Volume(read_labels(entry / LABELS_FILE).data, np.array(record["affine"]))
        x, y, z = record["iso_shape"]
        return PredictionMaps(
            prediction=record["prediction"],
            step=1 if record["step"] == 1 else 2,
            codes=codes,
            iso=Grid((x, y, z), np.array(record["iso_affine"])),
            versions=record["versions"],
            levels=_chances(record["levels"]),
            series_used=tuple(record["helped_by"]),
            image=str(record.get("image") or ""),
            output=lambda: _read_output(entry, record, codes),
        )
    except UNUSABLE:
        return None


def _read_output(entry: Path, record: Mapping[str, Any], codes: Volume) -> NamedMap | None:
    """Return the network's output of an entry; None if it is damaged or was removed."""
    try:
        trust = trust_from_json(record["trust"], source=ids.RECORD_FILE) if "trust" in record else UNMEASURED
        raw = Volume(read_labels(entry / RAW_FILE).data, codes.affine)
        return NamedMap(raw, codes.data, 1 if record["step"] == 1 else 2, _step1(entry, record), trust)
    except UNUSABLE:
        return None


def _plain(chances: Chances) -> dict[str, dict[str, float]]:
    """Return probabilities with texts as keys, for JSON; ``_chances`` is the inverse."""
    return {str(code): {str(name): p for name, p in names.items()} for code, names in chances.items()}


def _chances(record: Mapping[str, Mapping[str, float]]) -> Chances:
    return {int(code): {int(name): float(p) for name, p in names.items()} for code, names in record.items()}


def _step1(entry: Path, record: Mapping[str, Any]) -> Step1Names | None:
    """Return the names of step 1; None if they were not kept (a step-1 map, an older entry)."""
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
        frozenset(int(code) for code in known.get("landmarks", ())),
    )


@dataclass(frozen=True)
class PredictionRecord:
    """A prediction.

    Attributes:
        id: Sorts by time.
        image: Image id; empty if the image is not among the studies.
        model: Name of the model.
        versions: Weights by step ("step1" -> version).
        seconds: Time of each stage.
        settings: All settings that applied, defaults included.
        numbering: Report on the levels; None if the method makes none.
        client: Who requested it: the client id and, with sign-in, the user.
        image_sha256: Hash of the image at that time; empty in older records.
        created: UTC, ISO 8601.
        disagreement: How much the networks disagree, 0..1: ``steps`` (share of the discs on which step 1
            and step 2 differ) and ``mirror`` (share of the structures on which the image and its mirror image differ).
            Values that were not measured are missing.
        marked: Codes of the levels that the reply named as doubtful; empty in older records.
        reviewed: Id of the prediction that a review looked at; empty for a prediction, and in older records.
        codes: Codes in the result; None in older records.
    """

    id: str
    image: str
    model: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    settings: Mapping[str, Any]
    numbering: Mapping[str, Any] | None
    client: str
    image_sha256: str = ""
    created: str = field(default_factory=ids.now_text)
    disagreement: Mapping[str, float] = field(default_factory=dict)
    marked: tuple[int, ...] = ()
    reviewed: str = ""
    codes: tuple[int, ...] | None = None


class PredictionStore:
    """The records of predictions below a history folder; append-only.

    A record that cannot be read is logged and skipped, so that nothing else fails.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "predictions"

    def keep(self, record: PredictionRecord) -> None:
        """Add a record.

        Raises:
            StorageError: It could not be written.
        """
        with staged_folder(self._folder(record.image, record.image_sha256) / record.id) as entry:
            write_json(entry / ids.RECORD_FILE, asdict(record))

    def ids(self, image_id: str, image_sha256: str = "") -> tuple[str, ...]:
        """Return the ids of all predictions for an image, oldest first; for an image outside the studies its hash is
        needed."""
        return ids.names(self._folder(image_id, image_sha256))

    def of_image(self, image_id: str) -> tuple[PredictionRecord, ...]:
        """Return all predictions for an image, oldest first."""
        return tuple(self.newest_first(image_id))[::-1]

    def newest_first(self, image_id: str, image_sha256: str = "") -> Iterator[PredictionRecord]:
        """Yield all predictions for an image, newest first; each is read only when it is needed. See ``ids``."""
        return ids.records(PredictionRecord, reversed(ids.entries(self._folder(image_id, image_sha256))), "prediction")

    def latest(self, image_id: str, *clients: str) -> PredictionRecord | None:
        """Return the newest prediction for an image, preferably one for ``clients``; None if there is none."""
        newest = None
        for record in self.newest_first(image_id):
            if not any(clients) or (record.client and record.client in clients):
                return record
            newest = newest or record
        return newest

    def find(self, image_id: str, prediction_id: str, image_sha256: str = "") -> PredictionRecord | None:
        """Return the prediction of an image with this id, or None. See ``ids``."""
        folders = dict.fromkeys((self._folder(image_id, image_sha256), self._folder(image_id)))
        return self._in_one_of(folders, prediction_id)

    def anywhere(self, prediction_id: str) -> PredictionRecord | None:
        """Return the prediction with this id, whatever the name of its image, or None."""
        return self._in_one_of(ids.entries(self._root), prediction_id)

    def _in_one_of(self, folders: Iterable[Path], prediction_id: str) -> PredictionRecord | None:
        if not ID.fullmatch(prediction_id):
            return None
        entries = (folder / prediction_id for folder in folders)
        return next(ids.records(PredictionRecord, filter(Path.is_dir, entries), "prediction"), None)

    def _folder(self, image_id: str, image_sha256: str = "") -> Path:
        # Image folders have a prefix of their own, so that no image id equals the name of another folder.
        if image_id:
            return self._root / f"image-{ids.folder_name(image_id)}"
        return self._root / (f"{UNLISTED}-{image_sha256}" if image_sha256 else UNLISTED)
