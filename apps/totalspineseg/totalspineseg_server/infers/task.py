"""Carry out the steps that all models share: read a scan, run the networks, name the levels, write and record the
result.
"""

import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from totalspineseg_server import pipeline
from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, DISCS, NAME_OF, WIRE_ID, WIRE_LABELS
from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.corrections import ids
from totalspineseg_server.corrections.correction_store import FINAL_TAG
from totalspineseg_server.corrections.label_files import UNCONFIRMED
from totalspineseg_server.corrections.predictions import PredictionMaps, PredictionRecord
from totalspineseg_server.errors import SettingError, StorageError, TotalSpineSegError, UnknownImageError
from totalspineseg_server.files import sha256_of, storage_errors
from totalspineseg_server.geometry import LabelArray, Volume, same_grid
from totalspineseg_server.infers import infers_messages
from totalspineseg_server.infers.listed import LISTED, listed_names, names_with_marks
from totalspineseg_server.infers.services import Services
from totalspineseg_server.infers.settings import (
    DISPLAYED,
    Rename,
    Settings,
    client_config,
    read_settings,
    renames_from_json,
)
from totalspineseg_server.infers.siblings import level_chances, siblings_of
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume
from totalspineseg_server.numbering.chain import Numbering, Pin
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.numbering.renumber import NamedMap, pin_of
from totalspineseg_server.numbering.report import NAMED, doubtful_codes, report, sentence
from totalspineseg_server.pipeline import Options, Scan, Sibling
from totalspineseg_server.segments import DOUBT_MARK, from_wire, to_wire
from totalspineseg_server.transforms.components import labels_present
from totalspineseg_server.trust import proves_nothing

logger = logging.getLogger(__name__)

LABEL_TAGS = (FINAL_TAG, "original")
"""Tags under which a localizer's label is looked for: a reader's finished label before a prediction."""


@dataclass(frozen=True)
class Outcome:
    """Result of a model.

    Attributes:
        scan: The scan.
        labels: Codes on ``scan.iso``'s grid.
        numbering: Levels and their certainty, if the method reports it.
        versions: Weights by step.
        findings: Oddities of the image or the labels.
        output: Output of the network and the names in it, so that it can be named again later.
        disagreement: See ``PredictionRecord``.
    """

    scan: Scan
    labels: LabelArray
    numbering: Numbering | None
    versions: Mapping[str, str]
    findings: tuple[Finding, ...] = ()
    output: NamedMap | None = None
    disagreement: Mapping[str, float] = field(default_factory=dict)


class SpineTask(InferTask):  # type: ignore[misc]
    """A model of the app; subclasses define which stages run.

    Args:
        services: Services that all models share.
        description: Purpose of the model, shown by clients.
        labels: Published names with ids 1..N in fixed order.

    Attributes:
        part: Word for a partial result, used in a tag; empty for a complete one.
    """

    part = ""

    def __init__(self, services: Services, description: str, labels: Mapping[str, int] = WIRE_LABELS) -> None:
        config = client_config(services.doubtful_names)
        super().__init__(InferType.SEGMENTATION, dict(labels), 3, description, config)
        self.services = services

    def info(self) -> dict[str, Any]:
        """Return the data that clients show, with the weights in use."""
        return {**super().info(), "description": f"{self.description} {self.services.weights_text()}"}

    def is_valid(self) -> bool:
        """Return True: every model is published, and a request without weights is answered with what to do."""
        return True

    def get_path(self, validate: bool = True) -> None:
        """Return no path: models are installed and published by the project's own commands, never uploaded."""
        return

    @abstractmethod
    def run(self, scan: Scan, settings: Settings, request: Mapping[str, Any], clock: Stopwatch) -> Outcome:
        """Run the model's own stages."""

    def completed(self, settings: Settings, request: Mapping[str, Any]) -> Settings:
        """Return the settings to use; subclasses may fill in settings that the request leaves open."""
        return settings

    def wire(self, outcome: Outcome, settings: Settings) -> LabelArray:
        """Return the result to send, on the 1 mm grid; subclasses may return something other than the codes."""
        return to_wire(np.where(np.isin(outcome.labels, sorted(settings.codes)), outcome.labels, BACKGROUND))

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Serve a request.

        Args:
            request: ``image`` (path), ``image_id`` (empty for a session's image), settings. Not modified.

        Returns:
            A temporary file with the label map in wire ids, which MONAI Label deletes after the reply; the report.

        Raises:
            TotalSpineSegError: The request cannot be served.
        """
        clock = Stopwatch(self.services.progress.enter)
        settings = read_settings(request, self.services.doubtful_names)
        with clock("hash image"):
            sha256 = sha256_of(Path(request["image"]))
        request = {**request, "image_sha256": sha256}
        settings = self._with_renames(self.completed(settings, request), request)
        of_series = self._series_warnings(str(request.get("image_id") or ""))
        with clock("wait for the networks"):
            self.services.lock.acquire()
        try:
            with clock("read image"):
                image = read_image(Path(request["image"]))
            scan = pipeline.prepare(image, warnings=(*image.warnings, *of_series), clock=clock)
            outcome = self.run(scan, settings, request, clock)
            with clock("lint"):
                odd = pipeline.image_findings(scan, outcome.numbering)
                outcome = replace(outcome, findings=(*odd, *lint(outcome.labels, scan.iso.spacing)))
        finally:
            self.services.lock.release()
        file, present = self._write(outcome, settings, clock)
        image_id = str(request.get("image_id") or "")
        record = PredictionRecord(
            id=ids.new_id((*self.services.predictions.ids(image_id, sha256), *self.services.maps.ids(sha256))),
            image=image_id,
            model=str(request.get("model") or ""),
            versions=dict(outcome.versions),
            seconds={**clock.as_json(), "total": round(clock.elapsed, 3)},
            settings=settings.as_json(),
            numbering=report(outcome.numbering, outcome.findings, affine=scan.iso.affine),
            client=str(request.get("client_id") or ""),
            image_sha256=sha256,
            disagreement=dict(outcome.disagreement),
            marked=self._marked(outcome, present) if settings.marks_doubt else (),
            reviewed=self.reviewed(request),
            codes=tuple(np.flatnonzero(labels_present(outcome.labels)).tolist()),
        )
        warning = self._record(record, outcome)
        listed = self.listed(present, record, is_recorded=not warning)
        return str(file), {**self._reply(record, warning=warning), LISTED: list(listed)}

    def listed(self, present: Collection[int], record: PredictionRecord, *, is_recorded: bool) -> tuple[str, ...]:
        """Return the names a reply lists: those it contains, and those of earlier replies, to be cleared in the scene.

        Args:
            present: Wire ids in the map of the reply.
            record: The prediction.
            is_recorded: Whether the prediction and its maps could be stored, as were those before it.

        Returns:
            The names; those of doubtful levels have a mark.
        """
        earlier = [one for one in self._earlier(record.image, record.image_sha256) if one.id != record.id]
        unnamed = self._earlier("", record.image_sha256) if record.image else ()
        before = self._codes_in([*earlier, *unnamed], record) if is_recorded else None
        codes = BY_CODE.keys() if before is None else before | {code for code, i in WIRE_ID.items() if i in present}
        return names_with_marks(
            listed_names(self.labels, codes), record.marked, [one.marked for one in earlier if not one.reviewed]
        )

    def _codes_in(self, earlier: Sequence[PredictionRecord], record: PredictionRecord) -> frozenset[int] | None:
        """Return the codes in earlier replies for an image, also under other names; None if they are not known.

        Args:
            earlier: The earlier predictions under the same name, or without a name.
            record: The prediction of this reply.
        """
        maps, sha256 = self.services.maps, record.image_sha256
        recorded = {one.id: one.codes for one in earlier if one.codes is not None}
        predictions = {one.id for one in earlier if not one.reviewed} | {*maps.ids(sha256)} - {record.id}
        found = [recorded[one] if one in recorded else maps.codes_of(sha256, one) for one in predictions]
        return None if None in found else frozenset[int]().union(*(codes for codes in found if codes is not None))

    def reviewed(self, request: Mapping[str, Any]) -> str:
        """Return the id of the prediction that this model reviews; empty for a model that predicts."""
        return ""

    def _earlier(self, image_id: str, sha256: str) -> Iterator[PredictionRecord]:
        """Yield the results for an image as it is now, newest first."""
        records = self.services.predictions.newest_first(image_id, sha256)
        return (record for record in records if record.image_sha256 == sha256)

    def _marked(self, outcome: Outcome, present: Collection[int]) -> tuple[int, ...]:
        """Return the codes of the doubtful levels in a map of published ids."""
        doubtful = doubtful_codes(outcome.numbering, outcome.labels)
        return tuple(sorted(code for code in doubtful if WIRE_ID[code] in present))

    def _series_warnings(self, image_id: str) -> tuple[str, ...]:
        """Return the warnings about the DICOM series from which an image was made; the image itself has none."""
        # Import here, because importing pydicom takes longer than listing a folder without DICOM.
        from totalspineseg_server.io.dicom.series import series_warnings

        try:
            folder = self.services.studies.series_folder(image_id) if image_id else None
        except TotalSpineSegError:
            return ()
        return () if folder is None else series_warnings(folder)

    def _with_renames(self, settings: Settings, request: Mapping[str, Any]) -> Settings:
        """Return the settings with a pin for each level that the reader named by its name in the result on the screen.
        If the same request is sent again, it pins the same levels, although their names have changed since.

        Raises:
            SettingError: There is no such result, or no such level in it.
        """
        if not settings.renames:
            return settings
        latest = self.result_on_screen(request)
        wanted = [(rename.was, rename.now) for rename in settings.renames]
        renames = renames_from_json(() if latest is None else latest.settings.get("renames", ()))
        if [(rename.was, rename.now) for rename in renames] != wanted:
            sha256 = str(request["image_sha256"])
            maps = None if latest is None else self.services.maps.of_prediction(sha256, latest.id)
            output = None if maps is None else maps.output()
            if output is None:
                raise SettingError(infers_messages.NO_RESULT.format(was=NAME_OF[wanted[0][0]]))
            renames = tuple(_looked_up(output, *pair) for pair in wanted)
        points = tuple(Pin(one.now, one.point_mm) for one in renames if one.point_mm is not None)
        return replace(settings, pins=(*settings.pins, *points), renames=renames)

    def result_on_screen(self, request: Mapping[str, Any]) -> PredictionRecord | None:
        """Return the newest result of this model for the image as it is now; None if there is none."""
        image_id, sha256 = str(request.get("image_id") or ""), str(request["image_sha256"])
        return next((one for one in self._earlier(image_id, sha256) if one.model == request.get("model")), None)

    def reusable_result(
        self, settings: Settings, request: Mapping[str, Any], options: Options, versions: Mapping[str, str]
    ) -> PredictionRecord | None:
        """Return the result on the screen if the request asks for the same result of the same weights with other
        structures or on another grid; None if a network has to run.

        If other series count, they may have changed since, and step 2 with them.
        """
        if options.siblings or options.localizer is not None or "image_sha256" not in request:
            return None
        earlier, asked = self.result_on_screen(request), settings.as_json()
        if earlier is None or dict(earlier.versions) != dict(versions):
            return None
        changed = {name for name in {*asked, *earlier.settings} if asked.get(name) != earlier.settings.get(name)}
        return earlier if changed and changed <= set(DISPLAYED) else None

    def _record(self, record: PredictionRecord, outcome: Outcome) -> str:
        """Store the data that a correction needs. If that fails, return a warning: the result itself is good."""
        try:
            self.services.predictions.keep(record)
            self._keep_maps(record.image_sha256, record, outcome)
        except StorageError as error:
            logger.warning("A prediction could not be recorded: %s", error)
            return infers_messages.NOT_RECORDED
        return ""

    def _keep_maps(self, sha256: str, record: PredictionRecord, outcome: Outcome) -> None:
        if outcome.output is None or record.reviewed:
            return
        numbering = outcome.numbering
        maps = PredictionMaps.of(
            prediction=record.id,
            output=outcome.output,
            iso=outcome.scan.iso.grid,
            versions=outcome.versions,
            levels=level_chances(numbering),
            series_used=() if numbering is None else numbering.series_used,
            image=record.image,
        )
        self.services.maps.keep(sha256, maps)

    def _write(self, outcome: Outcome, settings: Settings, clock: Stopwatch) -> tuple[Path, frozenset[int]]:
        """Write the map of the reply; return its file and the ids in it."""
        with clock("write result"):
            wire = self.wire(outcome, settings)
            grid = outcome.scan.iso.grid
            if settings.output_grid == "input":
                wire, grid = outcome.scan.labels_to_input(wire), outcome.scan.grid
            file = _temporary_file(settings.extension)
            try:
                write_volume(file, wire, grid)
            except StorageError:
                file.unlink(missing_ok=True)
                raise
        return file, frozenset(np.flatnonzero(labels_present(wire)).tolist())

    def _reply(self, record: PredictionRecord, *, warning: str) -> dict[str, Any]:
        # What matters most comes first: 3D Slicer prints a reply to its console.
        return {
            "message": _message(record),
            "marked": [NAME_OF[code] for code in record.marked],
            "label_names": dict(self.labels),
            "prediction": record.id,
            "image_sha256": record.image_sha256,
            "models": dict(record.versions),
            "weights": self.services.weights_text(),
            "latencies": dict(record.seconds),
            "numbering": record.numbering,
            "settings": dict(record.settings),
            "warning": warning,
        }

    def options(self, settings: Settings, request: Mapping[str, Any], versions: Mapping[str, str]) -> Options:
        """Return the pipeline's options for these settings and the weights in use.

        Raises:
            UnknownImageError: There is no such localizer image.
            SettingError: The localizer image has no label, or uncertain levels, or other coordinates.
        """
        image_id = str(request.get("image_id") or "")
        localizer = self._localizer(settings.localizer, image_id) if settings.localizer else None
        siblings: tuple[Sibling, ...] = ()
        if settings.other_series:
            siblings = siblings_of(self.services, image_id, settings.localizer, versions)
        return Options(settings.numbering, localizer, siblings, settings.pins)

    def earlier_maps(
        self, scan: Scan, step: int, request: Mapping[str, Any], versions: Mapping[str, str]
    ) -> PredictionMaps | None:
        """Return the maps that these weights made of this image before; None if none are stored."""
        found = self.services.maps.latest(str(request["image_sha256"]), step, versions)
        return found if found is not None and same_grid(found.iso, scan.iso.grid) else None

    def maps_of(self, scan: Scan, step: int, result: PredictionRecord | None) -> PredictionMaps | None:
        """Return the maps of a result; None if they are not stored or there is no result."""
        found = None if result is None else self.services.maps.of_prediction(result.image_sha256, result.id)
        is_of_step = found is not None and found.step == step
        return found if found is not None and is_of_step and same_grid(found.iso, scan.iso.grid) else None

    def _localizer(self, image_id: str, wanted_for: str) -> Volume:
        if self.services.studies.image_file(image_id) is None:
            raise UnknownImageError(image_id)
        if not self.services.studies.same_space(wanted_for, image_id):
            raise SettingError(infers_messages.MOVED_LOCALIZER.format(image=image_id))
        for tag in LABEL_TAGS:
            if file := self.services.studies.label_file(image_id, tag):
                _require_certain(image_id, self.services.studies.get_label_info(image_id, tag))
                wire = read_labels(file)
                return Volume(from_wire(wire.data), wire.affine)
        raise SettingError(infers_messages.NO_LOCALIZER_LABEL.format(image=image_id))


def _message(record: PredictionRecord) -> str:
    """Return one or two sentences that tell a reader about a result; empty if nothing is known."""
    known = sentence(record.numbering or {})
    if not known:
        return ""
    check = " " + infers_messages.CHECK_MARKED.format(mark=DOUBT_MARK) if record.marked else ""
    return f"{known[:1].upper()}{known[1:]}.{check}"


def _looked_up(named: NamedMap, was: int, now: int) -> Rename:
    """Return a rename with a point in the structure that a result calls ``was``.

    Raises:
        SettingError: The result has no such level.
    """
    pin = pin_of(named, was, now)
    if pin is None:
        is_disc, present = was in DISCS, np.flatnonzero(labels_present(named.labels)).tolist()
        levels = [NAME_OF[code] for code in present if code in NAMED and (code in DISCS) == is_disc]
        raise SettingError(
            infers_messages.NO_SUCH_LEVEL.format(was=NAME_OF[was], now=NAME_OF[now], levels=", ".join(levels))
        )
    return Rename(was, now, pin.point_mm)


def _require_certain(image_id: str, info: Mapping[str, Any]) -> None:
    """Refuse a localizer whose levels are uncertain: a guess would count as knowledge."""
    if proves_nothing((info.get("params") or {}).get("numbering")) or info.get(UNCONFIRMED):
        raise SettingError(infers_messages.UNCERTAIN_LOCALIZER.format(image=image_id))


def _temporary_file(extension: str) -> Path:
    """Return an empty file with a unique name; a fixed name would be overwritten by the next request."""
    with storage_errors(Path(tempfile.gettempdir())):
        handle, name = tempfile.mkstemp(prefix="totalspineseg-", suffix=extension)
        os.close(handle)
    return Path(name)
