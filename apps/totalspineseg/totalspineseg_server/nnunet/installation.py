"""Install the official weights from the web or from zips on disk, check them, and put them into use in one step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import read_json_if_there, sha256_of, storage_errors, write_json
from totalspineseg_server.io.zips import require_space
from totalspineseg_server.locks import locked
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.download import Progress, download
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.model_zips import unpack_model
from totalspineseg_server.registry.model_store import DATASET_OF_STEP, OFFICIAL_PREFIX, ModelStore, dataset_name
from totalspineseg_server.registry.releases import NEWEST, OFFICIAL_NAME, RELEASES, require_same, require_supported

RELEASES_URL: Final = "https://github.com/neuropoly/totalspineseg/releases/download"
STEP1_PATCH: Final = (256, 256, 48)
"""Tile (z, y, x) of step 1 in r20251124 and no other release, voxels."""
STEP1_PATCH_RELEASE: Final = "r20251124"
INSTALL_BYTES: Final = 43 * 10**8
"""Disk space for an installation: two zips of just under 1 GiB, and the two checkpoints of 1.13 GB in them."""
RECORD_FILE: Final = "weights.json"
"""File beside an installed version, with its source and the hashes of its zips."""


def install(
    model_dir: Path | str,
    *,
    release: str = NEWEST,
    zips: Sequence[Path | str] = (),
    sha256: Sequence[str] = (),
    progress: Progress | None = None,
    url: str = "",
) -> str:
    """Install both steps' weights and put them into use; running servers use them from their next request on.

    The hash of every official zip is recorded at its first installation, and another file of that name is refused from
    then on. Installing an installed version again puts it back into use.

    Args:
        model_dir: The app's model folder.
        release: The official release to download.
        zips: Zips on disk, which together have one model of each step; empty to download the release.
        sha256: Expected SHA-256 of the zips (hex) in the same order (for a download: step 1, step 2); empty for no
            check.
        progress: Called with (bytes done, bytes in total) of the file that is being downloaded.
        url: Address of the release's files; empty for the official one.

    Returns:
        Name of the version that is now in use, such as "official-r20251124".

    Raises:
        WeightsError: A zip is missing, damaged, unsafe, different from the recorded one, or without a model, or the
            zips are of different releases or of one that is too old.
        StorageError: The model folder cannot be written, or there is too little room.
    """
    store = ModelStore(model_dir)
    with locked(store.model_dir / "downloads"):
        fetched = () if zips else _fetch(store.model_dir / "downloads", release, url, progress)
        archives = [Path(archive) for archive in zips] or list(fetched)
        try:
            known = _known(store)
            hashes = _check_hashes(archives, sha256, known)
            found = _release(hashes, known)
            name = f"{OFFICIAL_PREFIX}{found}" if found else _zip_name(hashes)
            if name not in store.versions():
                source = (url or f"{RELEASES_URL}/{release}") if fetched else "zip"
                _publish(store, name, archives, hashes, source=source, release=found)
        finally:
            # Only an incomplete download (.part) is continued later, so remove one that was refused or installed.
            for archive in fetched:
                archive.unlink(missing_ok=True)
        _remember(store, hashes, found)
    store.activate(name)
    return name


def assets(release: str) -> tuple[str, ...]:
    """Return the file names of a release, step 1 first."""
    return tuple(f"{dataset_name(step)}_{release}.zip" for step in sorted(DATASET_OF_STEP))


def _fetch(folder: Path, release: str, url: str, progress: Progress | None) -> tuple[Path, ...]:
    if release not in RELEASES:
        raise WeightsError(f"expected the release {' or '.join(RELEASES)}, got {release!r}")
    targets = tuple(folder / asset for asset in assets(release))
    present = sum(path.stat().st_size for target in targets for path in folder.glob(f"{target.name}*"))
    require_space(INSTALL_BYTES - present, folder)
    for target in targets:
        if not target.is_file():
            download(f"{(url or f'{RELEASES_URL}/{release}').rstrip('/')}/{target.name}", target, progress=progress)
    return targets


def _check_hashes(archives: Sequence[Path], expected: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return zip name -> SHA-256, after comparing them with the expected and the recorded ones."""
    if expected and len(expected) != len(archives):
        raise WeightsError(f"expected one SHA-256 for each zip, got {len(expected)} for {len(archives)} zips")
    hashes: dict[str, str] = {}
    for index, archive in enumerate(archives):
        if not archive.is_file():
            raise WeightsError(nnunet_messages.NO_ZIP.format(path=str(archive)))
        found = sha256_of(archive)
        for wanted in (known.get(archive.name, found), expected[index].strip().lower() if expected else found):
            if found != wanted:
                raise WeightsError(nnunet_messages.OTHER_HASH.format(name=archive.name, found=found, wanted=wanted))
        if archive.name in hashes:
            raise WeightsError(f"expected zips of different names, got {archive.name!r} twice")
        hashes[archive.name] = found
    return hashes


def _release(hashes: Mapping[str, str], known: Mapping[str, str]) -> str:
    """Return the release of all zips, by their names or known hashes; empty if no zip is of a release.

    Raises:
        WeightsError: The zips are of different releases, of one that is too old, or only some are of a release.
    """
    known_by_hash = {digest: name for name, digest in known.items()}
    releases, names = {}, {}
    for name, digest in hashes.items():
        # A name proves nothing, but a file that was installed before is known by its content.
        if match := OFFICIAL_NAME.match(known_by_hash.get(digest, name)):
            releases[int(match[1])], names[int(match[1])] = match[2], repr(name)
    for release in releases.values():
        require_supported(release)
    require_same(releases, names)
    if releases and len(releases) < len(hashes):
        others = sorted(set(map(repr, hashes)) - set(names.values()))
        raise WeightsError(
            nnunet_messages.UNKNOWN_RELEASE.format(
                names=", ".join(names.values()), release=next(iter(releases.values())), others=", ".join(others)
            )
        )
    if releases and (missing := set(DATASET_OF_STEP) - set(releases)):
        raise WeightsError(nnunet_messages.ONE_ZIP.format(step=missing.pop(), release=next(iter(releases.values()))))
    return next(iter(releases.values()), "")


def _zip_name(hashes: Mapping[str, str]) -> str:
    """Return the name of a version made from zips that are not official."""
    return "zip-" + "-".join(digest[:8] for digest in sorted(hashes.values()))


def _require_patch(model: ModelFolder, release: str) -> None:
    """Check that the tile of step 1 fits the release, because the name of a file proves nothing.

    Raises:
        WeightsError: It is the tile of another release.
    """
    if model.patch == STEP1_PATCH and release != STEP1_PATCH_RELEASE:
        tile = " x ".join(map(str, model.patch))
        raise WeightsError(
            nnunet_messages.OTHER_TILE.format(release=release, tile=tile, tile_release=STEP1_PATCH_RELEASE)
        )


def _publish(
    store: ModelStore, name: str, archives: Sequence[Path], hashes: Mapping[str, str], *, source: str, release: str
) -> None:
    with store.publish(name) as staging:
        for index, archive in enumerate(archives):
            # Use a folder for each zip, because two zips may have the same names inside.
            folder = staging / f"zip{index}"
            with storage_errors(staging):
                folder.mkdir()
            unpack_model(archive, folder)
        models = [ModelFolder.open(staging, step=step, name=name) for step in (1, 2)]
        if release:
            _require_patch(models[0], release)
        for model in models:
            model.load_network()
        write_json(
            staging / RECORD_FILE,
            {
                "source": source,
                "release": release,
                "zips": dict(hashes),
                "models": {str(m.step): m.version for m in models},
                "digests": {str(m.step): m.digest for m in models},
            },
        )


def _known_file(store: ModelStore) -> Path:
    return store.model_dir / "known-zips.json"


def _known(store: ModelStore) -> dict[str, str]:
    """Return official zip name -> SHA-256 recorded at its first installation."""
    try:
        content = read_json_if_there(_known_file(store), nnunet_messages.RECORD_AGAIN)
    except StorageError as error:
        raise WeightsError(str(error)) from error
    return {str(name): str(digest) for name, digest in content.items()}


def _remember(store: ModelStore, hashes: Mapping[str, str], release: str) -> None:
    names = {name: match[2] for name in hashes if (match := OFFICIAL_NAME.match(name))}
    official = {name: hashes[name] for name, of in names.items() if of == release}
    known = _known(store)
    if official.keys() - known.keys():
        write_json(_known_file(store), known | official)
