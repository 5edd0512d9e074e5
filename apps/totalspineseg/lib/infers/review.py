"""A model that shows where a reader should look: clients drop the report, but they show segments."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from lib.corrections.wire import REVIEW_PREFIX
from lib.geometry import LabelArray
from lib.infers.models import FullTask
from lib.infers.services import Services
from lib.infers.settings import Settings, pins_from_json
from lib.infers.task import Outcome
from lib.numbering.chain import CONFIDENT_PROBABILITY, Numbering

UNCERTAIN, ODD = f"{REVIEW_PREFIX}: level not certain", f"{REVIEW_PREFIX}: check this"
REVIEW_LABELS: Final[Mapping[str, int]] = MappingProxyType({UNCERTAIN: 1, ODD: 2})
"""Two segments, whatever the number of levels, so that a scene does not fill with empty ones."""


class ReviewTask(FullTask):
    """The full result, reduced to the structures that need a reader's eyes; asked after it, no network runs again."""

    part = REVIEW_PREFIX
    reuses_maps = True

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self.labels = dict(REVIEW_LABELS)
        self.description = (
            f"Where to look: structures whose level is less than {CONFIDENT_PROBABILITY:.0%} certain, and "
            "structures the checks find odd. Remove these segments before you submit."
        )

    def completed(self, settings: Settings, request: Mapping[str, Any]) -> Settings:
        """With the localizer and the fixed levels of the result that is looked at, unless the request names its own.

        Without them the review would doubt levels that the result was told, or judge other names than are shown.
        """
        for record in self.services.predictions.newest_first(str(request.get("image_id") or "")):
            same = record.image_sha256 == request["image_sha256"]
            if same and record.model != request.get("model") and "step2" in record.versions:
                told = record.settings
                pins = settings.pins or pins_from_json(told.get("pins", ()))
                return replace(settings, localizer=settings.localizer or str(told.get("localizer", "")), pins=pins)
        return settings

    def wire(self, outcome: Outcome, settings: Settings) -> LabelArray:
        """1 where a level is not certain, 2 where the checks found something."""
        uncertain: set[int] = set()
        if outcome.numbering is not None:
            uncertain = _uncertain(outcome.numbering)
        odd = {finding.code for finding in outcome.findings} - uncertain
        marks = np.zeros(outcome.labels.shape, dtype=np.uint8)
        for name, codes in ((UNCERTAIN, uncertain), (ODD, odd)):
            marks[np.isin(outcome.labels, sorted(codes & settings.codes))] = REVIEW_LABELS[name]
        return marks


def _uncertain(numbering: Numbering) -> set[int]:
    """Codes of the doubtful levels; where the whole is doubtful but no single one, all of them."""
    doubtful = {level.code for level in numbering.levels if level.probability < CONFIDENT_PROBABILITY}
    return doubtful if doubtful or numbering.confident else {level.code for level in numbering.levels}
