"""Define the models that the app publishes: both steps, step 1 alone, and step 2 from a corrected step 1."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from totalspineseg_server import pipeline
from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.corrections.correction_store import READER_TAGS, STEP1_TAG
from totalspineseg_server.corrections.label_files import UNCONFIRMED
from totalspineseg_server.corrections.submission import map_names, read_submission
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import LabelArray, Volume, labels_to_iso, on_grid
from totalspineseg_server.infers import infers_messages
from totalspineseg_server.infers.disagreement import disagreement_of
from totalspineseg_server.infers.services import Services, pair_in_use
from totalspineseg_server.infers.settings import Settings
from totalspineseg_server.infers.task import Outcome, SpineTask
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.numbering.naming import names_by_reader, require_met
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.pipeline import Scan
from totalspineseg_server.segments import STEP1_WIRE_LABELS, from_wire, without_regions
from totalspineseg_server.transforms.discs import missing_discs

PREDICTED_TAG = "original"
"""Tag of the label that step 2 starts from if the request has none and no reader submitted one."""


class FullTask(SpineTask):
    """Both steps: every vertebra, disc, cord, canal and the sacrum by name.

    A request that pins a level, or only asks for other structures or another grid than the one before, is answered from
    the earlier maps of the networks, if they are still stored.
    """

    reuses_maps = False
    """Whether every request is answered from stored maps."""

    def __init__(self, services: Services) -> None:
        super().__init__(
            services,
            infers_messages.FULL_SPINE,
        )

    def run(self, scan: Scan, settings: Settings, request: Mapping[str, Any], clock: Stopwatch) -> Outcome:
        """Run both steps."""
        step1, step2 = pair_in_use(self.services.networks)
        versions = {"step1": step1.version, "step2": step2.version}
        options = self.options(settings, request, versions)
        earlier = None
        if settings.pins or self.reuses_maps:
            maps = self.earlier_maps(scan, 2, request, versions)
        else:
            earlier = self.reusable_result(settings, request, options, versions)
            maps = self.maps_of(scan, 2, earlier)
        mirrors: tuple[float | None, ...] = ()
        output = None if maps is None else maps.output()
        if maps is not None and output is not None:
            versions = dict(maps.versions)
            found = pipeline.rename(
                scan, output.raw.data, maps.box, 2, options, step1=output.step1, trust=output.trust, clock=clock
            )
        else:
            located = pipeline.locate(scan, step1, options, clock=clock)
            found = pipeline.finish(located, step2, options, clock=clock)
            mirrors = located.mirror_difference, found.mirror_difference
        require_met(found.numbering)
        named = _maps_of(found, 2)
        apart = disagreement_of(found.step1, named.labels, mirrors)
        if output is not None and earlier is not None:
            apart = dict(earlier.disagreement)
        return Outcome(scan, found.labels, found.numbering, versions, output=named, disagreement=apart)


class Step1Task(SpineTask):
    """Step 1 alone: discs with their levels, cord, canal, C1, and all other vertebrae in one piece."""

    part = STEP1_TAG

    def __init__(self, services: Services) -> None:
        super().__init__(
            services,
            infers_messages.STEP1,
            STEP1_WIRE_LABELS,
        )

    def run(self, scan: Scan, settings: Settings, request: Mapping[str, Any], clock: Stopwatch) -> Outcome:
        """Run step 1."""
        step1 = self.services.networks.get(1)
        versions = {"step1": step1.version}
        options = self.options(settings, request, versions)
        if settings.pins:
            maps = self.earlier_maps(scan, 1, request, versions)
        else:
            maps = self.maps_of(scan, 1, self.reusable_result(settings, request, options, versions))
        output = None if maps is None else maps.output()
        if maps is not None and output is not None:
            found = pipeline.rename(scan, output.raw.data, maps.box, 1, options, trust=output.trust, clock=clock)
            require_met(found.numbering)
            return Outcome(scan, found.labels, found.numbering, versions, output=_maps_of(found, 1))
        located = pipeline.locate(scan, step1, options, clock=clock)
        require_met(located.numbering)
        named = NamedMap(Volume(located.raw, scan.iso.affine), located.labels, 1, trust=located.trust)
        return Outcome(scan, located.labels, located.numbering, versions, output=named)


class Step2Task(SpineTask):
    """Step 2 from a step-1 label that an annotator corrected."""

    def __init__(self, services: Services) -> None:
        super().__init__(
            services,
            infers_messages.STEP2,
        )

    def run(self, scan: Scan, settings: Settings, request: Mapping[str, Any], clock: Stopwatch) -> Outcome:
        """Segment around the discs of the label.

        Their names are certain if a reader gave them. Names of a network's label do not count, because their doubts are
        not known.
        """
        step2 = self.services.networks.get(2)
        with clock("read step-1 label"):
            codes, by_reader = self._label(scan, request)
            labels: LabelArray = labels_to_iso(codes).data
        names = names_by_reader(labels) if by_reader else None
        part = pipeline.step2_input(scan, labels, names, missed=missing_discs(labels), clock=clock)
        versions = {"step2": step2.version}
        found = pipeline.segment(part, step2, self.options(settings, request, versions), clock=clock)
        return Outcome(scan, found.labels, found.numbering, versions, output=_maps_of(found, 2))

    def _label(self, scan: Scan, request: Mapping[str, Any]) -> tuple[Volume, bool]:
        """Return the codes of the step-1 label on the scan's own grid, and whether a reader vouches for its names."""
        sent = request.get("label")
        if sent:
            return self._sent(scan, Path(sent), request.get("label_info"))
        return self._stored(scan, request)

    def _sent(self, scan: Scan, file: Path, label_info: object) -> tuple[Volume, bool]:
        mapped = map_names(read_submission(file, label_info), scan.grid)
        return Volume(without_regions(mapped.codes), scan.grid.affine), not mapped.unconfirmed

    def _stored(self, scan: Scan, request: Mapping[str, Any]) -> tuple[Volume, bool]:
        image_id = str(request.get("image_id") or "")
        asked = str(request.get("label_from") or "")
        tags = (asked,) if asked else (*self._latest_first(image_id), PREDICTED_TAG)
        files = ((tag, self.services.studies.label_file(image_id, tag)) for tag in tags if image_id)
        found = next(((tag, file) for tag, file in files if file), None)
        if found is None:
            raise LabelError(infers_messages.NO_STEP1_LABEL)
        tag, file = found
        wire = on_grid(read_labels(file), scan.grid)
        unconfirmed = self.services.studies.get_label_info(image_id, tag).get(UNCONFIRMED)
        return Volume(from_wire(wire.data), wire.affine), tag in READER_TAGS and not unconfirmed

    def _latest_first(self, image_id: str) -> Sequence[str]:
        """Return the readers' tags, starting with that of the newest label; ids of submissions sort by time."""

        def submitted(tag: str) -> str:
            return str(self.services.studies.get_label_info(image_id, tag).get("correction", ""))

        return sorted(READER_TAGS, key=submitted, reverse=True)


def _maps_of(found: pipeline.Segmentation, step: Literal[1, 2]) -> NamedMap:
    part = pipeline.sub_grid(found.scan.iso.grid, found.box)
    return NamedMap(Volume(found.raw[found.box], part.affine), found.labels[found.box], step, found.step1, found.trust)
