"""Find the scans in a folder, name them, and find the localizer of each."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.bids import ANATOMY_FOLDERS, subject_of
from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.cohort.record import read_record
from totalspineseg_server.errors import ImageError
from totalspineseg_server.io.volumes import (
    IMAGE_SUFFIXES,
    image_named,
    is_image_name,
    is_other_name,
    may_be_dicom,
    not_read_sentence,
    stem,
)
from totalspineseg_server.trust import proves_nothing

NO_SCANS: Final = frozenset({"derivatives", "func", "dwi", "fmap", "perf", "pet", "eeg", "meg", "beh", "micr", "mrs"})
"""BIDS folders without anatomical images, which are not reported as skipped."""
NAMED_FOLDERS: Final = 5
"""Largest number of folders that a sentence names."""


@dataclass(frozen=True)
class Case:
    """One scan to segment.

    Attributes:
        name: Name of its results; unique in a run.
        path: Image file, or folder of a DICOM series.
        folder: Its folder below INPUT ("sub-01/anat" in BIDS), "." for INPUT itself.
        localizer: Label map of another series of the patient, or None.
        no_localizer: Why there is none although one was requested; otherwise empty.
    """

    name: str
    path: Path
    folder: Path
    localizer: Path | None = None
    no_localizer: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain values with absolute paths, for other machines."""
        return {
            "name": self.name,
            "path": str(self.path.absolute()),
            "folder": str(self.folder),
            "localizer": None if self.localizer is None else str(self.localizer.absolute()),
            "no_localizer": self.no_localizer,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Case":
        """Return the case from the values of ``as_json``."""
        localizer = content["localizer"]
        return cls(
            content["name"],
            Path(content["path"]),
            Path(content["folder"]),
            None if localizer is None else Path(localizer),
            content["no_localizer"],
        )


def find_cases(source: Path, *, suffixes: Sequence[str] = (), exclude: Path | None = None) -> tuple[Case, ...]:
    """Return the scans in a path.

    Args:
        source: An image file, a DICOM folder, or a folder of images, of DICOM folders, or in BIDS layout.
        suffixes: Only images whose name (without the file ending) ends in one of these; empty for all.
        exclude: The output folder, which is skipped.

    Returns:
        The scans in alphabetical order.

    Raises:
        ImageError: The path does not exist or holds no image (with that suffix).
    """
    if not source.exists():
        raise ImageError(cohort_messages.NO_INPUT.format(path=str(source)))
    if source.is_file():
        return (Case(stem(source), source, Path()),)
    found = list(_images(source, source))
    for pattern in ANATOMY_FOLDERS:
        for folder in sorted(source.glob(pattern)):
            found += _images(folder, source)
    found += _dicom_folders(source, source, exclude, set())
    chosen = [case for case in found if not suffixes or case.name.endswith(tuple(suffixes))]
    if not chosen:
        wanted = f" whose name ends in {' or '.join(suffixes)}" if suffixes else ""
        nothing = cohort_messages.NO_IMAGES.format(wanted=wanted, path=str(source), formats=", ".join(IMAGE_SUFFIXES))
        raise ImageError(f"{nothing} {skipped_sentences(source, (), exclude=exclude)}".strip())
    return tuple(sorted(_unique(chosen), key=lambda case: case.name))


def _images(folder: Path, source: Path) -> Iterator[Case]:
    for path in _inside(folder):
        # A link to a missing file, as in a partly downloaded data set, counts as a scan that fails.
        if is_image_name(path) and not path.name.startswith(".") and not path.is_dir():
            yield Case(stem(path), path, folder.relative_to(source))


def _inside(folder: Path) -> list[Path]:
    """Return the contents of a folder, or nothing if it may not be read; ``_closed`` reports that."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _closed(folder: Path) -> bool:
    """Return whether a folder may not be read, so that its scans are unknown."""
    try:
        next(folder.iterdir(), None)
    except PermissionError:
        return True
    return False


def unvisited_folders(source: Path, cases: Iterable[Case], *, exclude: Path | None = None) -> tuple[str, ...]:
    """Return the folders that have images but are not searched, so that these images are not scans of the run.

    Args:
        source: INPUT.
        cases: The scans that were found in it.
        exclude: The output, which is skipped.

    Returns:
        Paths of the folders relative to INPUT; none if INPUT is a file.
    """
    known = {case.path.parent.resolve() for case in cases} | {source.resolve()}
    known |= {folder.resolve() for pattern in ANATOMY_FOLDERS for folder in source.glob(pattern)}
    return tuple(
        here.relative_to(source).as_posix()
        for here, files in _walk(source, exclude)
        if here.resolve() not in known and any(map(is_image_name, files))
    )


def skipped_sentences(source: Path, cases: Iterable[Case], *, exclude: Path | None = None) -> str:
    """Return sentences about the folders of ``unvisited_folders`` and about files that cannot be read; "" if there are
    none.

    Args:
        source: INPUT.
        cases: The scans that were found in it.
        exclude: The output, which is skipped.
    """
    sentences = []
    if folders := unvisited_folders(source, cases, exclude=exclude):
        more = f" and {len(folders) - NAMED_FOLDERS} more" if len(folders) > NAMED_FOLDERS else ""
        listed = ", ".join(map(repr, folders[:NAMED_FOLDERS]))
        sentences.append(cohort_messages.SKIPPED_FOLDERS.format(folders=listed, more=more))
    others = [
        f.relative_to(source).as_posix() for _, files in _walk(source, exclude) for f in files if is_other_name(f)
    ]
    return " ".join((*sentences, *filter(None, [not_read_sentence(others)])))


def _walk(source: Path, exclude: Path | None) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the folders below INPUT that may contain scans, each with its files."""
    for place, folders, files in os.walk(source):
        here = Path(place)
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f not in NO_SCANS and not _is_same(here / f, exclude)
        )
        yield here, [here / file for file in files if not file.startswith(".")]


def _is_same(folder: Path, other: Path | None) -> bool:
    return other is not None and folder.resolve() == other.resolve()


def _dicom_folders(folder: Path, source: Path, exclude: Path | None, visited: set[Path]) -> list[Case]:
    """Return a folder with DICOM files, and those below it, named by their path from INPUT.

    A folder that may not be read also counts as a scan: it fails, and so it is reported.
    """
    # A link may lead back to a folder above it.
    if _is_same(folder, exclude) or folder.resolve() in visited:
        return []
    visited.add(folder.resolve())
    files: list[Path] = []
    folders: list[Path] = []
    for path in _inside(folder):
        if not path.name.startswith("."):
            (folders if path.is_dir() else files).append(path)
    found: list[Case] = []
    if _closed(folder) or any(_is_dicom(path) for path in files):
        way = folder.relative_to(source)
        found.append(Case("_".join(way.parts) or folder.resolve().name, folder, way.parent))
    return found + [case for below in folders for case in _dicom_folders(below, source, exclude, visited)]


def _is_dicom(path: Path) -> bool:
    if not may_be_dicom(path) or not path.is_file():
        return False
    # Import here, because importing pydicom takes longer than finding the images of a folder without DICOM.
    from totalspineseg_server.io.dicom.headers import is_dicom

    return is_dicom(path)


def _unique(cases: Iterable[Case]) -> list[Case]:
    """Return the cases with unique names: scans with the same name get their folder added, or else their file
    ending."""
    named = list(cases)
    for rename in (_with_folder, _with_ending):
        counts = Counter(case.name.casefold() for case in named)
        named = [rename(case) if counts[case.name.casefold()] > 1 else case for case in named]
    counts = Counter(case.name for case in named)
    return [replace(c, name=f"{c.name}_{i}") if counts[c.name] > 1 else c for i, c in enumerate(named, start=1)]


def _with_folder(case: Case) -> Case:
    return replace(case, name="_".join((*case.folder.parts, case.name)))


def _with_ending(case: Case) -> Case:
    ending = case.path.name[len(stem(case.path)) :].replace(".", "_")
    return replace(case, name=f"{case.name}{ending}") if case.path.is_file() else case


def pair_localizers(
    cases: Sequence[Case],
    localizer: Path | None,
    *,
    suffixes: Sequence[str] = (),
    localizer_suffix: str | None = None,
    earlier: Sequence[Path] = (),
) -> tuple[Case, ...]:
    """Return the scans, each together with its localizer.

    With suffixes ("_T2w",) and localizer suffix "_T1w", the localizer of "sub-01_T2w" is "sub-01_T1w". It is searched
    for in the localizer folder, in the scan's own folder below that, and (without a localizer folder) among earlier
    results. An earlier result is not used as a localizer if its own names are not certain: a guess would become a
    certainty.

    Args:
        cases: From ``find_cases``.
        localizer: A label map for the scans of one subject, or a folder of label maps, or None.
        suffixes: Endings of the scans' names.
        localizer_suffix: Ending of the localizers' names; None if they have the names of the scans.
        earlier: Folders of label maps from an earlier run, which are used if there is no ``localizer``.

    Returns:
        The scans; ``no_localizer`` says why a requested localizer is missing.

    Raises:
        ImageError: ``localizer`` does not exist, or is one file for several subjects.
    """
    if localizer is None and localizer_suffix is None:
        return tuple(cases)
    if localizer is not None and not localizer.exists():
        raise ImageError(cohort_messages.NO_LOCALIZER.format(path=str(localizer)))
    if localizer is not None and localizer.is_file():
        if (subjects := len({subject_of(case.name) for case in cases})) > 1:
            raise ImageError(cohort_messages.ONE_LOCALIZER.format(name=localizer.name, subjects=subjects))
        return tuple(_paired(case, localizer, ours=False) for case in cases)
    paired = []
    for case in cases:
        # In a folder for all scans, a file of another patient may have the same name; only the scan's own name is
        # unique.
        name, own = (_localizer_name(n, suffixes, localizer_suffix) for n in (case.name, stem(case.path)))
        places = [(folder, name) for folder in (earlier if localizer is None else [localizer])]
        if localizer is None and name == case.name:
            # The scan's own result is not a localizer: the run will make it again.
            places = []
        if localizer is not None and case.folder.parts:
            places += [(localizer / case.folder, name), (localizer / case.folder, own)]
        match = next((p for place in places if (p := image_named(*place)) is not None), None)
        paired.append(_paired(case, match, ours=localizer is None))
    return tuple(paired)


def _paired(case: Case, localizer: Path | None, *, ours: bool) -> Case:
    if localizer is None:
        return replace(case, no_localizer=cohort_messages.NO_LOCALIZER_FOUND)
    record = read_record(localizer.parent.parent, stem(localizer))
    # A map without a record was made by somebody else, or, among our results, belongs to a scan that was not finished.
    useless = ours if record is None else proves_nothing(record)
    return (
        replace(case, no_localizer=cohort_messages.LOCALIZER_UNCERTAIN)
        if useless
        else replace(case, localizer=localizer)
    )


def _localizer_name(name: str, suffixes: Sequence[str], localizer_suffix: str | None) -> str:
    if localizer_suffix is None:
        return name
    return next((name.removesuffix(s) for s in suffixes if s and name.endswith(s)), name) + localizer_suffix
