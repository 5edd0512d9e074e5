"""Keep a fine-tuning on disk: its cases in nnU-Net's preprocessed format, and its settings in a file beside them.

A case is one image, and a stack of maps for its targets. nnU-Net's trainers accept no other settings than files.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from totalspineseg_server.files import content_key, read_json, storage_errors, write_json
from totalspineseg_server.nnunet.cases import Origin, TrainingCase
from totalspineseg_server.nnunet.discovery import read_model_json
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings, Strength
from totalspineseg_server.nnunet.model_folder import CONFIGURATION, ModelFolder
from totalspineseg_server.nnunet.odd_channel import marked_discs, training_variant
from totalspineseg_server.nnunet.targets import IGNORE_CLASS, REGIONS, Step, mark, step_target
from totalspineseg_server.registry.model_store import dataset_name

PREPROCESSED_DIR: Final = "preprocessed"
"""Name of the folder with the cases of a step's training; it is removed when the training ends."""
PLANS: Final = "nnUNetPlans"
IDENTIFIER: Final = f"{PLANS}_{CONFIGURATION}"
"""Name used in nnU-Net's folders. Names in the parent's plans come from outside and are not used as paths."""
CLASSES, CODES, FOUND = 0, 1, 2
"""Channels of a segmentation: the step's classes, on which nnU-Net itself trains; output codes, from which both
variants of step 2 are made; and in step 2 the discs that step 1 found. On a coarse grid the shares of the regions
follow, 255 for a whole voxel."""
COMPRESSION: Final = {
    "codec": blosc2.Codec.LZ4HC,
    "clevel": 5,
    "filters": [blosc2.Filter.SHUFFLE],
    "nthreads": 1,
}
"""nnU-Net's settings, but with one thread: nnU-Net's pool of four threads does not exist in a forked process, which
would wait for it forever."""
SHARES: Final[Mapping[int, int]] = {1: CODES + 1, 2: FOUND + 1}
"""Step -> channel of the first share."""
JOB_FILE: Final = "finetuning.json"
LATEST: Final = "checkpoint_latest.pth"
STATES: Final = ("checkpoint_final.pth", LATEST)
"""Checkpoints of nnU-Net's trainer, the newest first."""
FINETUNING: Final = "finetuning"
"""Entry of a checkpoint's arguments with the key of the training, the patches that fit into memory, and the iterations
done."""
KEY, PASS_SIZE, ITERATION = "key", "pass_size", "iteration"


@dataclass(frozen=True)
class StoredCase:
    """A case on disk.

    Attributes:
        name: Case id.
        origin: Origin of the case.
        file: Name of its files, without their ending.
        unreviewed: See ``LabeledScan``.
        untouched: See ``LabeledScan.left``.
    """

    name: str
    origin: Origin
    file: str
    unreviewed: frozenset[int] = frozenset()
    untouched: frozenset[int] = frozenset()


def dataset_folder(model: ModelFolder, work: Path) -> Path:
    """Return nnU-Net's folder of the preprocessed dataset of a step's training.

    Args:
        model: The parent.
        work: Folder of the training.
    """
    return work / PREPROCESSED_DIR / dataset_name(model.step)


def store_cases(cases: Iterable[TrainingCase], model: ModelFolder, work: Path) -> tuple[StoredCase, ...]:
    """Write cases with the parent's plans beside them, in place of those of an earlier call.

    Args:
        cases: Cases prepared for ``model``; only one is in memory at a time.
        model: The parent.
        work: Folder of the training.

    Returns:
        The cases in order; empty if there is none.

    Raises:
        StorageError: They cannot be written.
    """
    base = dataset_folder(model, work)
    shutil.rmtree(work / PREPROCESSED_DIR, ignore_errors=True)
    with storage_errors(work):
        (base / IDENTIFIER).mkdir(parents=True)
    write_json(base / "dataset_fingerprint.json", {})
    stored = []
    for number, case in enumerate(cases):
        entry = StoredCase(case.name, case.origin, f"case-{number:05d}", case.unreviewed, case.untouched)
        _write(case, model, base / IDENTIFIER / entry.file)
        stored.append(entry)
    return tuple(stored)


def training_plans(model: ModelFolder, batch_size: int) -> dict[str, Any]:
    """Return the parent's plans for the fine-tuning: only the configuration it uses, under this app's names.

    Args:
        model: The parent.
        batch_size: Patches in a batch, instead of the number in the plans.
    """
    configuration = {**model.configuration, "data_identifier": IDENTIFIER, "batch_size": batch_size}
    names = {"dataset_name": dataset_name(model.step), "plans_name": PLANS}
    return {**read_model_json(model.path / "plans.json"), **names, "configurations": {CONFIGURATION: configuration}}


def training_dataset(model: ModelFolder) -> dict[str, Any]:
    """Return the parent's dataset.json with the ignore label, for voxels without loss."""
    dataset = read_model_json(model.path / "dataset.json")
    return {**dataset, "labels": {**dataset["labels"], "ignore": IGNORE_CLASS[model.step]}}


def open_case(folder: Path, file: str) -> tuple[Any, Any]:
    """Open a case's image (C, A, B, C) and maps; slicing them reads from disk.

    Args:
        folder: Folder of the cases.
        file: See ``StoredCase``.
    """
    paths = (folder / f"{file}.b2nd", folder / f"{file}_seg.b2nd")
    image, maps = (blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1}) for path in paths)
    return image, maps


def _write(case: TrainingCase, model: ModelFolder, target: Path) -> None:
    step = cast(Step, model.step)
    image, maps = [case.image], [step_target(case.codes, step, unreviewed=case.unreviewed), case.codes]
    if step == 2:
        swapped = training_variant(case.codes, swapped=False)
        image.append(mark(case.codes, marked_discs(case.codes, swapped=swapped)))
        maps[CLASSES] = step_target(case.codes, step, swapped=swapped, unreviewed=case.unreviewed)
        maps.append(np.zeros_like(case.codes) if case.found is None else case.found)
    maps += [] if case.shares is None else list(case.shares)
    data, seg = np.stack(image), np.stack(maps).astype(np.int16)
    # nnU-Net's own loader needs this; the loader of this app finds structures by their codes.
    looked_at = [-1, *range(IGNORE_CLASS[step])]
    regions = [*map(list, REGIONS[step].values()), looked_at]
    places = DefaultPreprocessor._sample_foreground_locations(seg[:CODES], regions)
    properties = {"spacing": list(model.spacing_mm), "class_locations": places}
    with storage_errors(target.parent, RuntimeError):
        for array, file in ((data, f"{target}.b2nd"), (seg, f"{target}_seg.b2nd")):
            blocks, chunks = comp_blosc2_params(array.shape, model.patch, array.itemsize)
            blosc2.asarray(array, urlpath=file, chunks=chunks, blocks=blocks, cparams=COMPRESSION)
        write_pickle(properties, f"{target}.pkl")


class Stopped(Exception):
    """The training was asked to stop; the next start continues from the last stored state."""


@dataclass(frozen=True)
class Job:
    """The parent, cases and settings of a fine-tuning.

    Attributes:
        parent: The model to start from.
        cases: The cases on disk, see ``store_cases``.
        work: Folder of logs and states.
        settings: Settings of the fine-tuning.
    """

    parent: ModelFolder
    cases: tuple[StoredCase, ...]
    work: Path
    settings: FinetuneSettings

    @property
    def folder(self) -> Path:
        """nnU-Net's folder of the preprocessed dataset."""
        return dataset_folder(self.parent, self.work)

    @property
    def key(self) -> str:
        """A digest that identifies this training on any machine; only states with the same key are continued."""
        return content_key(
            {
                "parent": self.parent.digest,
                "settings": asdict(self.settings) | {"device": ""},
                "cases": [(case.name, case.origin.value) for case in self.cases],
            }
        )

    def write(self) -> None:
        """Write the files that nnU-Net's trainer reads, apart from the cases.

        Raises:
            StorageError: It cannot be written.
        """
        parent = {"path": str(self.parent.path.resolve()), "step": self.parent.step, "name": self.parent.name}
        cases = [[c.name, c.origin.value, c.file, sorted(c.unreviewed), sorted(c.untouched)] for c in self.cases]
        write_json(self.folder / f"{PLANS}.json", training_plans(self.parent, self.settings.batch_size))
        write_json(self.folder / "dataset.json", training_dataset(self.parent))
        content = {"parent": parent, "cases": cases, "work": str(self.work.resolve())}
        write_json(self.folder / JOB_FILE, content | {"settings": asdict(self.settings)})

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Read the files of ``write``.

        Args:
            folder: nnU-Net's folder of the preprocessed dataset.

        Raises:
            WeightsError: The parent is gone.
            StorageError: The file cannot be read.
        """
        content = read_json(folder / JOB_FILE)
        parent, settings = content["parent"], content["settings"]
        return cls(
            ModelFolder.open(parent["path"], step=parent["step"], name=parent["name"]),
            tuple(_stored(*entry) for entry in content["cases"]),
            Path(content["work"]),
            FinetuneSettings(**settings | {"strength": Strength(**settings["strength"])}),
        )


def _stored(name: str, origin: str, file: str, unreviewed: Sequence[int], untouched: Sequence[int]) -> StoredCase:
    return StoredCase(name, Origin(origin), file, frozenset(unreviewed), frozenset(untouched))
