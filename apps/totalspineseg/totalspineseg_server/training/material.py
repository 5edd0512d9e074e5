"""Collect what a training begins with: the weights in use, corrections to train on, and corrections to test on."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.agreement import NOTHING_LEFT, Left
from totalspineseg_server.anatomy import NAME_OF
from totalspineseg_server.corrections.comparison import INCOMPLETE
from totalspineseg_server.corrections.correction_store import FINAL_TAG, STEP1_TAG, Correction
from totalspineseg_server.errors import StorageError, TrainingError
from totalspineseg_server.geometry import Volume, to_ras
from totalspineseg_server.io.volumes import read_image
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource, Skipped
from totalspineseg_server.nnunet.discovery import parts_of
from totalspineseg_server.nnunet.runtimes import resolve_device
from totalspineseg_server.numbering.linter import require_plausible
from totalspineseg_server.registry.model_store import Choice, ModelStore
from totalspineseg_server.registry.records import lineage, read_record, trained_on
from totalspineseg_server.segments import mark_unchecked
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.holdout import Split, hash_holds_out, update_split
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.scoring import JudgedCase
from totalspineseg_server.training.site import Site

logger = logging.getLogger(__name__)

FINISHED_TAGS: Final = {1: (FINAL_TAG, STEP1_TAG), 2: (FINAL_TAG,)}
"""Step of a correction -> tags under which its author submits it as finished; any other tag is work in progress."""


@dataclass(frozen=True)
class Material:
    """The corrections of a site, for training and for comparing models.

    Attributes:
        training: Scans to train on, not read yet.
        holdout: Scans to compare models on, not read yet.
        skipped: Corrections left out, with the reason.
        known: Step -> ids of corrections that its network in use was trained on.
    """

    training: tuple[ScanSource, ...]
    holdout: tuple[ScanSource, ...]
    skipped: tuple[Skipped, ...]
    known: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def lessons(self, step: int) -> tuple[ScanSource, ...]:
        """Return the training scans of a step; those on which its network was trained before count as replay."""
        known = self.known.get(step, frozenset())
        return tuple(
            _as_earlier(source)
            if source.provenance["correction"] in known and source.origin is Origin.CORRECTION
            else source
            for source in self.training
            if step in source.steps
        )


def site_material(
    site: Site,
    known: Mapping[int, frozenset[str]] | None = None,
    *,
    line: frozenset[str] = frozenset(),
    split_of: Callable[[Path, Iterable[str]], Split] = update_split,
) -> Material:
    """Collect the newest finished corrections of all images and split them by subject.

    Accepted corrections with one of ``FINISHED_TAGS`` are finished. Work in progress is skipped, with the reason, until
    a finished label follows. Withdrawn labels do not count. If a corrected step-1 map follows a finished label, step 1
    is trained on the map and step 2 on the label.

    Args:
        site: Studies and corrections.
        known: Step -> ids of corrections that its network in use was trained on; they become replay.
        line: Weights and their ancestors (see ``line_of``). Structures that readers left as these predicted them
            are marked. Empty for networks without ancestors here.
        split_of: Returns the role of each subject, given the file of the hold-out list and the subjects; it may write
            the file.

    Returns:
        Training and hold-out scans; empty if there are no corrections.

    Raises:
        StorageError: The hold-out list is damaged or cannot be written.
    """
    skipped: list[Skipped] = []

    def damaged(name: str, error: StorageError) -> None:
        logger.warning("A correction of %s is left out: %s", name, error)
        skipped.append(Skipped(name, str(error)))

    newest: dict[tuple[str, int], Correction] = {}
    drafts: dict[tuple[str, int], Correction] = {}
    counted: list[str] = []
    subjects: dict[str, str] = {}
    for correction in sorted(site.corrections.readable(damaged), key=lambda c: c.id):
        if correction.status != "accepted" or correction.step not in FINISHED_TAGS:
            continue
        if correction.id in site.corrections.withdrawals.of_image(correction.image):
            continue
        try:
            subject = subjects[correction.image] = site.subject(correction.image)
        except StorageError as error:
            # As another patient, a scan that is held out would be used for training.
            damaged(_name(correction), error)
            continue
        if correction.tag in FINISHED_TAGS[correction.step]:
            if not correction.unchanged:
                counted.append(subject)
            newest[correction.image, correction.step] = correction
            drafts.pop((correction.image, correction.step), None)
        else:
            drafts[correction.image, correction.step] = correction
    skipped += [Skipped(_name(c), _reason(c)) for c in drafts.values() if not _has_newer_final(newest, c)]
    used = [c for c in newest.values() if c.step == 2 or not _has_newer_final(newest, c)]
    used.sort(key=lambda c: c.id)
    split = split_of(site.holdout_file, counted)
    training, holdout = [], []
    for correction in used:
        source = _source(site, correction, _steps(newest, correction), line)
        if correction.unchanged:
            if _may_judge(split, subjects[correction.image]):
                skipped.append(Skipped(source.name, training_messages.ACCEPTED_HOLDOUT))
            else:
                training.append(source)
        elif not split.holds_out(subjects[correction.image]):
            training.append(source)
        elif correction.step == 2:
            holdout.append(source)
    trained = {source.provenance["image_sha256"] for source in training}
    twice = [source for source in holdout if source.provenance["image_sha256"] in trained]
    skipped += [Skipped(source.name, training_messages.TRAINED_TOO) for source in twice]
    holdout = [source for source in holdout if source not in twice]
    return Material(tuple(training), tuple(holdout), tuple(skipped), known or {})


def _may_judge(split: Split, subject: str) -> bool:
    """Return whether a subject is held out, or would be once somebody corrects one of its scans."""
    return split.holds_out(subject) if subject in split.role else hash_holds_out(subject)


def judged_cases(sources: tuple[ScanSource, ...]) -> tuple[tuple[JudgedCase, ...], tuple[Skipped, ...]]:
    """Read hold-out scans; those that cannot be read, or whose label is impossible, are skipped with the reason."""
    cases, skipped = [], []
    for source in sources:
        try:
            scan = source.read()
            require_plausible(to_ras(scan.codes).data)
        except (OSError, ValueError) as error:
            logger.warning("Hold-out scan %s is left out: %s", source.name, error)
            skipped.append(Skipped(source.name, str(error)))
        else:
            codes = Volume(mark_unchecked(scan.codes.data, scan.unreviewed), scan.codes.affine)
            cases.append(JudgedCase(scan.name, scan.subject, scan.image, codes, scan.left))
    return tuple(cases), tuple(skipped)


def _name(correction: Correction) -> str:
    return f"{correction.image} ({correction.id})"


def _reason(draft: Correction) -> str:
    return training_messages.NOT_FINAL.format(tag=draft.tag, final_tag=FINAL_TAG)


def _has_newer_final(newest: Mapping[tuple[str, int], Correction], earlier: Correction) -> bool:
    """Return whether a finished label follows a step-1 map. It also serves step 1, so the older map adds nothing."""
    final = newest.get((earlier.image, 2))
    return final is not None and final.id > earlier.id


def _steps(newest: Mapping[tuple[str, int], Correction], correction: Correction) -> tuple[int, ...]:
    """Return the steps that are trained on a correction, which is the newest of its kind."""
    if correction.step == 1:
        return (1,)
    step1 = newest.get((correction.image, 1))
    return (2,) if step1 is not None and step1.id > correction.id else (1, 2)


def _source(site: Site, correction: Correction, steps: tuple[int, ...], line: frozenset[str]) -> ScanSource:
    name, left = _name(correction), NOTHING_LEFT
    if is_of_line(correction.prediction, line):
        left = Left(frozenset(correction.untouched), frozenset(correction.renamed))
    provenance = _provenance(correction)
    origin = _origin(correction)
    return ScanSource(name, origin, lambda: _read(site, correction, name, left), provenance, steps)


def _origin(correction: Correction) -> Origin:
    return Origin.ACCEPTED if correction.unchanged else Origin.CORRECTION


def _as_earlier(source: ScanSource) -> ScanSource:
    def read() -> LabeledScan:
        return replace(source.read(), origin=Origin.EARLIER)

    return replace(source, origin=Origin.EARLIER, read=read)


def _read(site: Site, correction: Correction, name: str, left: Left) -> LabeledScan:
    image = read_image(site.labeled_image(correction))
    codes = site.corrections.volume(correction)
    subject, origin = site.subject(correction.image), _origin(correction)
    return LabeledScan(name, subject, origin, image, codes, correction.unchecked, left)


def _provenance(correction: Correction) -> dict[str, Any]:
    return {
        "image": correction.image,
        "correction": correction.id,
        "step": correction.step,
        "image_sha256": correction.image_sha256,
        "label_sha256": correction.raw_sha256,
        "annotator": correction.user,
        "client": correction.client,
        "received": correction.received,
        "offered": correction.offered,
        "unreviewed": [NAME_OF[code] for code in correction.unreviewed],
        "unconfirmed": [NAME_OF[code] for code in correction.unconfirmed],
        "unchanged": correction.unchanged,
        "untouched": [NAME_OF[code] for code in correction.untouched],
        # An incomplete label is not trained on. The reason is reported where it is left out.
        "findings": [str(f.get("message", "")) for f in correction.findings if f.get("kind") != INCOMPLETE],
    }


def line_of(store: ModelStore, names: Collection[str]) -> frozenset[str]:
    """Return the names of versions and their ancestors, and the identifiers that their networks' predictions carry.

    Args:
        store: The model versions.
        names: "starter" or versions' names.
    """
    found: set[str] = set()
    for ancestor in {ancestor for name in names for ancestor in lineage(store, name)}:
        record = read_record(store, ancestor) or {}
        parents = (str(parent["version"]) for parent in record.get("parents", {}).values())
        found |= {ancestor, *(parts_of(version)[1] for version in (*record.get("models", {}).values(), *parents))}
    return frozenset(found)


def is_of_line(prediction: Mapping[str, object] | None, line: frozenset[str]) -> bool:
    """Return whether a network of a line made a prediction, in either step.

    Args:
        prediction: The prediction in a correction's record ("versions": step -> version); None if there is none.
        line: From ``line_of``.
    """
    versions = (prediction or {}).get("versions")
    made_by = [str(version) for version in versions.values()] if isinstance(versions, Mapping) else []
    return any(not line.isdisjoint(parts_of(version)) for version in made_by)


@dataclass(frozen=True)
class Start:
    """The weights, material and steps of a training.

    Attributes:
        choices: Step -> the weights in use.
        material: The site's corrections.
        steps: The requested steps for which there are corrections.
    """

    choices: dict[int, Choice]
    material: Material
    steps: tuple[int, ...]


def start_of(site: Site, settings: RetrainSettings) -> Start:
    """Return the weights, corrections and steps of a training, after checking the device.

    Args:
        site: Studies, corrections and models.
        settings: Settings of the training.

    Raises:
        TrainingError: There is no correction to train on, or no such device.
        WeightsError: There are no weights to begin with.
        StorageError: The hold-out list is damaged or cannot be written.
    """
    try:
        resolve_device(settings.finetune.device)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    choices = {step: site.models.resolve(step) for step in (1, 2)}
    known = {step: trained_on(site.models, choices[step].name, step) for step in settings.steps}
    line = line_of(site.models, {choice.name for choice in choices.values()})
    material = site_material(site, known, line=line)
    steps = tuple(step for step in settings.steps if material.lessons(step))
    if not steps:
        raise TrainingError(training_messages.NO_CORRECTION.format(count=len(material.training)))
    return Start(choices, material, steps)
