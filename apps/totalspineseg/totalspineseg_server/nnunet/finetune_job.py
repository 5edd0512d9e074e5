"""Keep the settings of a fine-tuning in a file beside its cases, because nnU-Net's trainers accept no other
settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from totalspineseg_server.files import content_key, read_json, write_json
from totalspineseg_server.nnunet.cases import Origin
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings, Strength
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.preprocessed import PLANS, StoredCase, dataset_folder, training_dataset, training_plans

JOB_FILE: Final = "finetuning.json"
LATEST: Final = "checkpoint_latest.pth"
STATES: Final = ("checkpoint_final.pth", LATEST)
"""Checkpoints of nnU-Net's trainer, the newest first."""
FINETUNING: Final = "finetuning"
"""Entry of a checkpoint's arguments with the key of the training, the patches that fit into memory, and the iterations
done."""
KEY, PASS_SIZE, ITERATION = "key", "pass_size", "iteration"


class Stopped(Exception):
    """The training was asked to stop; the next start continues from the last stored state."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training.

    Attributes:
        step: 1 or 2.
        iteration: Number of finished iterations.
        iterations: Iterations of the whole run.
        seconds: Time that this process has spent.
        best: Best mean pseudo Dice so far; nan before the first report.
        waited: Share of these seconds in which the training waited for patches.
    """

    step: int
    iteration: int
    iterations: int
    seconds: float
    best: float
    waited: float = 0.0


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
