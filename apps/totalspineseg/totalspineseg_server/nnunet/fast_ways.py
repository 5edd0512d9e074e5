"""Remember which faster ways of computing were compared with the exact one, for these weights on this machine.

``fast.json`` beside a network's plans has the comparisons by ``totalspineseg weights quantize``; if that folder cannot
be written, as in a container, they are in the user's cache. A way is not used if it was not compared, or if the
comparison was for other weights or another release of OpenVINO. The time of a tile depends only on the machine and the
plans, and is stored in the user's cache.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from totalspineseg_server import places
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import content_key, read_json_or, sha256_of, storage_errors, write_json
from totalspineseg_server.nnunet.discovery import ModelFiles
from totalspineseg_server.version import installed_versions

FAST_FILE: Final = "fast.json"
Way = Literal["box", "openvino-int8", "torch-half"]
BOX: Final = "box"
INT8: Final = "openvino-int8"
HALF: Final = "torch-half"
"""PyTorch in half precision, several tiles at once, on a GPU."""
_COMPARED, _DIGEST = "compared", "weights"
_SECONDS_FILE: Final = "seconds.json"
_CACHED: Final = "compared"


@dataclass(frozen=True)
class Comparison:
    """How well the results of a faster way agree with those of the exact one.

    Attributes:
        way: The way that was compared.
        scans: Number of scans.
        names_differ: Number of scans with a level that has another name or is missing.
        voxels_differ: Share of the labeled voxels of all scans whose label differs.
        dice: Group of structures -> mean Dice over the scans.
        seconds: Mean seconds of a scan.
        seconds_exact: The same with the exact way.
        passed: Whether nothing differs by more than is allowed.
        release: Release of the software that computed it, see ``release_of``.
    """

    way: str
    scans: int
    names_differ: int
    voxels_differ: float
    dice: Mapping[str, float]
    seconds: float
    seconds_exact: float
    passed: bool
    release: str


def openvino_release() -> str:
    """Return the installed release of OpenVINO; "" if there is none."""
    return installed_versions(("openvino",)).get("openvino", "")


def release_of(way: str) -> str:
    """Return the installed release of the software on which a way depends; "" for the box, which depends on none."""
    if way == BOX:
        return ""
    return installed_versions(("torch",)).get("torch", "") if way == HALF else openvino_release()


def comparison(model: ModelFiles, way: Way) -> Comparison | None:
    """Return the comparison of a way for these weights and the installed release; None if there is none.

    Args:
        model: The weights.
        way: The way.
    """
    found = _read(model).get(_COMPARED, {}).get(way)
    try:
        known = None if found is None else Comparison(**found)
    except TypeError:
        return None
    return known if known is not None and known.release == release_of(way) else None


def is_allowed(model: ModelFiles, way: Way) -> bool:
    """Return whether a way was compared for these weights and passed; see ``comparison`` for the arguments."""
    found = comparison(model, way)
    return found is not None and found.passed


def keep_comparison(model: ModelFiles, found: Comparison) -> None:
    """Store a comparison beside the weights, or in the user's cache if that folder cannot be written.

    Raises:
        StorageError: Neither can be written.
    """
    record = _read(model)
    compared = {**record.get(_COMPARED, {}), found.way: asdict(found)}
    content = {**record, _DIGEST: model.digest, _COMPARED: compared}
    beside, in_cache = record_files(model.path)
    try:
        write_json(beside, content)
    except StorageError:
        with storage_errors(in_cache):
            in_cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(in_cache, content)
    else:
        with storage_errors(in_cache):
            in_cache.unlink(missing_ok=True)


def record_files(folder: Path) -> tuple[Path, Path]:
    """Return where the comparisons of a network may be: beside its plans, and in the user's cache.

    Args:
        folder: Folder of the network's plans.
    """
    key = content_key({"folder": str(folder.resolve())})
    return folder / FAST_FILE, places.cache_dir() / _CACHED / f"{key}.json"


def seconds_of_a_tile(folder: Path) -> Mapping[str, float]:
    """Return runtime -> seconds of a tile on this machine; empty if they were not measured.

    Args:
        folder: Folder with plans.json.
    """
    seconds: Mapping[str, float] = read_json_or(places.cache_dir() / _SECONDS_FILE, {}).get(_machine(folder), {})
    return seconds


def keep_seconds(folder: Path, seconds: Mapping[str, float]) -> None:
    """Store the seconds of a tile by runtime, on this machine, for all weights with these plans.

    Raises:
        StorageError: They cannot be written.
    """
    file = places.cache_dir() / _SECONDS_FILE
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**read_json_or(file, {}), _machine(folder): dict(seconds)})


def _read(model: ModelFiles) -> dict[str, Any]:
    """Return the record; empty if there is none, or it is of other weights or damaged: nothing is allowed then."""
    # What is in the cache is newer, see ``keep_comparison``.
    records = (read_json_or(file, {}) for file in reversed(record_files(model.path)))
    # Without a record, the weights need not be read.
    return next((record for record in records if record and record.get(_DIGEST) == model.digest), {})


def _machine(folder: Path) -> str:
    """Return the facts that decide which runtime is faster: processor, cores, release, plans."""
    plans = sha256_of(folder / "plans.json")[:16]
    return f"{processor()}, {os.cpu_count()} threads, OpenVINO {openvino_release()}, plans {plans}"


def processor() -> str:
    """Return the name of the processor, or its architecture if the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
