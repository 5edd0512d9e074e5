"""Find the labeled images of a BIDS data set, and read their labels in codes."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from scipy.ndimage import distance_transform_edt

from totalspineseg_server.anatomy import BACKGROUND, OWN_NUMBERS, UNREVIEWED, UNREVIEWED_NAME
from totalspineseg_server.bids import DERIVATIVES, LABEL_SUFFIX, image_of_label
from totalspineseg_server.color_tables import BIDS_TABLE
from totalspineseg_server.errors import LabelError
from totalspineseg_server.exchange import exchange_messages
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.io.volumes import images_in, read_labels, read_numbered, stem
from totalspineseg_server.numbering.linter import missing_kinds
from totalspineseg_server.segments import code_of_name

UNLABELED_MM: Final = 25.0
"""Distance from a labeled structure within which discs, canal and the rest of a cut vertebra lie."""


@dataclass(frozen=True)
class Pair:
    """An image of a data set with its label.

    Attributes:
        name: Name of the image, without its ending.
        images: Its files; with more than one, the right one is not known.
        labels: Its labels.
        root: The data set.
    """

    name: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    root: Path

    def require_one(self) -> tuple[Path, Path]:
        """Return the image and its label.

        Raises:
            LabelError: There are several.
        """
        if len(self.images) != 1 or len(self.labels) != 1:
            raise LabelError(
                exchange_messages.PAIR_COUNT.format(images=len(self.images), name=self.name, labels=len(self.labels))
            )
        return self.images[0], self.labels[0]


def labeled_pairs(root: Path, suffix: str) -> Iterator[Pair]:
    """Yield every label below ``derivatives`` whose name is that of an image below ``sub-*`` plus a suffix.

    Args:
        root: The data set.
        suffix: Ending of the labels' names. With ``LABEL_SUFFIX``, labels with BIDS's own suffix are found as well.

    Yields:
        The pairs in alphabetical order; a label without an image is a pair without images. Nothing if no label has an
        image.
    """
    images, labels = defaultdict(list), defaultdict(list)
    for image in images_in(root, "sub-*/**/*"):
        images[stem(image)].append(image)
    for label in images_in(root / DERIVATIVES, "**/*"):
        name = stem(label)
        if name.endswith(suffix):
            labels[name.removesuffix(suffix)].append(label)
        elif suffix == LABEL_SUFFIX and (known := image_of_label(name)):
            labels[known].append(label)
    if images.keys() & labels.keys():
        for name, found in sorted(labels.items()):
            yield Pair(name, tuple(images[name]), tuple(found), root)


def read_pair_label(label: Path, root: Path, numbers: str = OWN_NUMBERS) -> Volume:
    """Read a label of a data set.

    Args:
        label: The file.
        root: The data set. The table ``dseg.tsv`` nearest to the label says what its numbers mean.
        numbers: The numbers if there is no such table: ``OWN_NUMBERS``, or the name of a table in ``NUMBER_TABLES``.

    Returns:
        uint8 codes, ``UNREVIEWED`` where nobody labeled.

    Raises:
        ImageError: The label cannot be read, or has other numbers.
        LabelError: The table is damaged, or has a name that this project does not know.
    """
    if numbers != OWN_NUMBERS:
        volume = read_numbered(label, numbers)
        return Volume(_mark_unlabeled(volume.data, volume.spacing), volume.affine)
    volume = read_labels(label)
    table = _table_for(label, root)
    if table is None:
        return volume
    names = _names(table)
    codes = np.zeros(256, dtype=np.uint8)
    for value in (int(v) for v in np.unique(volume.data) if v != BACKGROUND):
        name = names.get(value, UNREVIEWED_NAME if value == UNREVIEWED else "")
        code = UNREVIEWED if name.casefold() == UNREVIEWED_NAME else code_of_name(name)
        if code is None:
            raise LabelError(exchange_messages.UNNAMED_VALUE.format(table=table.name, value=value, name=name))
        codes[value] = code
    return Volume(codes[volume.data], volume.affine)


def _table_for(label: Path, root: Path) -> Path | None:
    """Return the table of numbers in the folder of a label or one above it, inside the data set."""
    for folder in label.parents:
        if (folder / BIDS_TABLE).is_file():
            return folder / BIDS_TABLE
        if folder == root:
            break
    return None


def _names(table: Path) -> Mapping[int, str]:
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            return {int(row["index"]): str(row["name"]) for row in csv.DictReader(stream, delimiter="\t")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(exchange_messages.UNREADABLE_TABLE.format(table=table.name, error=error)) from error


def _mark_unlabeled(labels: LabelArray, spacing: Sequence[float]) -> LabelArray:
    """Return a map in which unlabeled voxels around the spine are unreviewed, if a kind of structure is missing.

    Programs that draw no disc or no canal do not say that there is none.

    Args:
        labels: uint8 codes (X, Y, Z). Not modified.
        spacing: Voxel size, mm.

    Returns:
        uint8 map: ``UNREVIEWED`` for background within ``UNLABELED_MM`` of a structure; the argument if every kind is
        there.
    """
    if not missing_kinds(labels):
        return labels
    near = distance_transform_edt(labels == BACKGROUND, sampling=tuple(spacing)) <= UNLABELED_MM
    return np.where((labels == BACKGROUND) & near, UNREVIEWED, labels).astype(np.uint8)
