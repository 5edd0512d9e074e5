"""Choose scans on which weights must not become worse: synthetic spines, or scans of the site that they name well.

Weights that were never trained on synthetic spines do poorly on them. For such spines, the answers of these weights on
uncorrected scans of the site are used instead, in training and in the gate.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from totalspineseg_server.agreement import MEASURES, CaseScore, score_case
from totalspineseg_server.corrections.predictions import MapStore, PredictionStore
from totalspineseg_server.errors import GridError, ImageError, StorageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import read_image
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource
from totalspineseg_server.registry.judgments import Measured, measured_once
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
from totalspineseg_server.training.holdout import hash_holds_out, read_split
from totalspineseg_server.training.retrain_settings import REPLAY_CASES
from totalspineseg_server.training.scoring import JudgedCase, Model, handles, predict_named
from totalspineseg_server.training.site import Site
from totalspineseg_server.trust import Certainty, certainty_of

SEED: Final = 71_993
"""First part of the seed of every replay scan; the reference set of the gate uses another."""
FIELDS: Final = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.THORACOLUMBAR, Field.CERVICAL)


def replay_sources(count: int = REPLAY_CASES) -> tuple[ScanSource, ...]:
    """Return the synthetic replay scans, made when they are read; the first ones are the same for every count."""
    return tuple(_source(number) for number in range(count))


def _source(number: int) -> ScanSource:
    name = f"synthetic-{number + 1}"
    return ScanSource(
        name, Origin.UNCORRECTED, lambda: _draw(number, name), {"synthetic": name, "seed": [SEED, number]}
    )


def _draw(number: int, name: str) -> LabeledScan:
    rng = np.random.default_rng([SEED, number])
    options = SpineOptions(field=FIELDS[number % len(FIELDS)], width_mm=float(rng.uniform(60, 90)))
    spine = random_spine(rng, options)
    image = render(rng, spine, RenderOptions(strength=float(rng.uniform(0.3, 1.0))))
    return LabeledScan(name, name, Origin.UNCORRECTED, Volume(image, spine.affine), Volume(spine.labels, spine.affine))


logger = logging.getLogger(__name__)

TRIED: Final = 4
"""Number of synthetic spines on which weights are tried once: one for each field of view in replay."""
OWN_AT_MOST: Final = 24
"""Largest number of own answers in replay. Each needs the whole pipeline: minutes on a CPU with networks of the
official size."""
WITHOUT_DOUBT: Final[tuple[Certainty, ...]] = ("certain", "counted")
"""Certainty that the names of an own answer must have. *Counted* is enough, because a site may have lumbar scans only.
If a rare column of six lumbar vertebrae is counted as five, that is still the answer of these weights."""


@dataclass(frozen=True)
class OwnAnswer:
    """A scan of the site with the segmentation that weights made of it.

    Attributes:
        name: Name for logs, never a patient's.
        subject: Subject of the scan.
        path: Its image, read when it is needed.
        codes: The segmentation, on the grid of the image.
        image_sha256: Hash of the image.
    """

    name: str
    subject: str
    path: Path
    codes: Volume
    image_sha256: str

    def judged(self) -> JudgedCase:
        """Return the scan with its answer as the truth, for comparing models.

        Raises:
            ImageError: The image cannot be read anymore.
        """
        return JudgedCase(self.name, self.subject, read_image(self.path), self.codes)

    def source(self) -> ScanSource:
        """Return it as a scan for training."""
        provenance = {"own_answer": self.name, "image_sha256": self.image_sha256}
        return ScanSource(self.name, Origin.UNCORRECTED, self._read, provenance)

    def _read(self) -> LabeledScan:
        return LabeledScan(self.name, self.subject, Origin.UNCORRECTED, read_image(self.path), self.codes)


def replay_of(
    site: Site, model: Model, count: int, *, tell: Callable[[str], None] = lambda _: None
) -> tuple[ScanSource, ...]:
    """Return the scans to replay: synthetic spines, and own answers in place of spines that the weights do not handle.

    Args:
        site: Studies and models.
        model: The weights that training begins with.
        count: Number of scans; fewer if the site has too few that are named without doubt.
        tell: Called with a line of progress.

    Raises:
        WeightsError: A model cannot be loaded.
        StorageError: The measurement cannot be written, or the hold-out list is damaged.
    """
    if count == 0:
        return ()
    synthetic = round(count * handled_share(site.models, model, tell=tell))
    own = own_answers(site, model, min(count - synthetic, OWN_AT_MOST), judges=False, tell=tell)
    return (*replay_sources(synthetic), *(answer.source() for answer in own))


def handled_share(store: ModelStore, model: Model, *, tell: Callable[[str], None] = lambda _: None) -> float:
    """Return the share of synthetic spines that weights handle, which is measured once and recorded.

    Raises:
        WeightsError: A model cannot be loaded.
        StorageError: It cannot be recorded.
    """

    def measure() -> Measured:
        found = {}
        for source in replay_sources(TRIED):
            tell(f"trying the weights in use on {source.name}")
            scan = source.read()
            score = score_case(scan.codes.data, predict_named(scan.image, model)[0])
            values = {name: score.value(name) for name in MEASURES}
            found[source.name] = {name: None if value != value else round(value, 3) for name, value in values.items()}
        return found

    versions = {1: model.step1.version, 2: model.step2.version}
    tried = measured_once(store, versions, measure).values()
    scores = [{name: float("nan") if value is None else value for name, value in each.items()} for each in tried]
    return sum(handles(values) for values in scores) / len(scores) if scores else 0.0


def own_answers(
    site: Site,
    model: Model,
    count: int,
    *,
    judges: bool,
    seen: Collection[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[OwnAnswer]:
    """Yield uncorrected scans of the site that weights name without doubt, with their segmentations, in a fixed order.

    Args:
        site: Studies and models; recently segmented scans that were named without doubt are tried.
        model: The weights.
        count: Number of scans; twice as many are tried.
        judges: Whether to use scans of subjects that are held out; otherwise of those that are used for training. The
            hold-out list decides, or, for subjects that are not in it yet, its rule.
        seen: SHA-256 of images to leave out.
        tell: Called with a line of progress.

    Raises:
        WeightsError: A model cannot be loaded.
        MemoryShortageError: A scan does not fit into memory.
        StorageError: The hold-out list is damaged.
    """
    found = tried = 0
    split, predictions = read_split(site.holdout_file), PredictionStore(site.history)
    for sha256, image_id in MapStore(site.history).images():
        if found == count or tried == 2 * count:
            return
        try:
            subject = site.subject(image_id)
        except StorageError as error:
            logger.warning("%s is not used to prevent forgetting: %s", image_id, error)
            continue
        held = split.holds_out(subject) if subject in split.role else hash_holds_out(subject)
        if held is not judges or sha256 in seen or site.corrections.in_force(image_id):
            continue
        latest = predictions.latest(image_id)
        if latest is None or certainty_of(latest.numbering) not in WITHOUT_DOUBT:
            continue
        tried += 1
        tell(f"segmenting {image_id} with the weights in use")
        try:
            path = site.image_file(image_id)
            if path is None or sha256_of(path) != sha256:
                continue
            image = read_image(path)
            codes, certainty = predict_named(image, model)
        except (ImageError, GridError, StorageError, OSError) as error:
            logger.warning("%s is not used to prevent forgetting: %s", image_id, error)
            continue
        if certainty in WITHOUT_DOUBT:
            found += 1
            yield OwnAnswer(f"{image_id} (own answer)", subject, path, Volume(codes, image.affine), sha256)


def as_in_truth(truth: CaseScore, score: CaseScore) -> CaseScore:
    """Return a score without the structures that are not in the truth, because an own answer may have missed them."""
    dice = {name: float("nan") if truth.dice[name] != truth.dice[name] else value for name, value in score.dice.items()}
    return replace(score, dice=dice)
