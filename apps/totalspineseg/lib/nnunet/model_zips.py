"""Versions as zips of nnU-Net's shape: out to another place, and in from one."""

import json
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import torch

from lib.errors import WeightsError
from lib.files import sha256_of, write_file, write_json
from lib.nnunet.candidate import STOCK_TRAINER, stock_checkpoint, stock_name
from lib.nnunet.checkpoint import load_checkpoint
from lib.nnunet.model_folder import ModelFolder, models_in, models_of
from lib.nnunet.trust_file import TRUST_FILE
from lib.nnunet.unpack import unpack_model
from lib.nnunet.version import version_name
from lib.registry.records import RECORD_FILE, VersionRecord, holder, read_record, removed_versions, write_record
from lib.registry.releases import OFFICIAL_NAME, RELEASE_NAME
from lib.registry.store import DATASET_OF_STEP, NAME, OFFICIAL_PREFIX, STARTER, ModelStore

DATASET_NAMES: Final[Mapping[int, str]] = {
    step: f"Dataset{number}_TotalSpineSeg_step{step}" for step, number in DATASET_OF_STEP.items()
}
"""Folder names as nnU-Net's own tools expect them."""
MAX_RECORD_BYTES: Final = 16 << 20
"""A record of ten thousand labels is about 5 MB."""


def export_version(store: ModelStore, name: str, target: Path) -> Path:
    """Write a version as a zip that nnU-Net's ``nnUNetv2_install_pretrained_model_from_zip`` takes too.

    Args:
        store: Where the version is.
        name: "starter" or a version's name.
        target: The zip to write; replaced in one step.

    Returns:
        ``target``.

    Raises:
        WeightsError: There is no such version or it holds no model.
        StorageError: It cannot be written.
    """
    models, record = models_of(store, name), store.named(name).root / RECORD_FILE

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            _pack(archive, models)
            if record.is_file():
                archive.write(record, RECORD_FILE)

    write_file(target, write)
    return target


def _pack(archive: zipfile.ZipFile, models: Mapping[int, ModelFolder]) -> None:
    for step, model in models.items():
        folder = f"{DATASET_NAMES[step]}/{stock_name(model)}"
        for file in ("plans.json", "dataset.json", TRUST_FILE):
            if file != TRUST_FILE or (model.path / file).is_file():
                archive.write(model.path / file, f"{folder}/{file}")
        name = f"{folder}/{model.checkpoint.relative_to(model.path).as_posix()}"
        content = load_checkpoint(model.checkpoint)
        if content.get("trainer_name") in (None, STOCK_TRAINER):
            archive.write(model.checkpoint, name, zipfile.ZIP_STORED)
        else:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as stream:
                torch.save(stock_checkpoint(content, content["network_weights"]), stream)


def import_version(store: ModelStore, archive: Path, *, name: str = "") -> str:
    """Add the models of a zip as a version; what is served does not change.

    Args:
        store: Where to.
        archive: A zip of one or both steps, from ``export_version`` or nnU-Net's own export, or a folder that
            holds them, such as nnU-Net's results.
        name: The new version's name; empty for the exported one's, or one made of the zip's hash.

    Returns:
        The version's name.

    Raises:
        WeightsError: The zip is unsafe or damaged, or holds no model of the project, or the name cannot be its name.
        StorageError: The name is taken, or it cannot be written.
    """
    if archive.is_dir():
        return _import_folder(store, archive, name)
    record = _record_in(archive)
    digest = sha256_of(archive)
    known = str(record.get("name", ""))
    chosen = name or (known if NAME.fullmatch(known) and known != STARTER else f"zip-{digest[:8]}")
    if chosen.startswith(OFFICIAL_PREFIX):
        raise WeightsError(
            f"a name that does not begin with {OFFICIAL_PREFIX!r} is required, as 'weights install' alone gives such "
            f"names, got {chosen!r}; choose another with --name"
        )
    with store.publish(chosen) as staging:
        unpack_model(archive, staging)
        models = models_in(staging)
        if not models:
            raise WeightsError(f"a zip with a model of step 1 or 2 is required, got {archive.name!r} without one")
        _require_all_used(staging, models, archive.name)
        for model in models.values():
            model.load_network()
        digests = {str(step): model.digest for step, model in models.items()}
        if chosen in removed_versions(store):
            write_json(staging / RECORD_FILE, _restored(store, chosen, digests))
        else:
            imported = _imported(store, chosen, {"zip_sha256": digest, "record": record}, digests)
            write_record(staging, replace(imported, releases=_releases(archive.name, record, models)))
    return chosen


def _import_folder(store: ModelStore, folder: Path, name: str) -> str:
    """A folder goes the way of a zip, so that nothing but what a model needs comes in."""
    models = models_in(folder)
    if not models:
        raise WeightsError(f"a folder with a model of step 1 or 2 is required, got {str(folder)!r} without one")
    with tempfile.TemporaryDirectory(prefix="totalspineseg-import-") as place:
        archive = Path(place) / f"{folder.resolve().name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as content:
            _pack(content, models)
        digests = "-".join(model.digest[:8] for model in models.values())
        return import_version(store, archive, name=name or f"scratch-{digests}")


def _require_all_used(root: Path, models: Mapping[int, ModelFolder], name: str) -> None:
    """Check that no network was passed over: one with other regions, or whose plans are not in the zip."""
    used = {model.path for model in models.values()}
    lost = [path for path in root.rglob("fold_*/checkpoint_*.pth") if path.parent.parent not in used]
    if lost:
        raise WeightsError(
            "a plans.json, and a dataset.json with the regions of step 1 or 2, beside every checkpoint are required, "
            f"got {str(lost[0].relative_to(root))!r} without in {name!r}; export it again, or without that model"
        )


def _record_in(archive: Path) -> dict[str, Any]:
    """The record an exported version carries, as a claim: it gives the name, and a refusal stays one."""
    try:
        with zipfile.ZipFile(archive) as content:
            if RECORD_FILE not in content.namelist() or content.getinfo(RECORD_FILE).file_size > MAX_RECORD_BYTES:
                return {}
            record = json.loads(content.read(RECORD_FILE))
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(f"a readable zip is required, got {archive.name!r} ({error}); export it again") from error
    return record if isinstance(record, dict) else {}


def _restored(store: ModelStore, name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """The record of a removed version whose weights come back."""
    record = read_record(store, name) or {}
    if record.get("digests") != digests:
        raise WeightsError(
            f"a name that no version had is required, got {name!r}, whose weights were others and were removed; choose "
            "another with --name"
        )
    return {key: value for key, value in record.items() if key != "removed"}


def _imported(store: ModelStore, name: str, origin: dict[str, Any], digests: Mapping[str, str]) -> VersionRecord:
    """What is known of weights that come in; of those a version here has or had, what its own record says."""
    holders = {step: known for step, digest in digests.items() if (known := holder(store, int(step), digest))}
    records = [read_record(store, known) or {} for known in set(holders.values())]
    own = next((record for record in records if record.get("digests") == digests), None)
    return VersionRecord(
        name=name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        steps=tuple(map(int, digests)),
        parents={
            step: {"name": known, "version": version_name(known, digests[step])} for step, known in holders.items()
        },
        models={step: version_name(name, digest) for step, digest in digests.items()},
        settings={"imported": origin},
        gate=_refusal(origin["record"]) if own is None else own.get("gate"),
        digests=digests,
    )


def _releases(name: str, record: Mapping[str, Any], steps: Collection[int]) -> dict[str, str]:
    """Return the official release of each step, as the zip's name or its record tells."""
    official = OFFICIAL_NAME.match(name)
    named = {official[1]: official[2]} if official else {}
    claimed = record.get("releases")
    told = {**(claimed if isinstance(claimed, dict) else {}), **named}
    return {str(step): str(told[str(step)]) for step in steps if RELEASE_NAME.fullmatch(str(told.get(str(step))))}


def _refusal(record: dict[str, Any]) -> dict[str, Any] | None:
    """The report of the gate that refused a version where it came from; having passed there means nothing here."""
    gate = record.get("gate")
    return gate if isinstance(gate, dict) and gate and not gate.get("publish", False) else None
