"""Make a tiny site for training tests: coarse synthetic scans with corrections, and tiny networks."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiny_models import TRAINER, write_models
from totalspineseg_server.corrections.correction_store import Correction
from totalspineseg_server.corrections.receipts import Receipts, Sender, receipt_of
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.scoring import JudgedCase
from totalspineseg_server.training.site import Site, folder_site

SPACING_MM = (6.0, 6.0, 6.0)
"""Patch of the tiny networks; a lower lumbar scan is then a few patches."""


def tiny_scan(seed: int) -> tuple[Volume, Volume]:
    """Return image and codes of a coarse lower lumbar scan."""
    rng = np.random.default_rng(seed)
    options = SpineOptions(
        field=Field.LOWER_LUMBAR, thoracic=12, lumbar=5, width_mm=48, depth_mm=72, spacing_mm=(3, 3, 3)
    )
    spine = random_spine(rng, options)
    image = render(rng, spine, RenderOptions(contrast="T2", strength=0.2))
    return Volume(image, spine.affine), Volume(spine.labels, spine.affine)


def tiny_settings(**finetune: Any) -> RetrainSettings:
    """Return settings for a retraining of seconds."""
    tiny: dict[str, Any] = {
        "iterations": 4,
        "batch_size": 1,
        "warmup": 1,
        "epoch": 1,
        "validation_patches": 1,
        "device": "cpu",
    }
    return RetrainSettings(finetune=FinetuneSettings(**tiny | finetune))


def tiny_replay() -> tuple[ScanSource, ...]:
    """Return one synthetic replay scan."""

    def read() -> LabeledScan:
        return LabeledScan("replay-1", "replay-1", Origin.UNCORRECTED, *tiny_scan(900))

    return (ScanSource("replay-1", Origin.UNCORRECTED, read, {"synthetic": "replay-1"}),)


def tiny_reference() -> Iterable[JudgedCase]:
    """Return three reference scans, the smallest number with which the gate compares models."""
    for number in range(3):
        yield JudgedCase(f"reference-{number}", f"reference-{number}", *tiny_scan(800 + number))


def make_site(root: Path, scans: int = 1, trainer: str = TRAINER) -> Site:
    """Make a studies folder with corrected scans ``sub-0``, ``sub-1`` .. and starter networks.

    Args:
        root: Empty folder.
        scans: How many images, each with one accepted correction.
        trainer: Class that the checkpoints of the networks name.
    """
    studies = root / "studies"
    studies.mkdir(parents=True)
    write_models(root / "model" / "starter", spacing=SPACING_MM, trainer=trainer)
    site = folder_site(studies, ModelStore(root / "model"))
    for number in range(scans):
        correct(site, root, f"sub-{number}", number)
    return site


def correct(
    site: Site, root: Path, image_id: str, seed: int, *, untouched: tuple[int, ...] = (), made_by: str = ""
) -> Correction:
    """Add an image and an accepted correction of it, with some structures left as a version predicted them."""
    image, codes = tiny_scan(seed)
    path = root / "studies" / f"{image_id}.nii.gz"
    label = root / "label.nii.gz"
    write_volume(path, image.data, image.grid)
    write_volume(label, codes.data, codes.grid)
    present = tuple(int(code) for code in np.unique(codes.data) if code)
    receipts, sender = Receipts(site.history), Sender("reader", "client", "label.nii.gz")
    receipt = replace(receipt_of(image_id, label, tag="final", sender=sender, params={}), id=receipts.new_id(()))
    receipts.keep(receipt, label)
    versions = {"step1": made_by, "step2": made_by}
    record = Correction(
        **asdict(sender),
        id=receipt.id,
        image=image_id,
        status="accepted",
        reason="",
        step=2,
        tag=receipt.tag,
        raw=receipt.raw,
        raw_sha256=receipt.raw_sha256,
        image_sha256=sha256_of(path),
        received=receipt.received,
        prediction={"id": "p", "model": "totalspineseg", "versions": versions} if made_by else None,
        label_info=None,
        present=present,
        untouched=untouched,
        offered={"strategy": "random"},
    )
    return site.corrections.file(receipts.folder(receipt), record, codes)
