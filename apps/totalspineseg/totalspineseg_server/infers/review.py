"""Mark where a reader should look, as segments: clients show these, but not the report."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, DISCS, Kind
from totalspineseg_server.corrections.predictions import PredictionMaps, PredictionRecord
from totalspineseg_server.geometry import LabelArray, same_grid
from totalspineseg_server.infers import infers_messages
from totalspineseg_server.infers.published import FullTask
from totalspineseg_server.infers.services import Services
from totalspineseg_server.infers.settings import Settings, pins_from_json
from totalspineseg_server.infers.task import Outcome
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.report import NAMED, doubtful_codes
from totalspineseg_server.pipeline import Scan
from totalspineseg_server.segments import REVIEW_PREFIX
from totalspineseg_server.transforms.components import Mask, labels_present

DOUBTFUL, ODD = f"{REVIEW_PREFIX}: level doubtful", f"{REVIEW_PREFIX}: check this"
REVIEW_LABELS: Final[Mapping[str, int]] = MappingProxyType({DOUBTFUL: 1, ODD: 2})
"""Names of the two segments for any number of levels; more would fill the scene with empty ones."""
SPOT_MM: Final = 5.0
"""Radius of the mark where there is no label, such as at a piece that was left out."""


class ReviewTask(FullTask):
    """Marks the parts of the current result that a reader should check; no network runs again for it."""

    part = REVIEW_PREFIX
    reuses_maps = True

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self.labels = dict(REVIEW_LABELS)
        self.description = infers_messages.REVIEW

    def completed(self, settings: Settings, request: Mapping[str, Any]) -> Settings:
        """Return the settings that named the result under review, unless the request has its own localizer or levels.

        Otherwise the review would doubt levels that were pinned for the result, or check names other than those on the
        screen.
        """
        result = self.result_on_screen(request)
        if result is None:
            return settings
        earlier = result.settings
        return replace(
            settings,
            localizer=settings.localizer or str(earlier.get("localizer", "")),
            pins=settings.pins or pins_from_json(earlier.get("pins", ())),
            numbering=earlier.get("numbering", settings.numbering),
            other_series=bool(earlier.get("other_series", settings.other_series)),
        )

    def earlier_maps(
        self, scan: Scan, step: int, request: Mapping[str, Any], versions: Mapping[str, str]
    ) -> PredictionMaps | None:
        """Return the maps of the result under review, whichever weights and step-1 map it was made with."""
        result = self.result_on_screen(request)
        found = None if result is None else self.services.maps.of_prediction(str(request["image_sha256"]), result.id)
        if found is not None and same_grid(found.iso, scan.iso.grid):
            return found
        return super().earlier_maps(scan, step, request, versions)

    def reviewed(self, request: Mapping[str, Any]) -> str:
        """Return the id of the result under review: a label that is sent afterwards corrects that one."""
        result = self.result_on_screen(request)
        return "" if result is None else result.id

    def listed(self, present: Collection[int], record: PredictionRecord, *, is_recorded: bool) -> tuple[str, ...]:
        """Return both marks, so that those of an earlier review are cleared."""
        return tuple(self.labels)

    def wire(self, outcome: Outcome, settings: Settings) -> LabelArray:
        """Return 1 where a level is doubtful, 2 where the checks found something."""
        labels = outcome.labels
        present = frozenset(np.flatnonzero(labels_present(labels)).tolist())
        # The iterative method does not report doubts, so each of its levels may be wrong.
        unsure = present & NAMED if outcome.numbering is None else doubtful_codes(outcome.numbering, labels)
        findings = (*outcome.findings, *(() if outcome.numbering is None else outcome.numbering.findings))
        odd = frozenset(code for finding in findings for code in _concerned(finding.code, present)) - unsure
        marks = np.zeros(labels.shape, dtype=np.uint8)
        for name, codes in ((DOUBTFUL, unsure), (ODD, odd)):
            marks[np.isin(labels, sorted(codes & settings.codes))] = REVIEW_LABELS[name]
        marks[(labels == 0) & _spots(findings, labels.shape, outcome.scan.iso.spacing)] = REVIEW_LABELS[ODD]
        return marks

    def _marked(self, outcome: Outcome, present: Collection[int]) -> tuple[int, ...]:
        """Return no codes: a review has marks in place of levels."""
        return ()

    def result_on_screen(self, request: Mapping[str, Any]) -> PredictionRecord | None:
        """Return the newest complete result for the image as it is now."""
        image_id, sha256 = str(request.get("image_id") or ""), str(request["image_sha256"])
        for record in self.services.predictions.newest_first(image_id, sha256):
            same = record.image_sha256 == sha256
            if same and record.model != request.get("model") and "step2" in record.versions:
                return record
        return None


def _concerned(code: int, present: frozenset[int]) -> tuple[int, ...]:
    """Return the codes to mark for a finding: its own, or the neighbors of a missing one."""
    if code in present or code not in ORDER:
        return (code,) if code in present else ()
    kind = BY_CODE[code].kind is Kind.DISC
    row = sorted((c for c in present & ORDER.keys() if (c in DISCS) == kind), key=lambda c: ORDER[c])
    above, below = [c for c in row if ORDER[c] < ORDER[code]], [c for c in row if ORDER[c] > ORDER[code]]
    return (*above[-1:], *below[:1])


def _spots(findings: Iterable[Finding], shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> Mask:
    """Return balls around findings that have a position but no code."""
    spots = np.zeros(shape, dtype=np.bool_)
    for finding in findings:
        if finding.code == 0 and finding.point_vox is not None:
            x, y, z = (
                ((np.arange(length) - at) * mm) ** 2
                for length, at, mm in zip(shape, finding.point_vox, spacing_mm, strict=True)
            )
            spots |= x[:, None, None] + y[None, :, None] + z[None, None, :] <= SPOT_MM**2
    return spots
