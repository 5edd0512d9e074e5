"""Steps that every model of the app shares: read, run, name, write, record."""

import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from totalspineseg_server import pipeline
from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, WIRE_ID, WIRE_LABELS
from totalspineseg_server.certainty import proves_nothing
from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.corrections import history
from totalspineseg_server.corrections.displayed_corrections import FINAL_TAG
from totalspineseg_server.corrections.predictions import KeptMaps, PredictionRecord
from totalspineseg_server.corrections.wire import from_wire, to_wire
from totalspineseg_server.errors import SettingError, StorageError, UnknownImageError
from totalspineseg_server.files import sha256_of, storage_errors
from totalspineseg_server.geometry import LabelArray, Volume, same_grid
from totalspineseg_server.infers.listed import LISTED, listed_names
from totalspineseg_server.infers.services import Services
from totalspineseg_server.infers.settings import Settings, client_config, read_settings
from totalspineseg_server.infers.siblings import level_chances, siblings_of
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.numbering.report import report
from totalspineseg_server.pipeline import Options, Scan, Sibling
from totalspineseg_server.transforms.components import labels_present
from totalspineseg_server.volume_io import read_image, read_labels, write_volume

logger = logging.getLogger(__name__)

LABEL_TAGS = (FINAL_TAG, "original")
"""Tags in which a localizer's label is searched: a reader's finished label before a model's prediction."""

NOT_RECORDED: Final = (
    "The server could not record this prediction (its log says why). If you rename one level in it, the others will "
    "not follow, and the server will not know which prediction your label corrects."
)


@dataclass(frozen=True)
class Outcome:
    """Result of a model.

    Attributes:
        scan: The scan.
        labels: Codes on ``scan.iso``'s grid.
        numbering: Levels and their certainty, if the method reports it.
        versions: Weights by step.
        findings: What is odd about the image and the labels.
        output: Output of the network and its names, to name it again later.
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
        super().__init__(InferType.SEGMENTATION, dict(labels), 3, description, client_config())
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
        """Return the settings to apply; subclasses may fill in what the request leaves open."""
        return settings

    def wire(self, outcome: Outcome, settings: Settings) -> LabelArray:
        """Return the result to send, on the 1 mm grid; subclasses may return something other than the codes."""
        return to_wire(np.where(np.isin(outcome.labels, sorted(settings.codes)), outcome.labels, BACKGROUND))

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Serve a request.

        Args:
            request: ``image`` (path), ``image_id`` (empty for a session's image), settings. Not modified.

        Returns:
            A temporary file with the label map in wire ids, which the host deletes after its reply; the report.

        Raises:
            TotalSpineSegError: The request cannot be served.
        """
        clock = Stopwatch()
        settings = read_settings(request)
        with clock("hash image"):
            sha256 = sha256_of(Path(request["image"]))
        request = {**request, "image_sha256": sha256}
        settings = self.completed(settings, request)
        with clock("wait for the networks"):
            self.services.lock.acquire()
        try:
            with clock("read image"):
                image = read_image(Path(request["image"]))
            scan = pipeline.prepare(image, warnings=image.warnings, clock=clock)
            outcome = self.run(scan, settings, request, clock)
            with clock("lint"):
                odd = pipeline.image_findings(scan, outcome.numbering)
                outcome = replace(outcome, findings=(*odd, *lint(outcome.labels, scan.iso.spacing)))
        finally:
            self.services.lock.release()
        file, present = self._write(outcome, settings, clock)
        image_id = str(request.get("image_id") or "")
        record = PredictionRecord(
            id=history.new_id((*self.services.predictions.ids(image_id, sha256), *self.services.maps.ids(sha256))),
            image=image_id,
            model=str(request.get("model") or ""),
            versions=dict(outcome.versions),
            seconds={**clock.as_json(), "total": round(clock.elapsed, 3)},
            settings=settings.as_json(),
            numbering=report(outcome.numbering, outcome.findings, affine=scan.iso.affine),
            client=str(request.get("client_id") or ""),
            image_sha256=sha256,
            disagreement=dict(outcome.disagreement),
        )
        warning = self._record(record, outcome)
        listed = self.listed(present, record, is_recorded=not warning)
        return str(file), {**self._reply(record, warning=warning), LISTED: list(listed)}

    def listed(self, present: Collection[int], record: PredictionRecord, *, is_recorded: bool) -> tuple[str, ...]:
        """Return the names a reply lists: those it contains, and those of earlier replies, to be cleared in the scene.

        Args:
            present: Wire ids in the map of the reply.
            record: The prediction.
            is_recorded: Whether the prediction and its maps could be stored, as those before it.
        """
        earlier = self.services.maps.codes_before(record.image_sha256, record.id) if is_recorded else None
        if earlier is None:
            return listed_names(self.labels, BY_CODE.keys())
        return listed_names(self.labels, earlier | {code for code, wire_id in WIRE_ID.items() if wire_id in present})

    def _record(self, record: PredictionRecord, outcome: Outcome) -> str:
        """Store the data that a correction needs; return a warning where that fails, because the result is good
        without.
        """
        try:
            self.services.predictions.keep(record)
            self._keep_maps(record.image_sha256, record, outcome)
        except StorageError as error:
            logger.warning("A prediction is not recorded: %s", error)
            return NOT_RECORDED
        return ""

    def _keep_maps(self, sha256: str, record: PredictionRecord, outcome: Outcome) -> None:
        if outcome.output is None:
            return
        numbering = outcome.numbering
        maps = KeptMaps(
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
        return {
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
    ) -> KeptMaps | None:
        """Return what these weights drew for this image before; None where nothing is stored."""
        found = self.services.maps.latest(str(request["image_sha256"]), step, versions)
        return found if found is not None and same_grid(found.iso, scan.iso.grid) else None

    def _localizer(self, image_id: str, wanted_for: str) -> Volume:
        if self.services.studies.image_file(image_id) is None:
            raise UnknownImageError(image_id)
        if not self.services.studies.same_space(wanted_for, image_id):
            raise SettingError(
                f"Localizer {image_id!r} has a different frame of reference (the patient was moved between the "
                "two). Choose another localizer, or pin a level."
            )
        for tag in LABEL_TAGS:
            if file := self.services.studies.label_file(image_id, tag):
                _require_certain(image_id, self.services.studies.get_label_info(image_id, tag))
                wire = read_labels(file)
                return Volume(from_wire(wire.data), wire.affine)
        raise SettingError(f"The localizer {image_id!r} has no label. Submit its label first.")


def _require_certain(image_id: str, info: Mapping[str, Any]) -> None:
    """Refuse a localizer whose levels are uncertain: its guess would count as knowledge."""
    if proves_nothing((info.get("params") or {}).get("numbering")):
        raise SettingError(
            f"The localizer {image_id!r} cannot name this scan: its own names are counted or doubtful, not certain. "
            "Correct its label and submit it first."
        )


def _temporary_file(extension: str) -> Path:
    """Return an empty file with a unique name; a fixed name would be overwritten by the next request."""
    with storage_errors(Path(tempfile.gettempdir())):
        handle, name = tempfile.mkstemp(prefix="totalspineseg-", suffix=extension)
        os.close(handle)
    return Path(name)
