"""Installing the official weights: from the web or from zips on disk, checked, and put into use in one step."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lib.errors import WeightsError
from lib.nnunet.download import Progress, download
from lib.nnunet.hashing import sha256_of
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.unpack import unpack_model
from lib.registry.files import locked, storage_errors, write_json
from lib.registry.store import OFFICIAL_PREFIX, ModelStore

RELEASE: Final = "r20251124"
RELEASE_URL: Final = f"https://github.com/neuropoly/totalspineseg/releases/download/{RELEASE}"
ASSETS: Final = (
    f"Dataset101_TotalSpineSeg_step1_{RELEASE}.zip",
    f"Dataset102_TotalSpineSeg_step2_{RELEASE}.zip",
)
OFFICIAL_ASSET: Final = re.compile(r"Dataset10[12]_TotalSpineSeg_step[12]_(r\d{8})\.zip")
RECORD_FILE: Final = "weights.json"
"""Beside an installed version: where it came from and the hashes of its zips."""


def install(
    model_dir: Path | str,
    *,
    zips: Sequence[Path | str] = (),
    sha256: Sequence[str] = (),
    progress: Progress | None = None,
    url: str = RELEASE_URL,
) -> str:
    """Install both steps' weights and put them into use; running servers take them at their next request.

    The hash of every official zip is recorded at its first installation, and another file of that name is
    refused from then on. Installing what is installed puts it back into use.

    Args:
        model_dir: The app's model folder.
        zips: Zips on disk, together holding a model of each step; empty downloads the official release.
        sha256: Expected SHA-256 of the zips (hex), in the same order (downloads: step 1, step 2); empty: not compared.
        progress: Called with (bytes done, bytes in total) of the file that is being downloaded.
        url: Address of the release's files.

    Returns:
        Name of the version in use now, such as "official-r20251124".

    Raises:
        WeightsError: A zip is missing, damaged, unsafe or another than recorded, or holds no model of a step.
        StorageError: The model folder cannot be written.
    """
    store = ModelStore(model_dir)
    with locked(store.model_dir / "downloads"):
        fetched = () if zips else _fetch(store.model_dir / "downloads", url, progress)
        archives = [Path(archive) for archive in zips] or list(fetched)
        try:
            hashes = _check_hashes(archives, sha256, _known(store))
            name = _version_name(hashes)
            if name not in store.versions():
                _publish(store, name, archives, hashes, source=url if fetched else "zip")
        finally:
            # A refused or installed download is not continued; only an incomplete one (.part) is.
            for archive in fetched:
                archive.unlink(missing_ok=True)
        _remember(store, hashes)
    store.activate(name)
    return name


def _fetch(folder: Path, url: str, progress: Progress | None) -> tuple[Path, ...]:
    targets = tuple(folder / asset for asset in ASSETS)
    for target in targets:
        if not target.is_file():
            download(f"{url.rstrip('/')}/{target.name}", target, progress=progress)
    return targets


def _check_hashes(archives: Sequence[Path], expected: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Zip name -> SHA-256, after comparing with what was asked for and what was recorded."""
    if expected and len(expected) != len(archives):
        raise WeightsError(f"one SHA-256 per zip is required, got {len(expected)} for {len(archives)} zips")
    hashes: dict[str, str] = {}
    for index, archive in enumerate(archives):
        if not archive.is_file():
            raise WeightsError(f"a zip file is required, got {str(archive)!r} which does not exist")
        found = sha256_of(archive)
        for wanted in (known.get(archive.name, found), expected[index].strip().lower() if expected else found):
            if found != wanted:
                raise WeightsError(
                    f"{archive.name!r} must have SHA-256 {wanted}, got {found}; do not use it, and fetch it again"
                )
        if archive.name in hashes:
            raise WeightsError(f"zips of different names are required, got {archive.name!r} twice")
        hashes[archive.name] = found
    return hashes


def _version_name(hashes: Mapping[str, str]) -> str:
    """ "official-<release>" for the official zips, "zip-<hash>" for any others."""
    releases = {match[1] if (match := OFFICIAL_ASSET.fullmatch(name)) else None for name in hashes}
    if len(releases) == 1 and (release := releases.pop()):
        return f"{OFFICIAL_PREFIX}{release}"
    return "zip-" + "-".join(digest[:8] for digest in sorted(hashes.values()))


def _publish(store: ModelStore, name: str, archives: Sequence[Path], hashes: Mapping[str, str], *, source: str) -> None:
    with store.publish(name) as staging:
        for index, archive in enumerate(archives):
            # A folder each: two zips may use the same names inside.
            folder = staging / f"zip{index}"
            with storage_errors(staging):
                folder.mkdir()
            unpack_model(archive, folder)
        models = [ModelFolder.open(staging, step=step, name=name) for step in (1, 2)]
        for model in models:
            model.load_network()
        write_json(
            staging / RECORD_FILE,
            {
                "source": source,
                "zips": dict(hashes),
                "models": {str(m.step): m.version for m in models},
                "digests": {str(m.step): m.digest for m in models},
            },
        )


def _known_file(store: ModelStore) -> Path:
    return store.model_dir / "known-zips.json"


def _known(store: ModelStore) -> dict[str, str]:
    """Official zip name -> SHA-256 recorded at its first installation."""
    path = _known_file(store)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"a readable {str(path)!r} is required, got {error}; delete it to record the hashes anew"
        ) from error
    return {str(name): str(digest) for name, digest in dict(content).items()}


def _remember(store: ModelStore, hashes: Mapping[str, str]) -> None:
    official = {name: digest for name, digest in hashes.items() if OFFICIAL_ASSET.fullmatch(name)}
    known = _known(store)
    if official.keys() - known.keys():
        write_json(_known_file(store), known | official)
