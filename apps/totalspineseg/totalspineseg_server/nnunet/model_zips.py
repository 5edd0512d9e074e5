"""Export versions to zips of nnU-Net's format, and import them from such zips, which may be hostile."""

import json
import re
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch

from totalspineseg_server.errors import ArchiveError, WeightsError
from totalspineseg_server.files import sha256_of, storage_errors, write_file, write_json
from totalspineseg_server.io.zips import MAX_RATIO, open_archive
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.checkpoint import load_checkpoint
from totalspineseg_server.nnunet.discovery import TRUST_FILE, version_name
from totalspineseg_server.nnunet.model_folder import (
    STOCK_TRAINER,
    ModelFolder,
    models_in,
    models_of,
    stock_checkpoint,
    stock_name,
)
from totalspineseg_server.registry.model_store import DATASET_OF_STEP, NAME, OFFICIAL_PREFIX, STARTER, ModelStore
from totalspineseg_server.registry.records import (
    RECORD_FILE,
    VersionRecord,
    holder,
    read_record,
    removed_versions,
    write_record,
)
from totalspineseg_server.registry.releases import OFFICIAL_NAME, RELEASE_NAME

WANTED: Final = re.compile(r"plans\.json|dataset\.json|trust\.json|fold_(?:\d+|all)/checkpoint_(?:final|best)\.pth")
"""Files of a model folder; all others are not extracted."""
MAX_TOTAL_BYTES: Final = 8 << 30
"""Largest size of all extracted files together; two official checkpoints with their optimizer's state are well
below."""
DATASET_NAMES: Final[Mapping[int, str]] = {
    step: f"Dataset{number}_TotalSpineSeg_step{step}" for step, number in DATASET_OF_STEP.items()
}
"""Folder names that nnU-Net's own tools expect."""
MAX_RECORD_BYTES: Final = 16 << 20
"""Largest size of a record; a record with ten thousand labels has about 5 MB."""


def unpack_model(archive: Path, target: Path) -> None:
    """Extract the model files of a zip.

    Args:
        archive: The zip.
        target: Existing folder to extract into.

    Raises:
        WeightsError: The zip is not readable, has no model, or has a link, a zip bomb, or an entry outside its folder.
        StorageError: The files cannot be written.
    """
    try:
        with (
            archive.open("rb") as file,
            storage_errors(target),
            open_archive(file, target, is_wanted=_is_wanted, max_bytes=MAX_TOTAL_BYTES, max_ratio=MAX_RATIO) as content,
        ):
            for entry in content.entries:
                path = target.joinpath(*PurePosixPath(entry.filename).parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                content.extract(entry, path)
    except (ArchiveError, FileNotFoundError) as error:
        raise WeightsError(nnunet_messages.NOTHING_IMPORTED.format(name=archive.name, error=error)) from error


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" not in parts and any(WANTED.fullmatch("/".join(parts[-n:])) for n in (1, 2))


def export_version(store: ModelStore, name: str, target: Path) -> Path:
    """Write a version as a zip that nnU-Net's ``nnUNetv2_install_pretrained_model_from_zip`` can read as well.

    Args:
        store: The model versions.
        name: "starter" or a version's name.
        target: The zip to write; an existing one is replaced in one step.

    Returns:
        ``target``.

    Raises:
        WeightsError: There is no such version or it has no model.
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
    """Add the models of a zip as a version; the weights in use do not change.

    Args:
        store: The model versions.
        archive: A zip with one or both steps, from ``export_version`` or nnU-Net's own export, or a folder with them,
            such as nnU-Net's results.
        name: The new version's name; empty for the exported version's name, or a name made from the zip's hash.

    Returns:
        The version's name.

    Raises:
        WeightsError: The zip is unsafe, damaged or without a model of TotalSpineSeg, or the name is not allowed.
        StorageError: The name is in use, or the version cannot be written.
    """
    if archive.is_dir():
        return _import_folder(store, archive, name)
    record = _record_in(archive)
    digest = sha256_of(archive)
    known = str(record.get("name", ""))
    chosen = name or (known if NAME.fullmatch(known) and known != STARTER else f"zip-{digest[:8]}")
    if chosen.startswith(OFFICIAL_PREFIX):
        raise WeightsError(nnunet_messages.RESERVED_NAME.format(name=chosen, prefix=OFFICIAL_PREFIX))
    with store.publish(chosen) as staging:
        unpack_model(archive, staging)
        models = models_in(staging)
        if not models:
            raise WeightsError(nnunet_messages.NO_MODEL_OF_STEPS.format(name=archive.name))
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
    """Import a folder by way of a zip, so that only the files of a model are copied."""
    models = models_in(folder)
    if not models:
        raise WeightsError(nnunet_messages.NO_MODEL_IN_FOLDER.format(name=str(folder)))
    with tempfile.TemporaryDirectory(prefix="totalspineseg-import-") as place:
        archive = Path(place) / f"{folder.resolve().name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as content:
            _pack(content, models)
        digests = "-".join(model.digest[:8] for model in models.values())
        return import_version(store, archive, name=name or f"scratch-{digests}")


def _require_all_used(root: Path, models: Mapping[int, ModelFolder], name: str) -> None:
    """Check that every network was recognized; one with other regions or without plans would be ignored."""
    used = {model.path for model in models.values()}
    lost = [path for path in root.rglob("fold_*/checkpoint_*.pth") if path.parent.parent not in used]
    if lost:
        raise WeightsError(
            nnunet_messages.INCOMPLETE_MODEL.format(checkpoint=str(lost[0].relative_to(root)), name=name)
        )


def _record_in(archive: Path) -> dict[str, Any]:
    """Return the record in an exported version. Only the name and a refusal by the gate are trusted."""
    try:
        with zipfile.ZipFile(archive) as content:
            if RECORD_FILE not in content.namelist() or content.getinfo(RECORD_FILE).file_size > MAX_RECORD_BYTES:
                return {}
            record = json.loads(content.read(RECORD_FILE))
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(nnunet_messages.NO_READABLE_ZIP.format(name=archive.name, error=error)) from error
    return record if isinstance(record, dict) else {}


def _restored(store: ModelStore, name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the record of a removed version if it is imported again."""
    record = read_record(store, name) or {}
    if record.get("digests") != digests:
        raise WeightsError(nnunet_messages.NAME_OF_REMOVED.format(name=name))
    return {key: value for key, value in record.items() if key != "removed"}


def _imported(store: ModelStore, name: str, origin: dict[str, Any], digests: Mapping[str, str]) -> VersionRecord:
    """Return the record of imported weights, with the history here if a version has or had the same weights."""
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
    """Return the official release of each step, according to the zip's name or its record."""
    official = OFFICIAL_NAME.match(name)
    named = {official[1]: official[2]} if official else {}
    claimed = record.get("releases")
    releases = {**(claimed if isinstance(claimed, dict) else {}), **named}
    return {
        str(step): str(releases[str(step)]) for step in steps if RELEASE_NAME.fullmatch(str(releases.get(str(step))))
    }


def _refusal(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the gate's report if it refused the version elsewhere; passing elsewhere means nothing here."""
    gate = record.get("gate")
    return gate if isinstance(gate, dict) and gate and not gate.get("publish", False) else None
