"""Store models, and record which one is in use.

``<model dir>/starter`` ships with the project; ``<model dir>/versions/<name>`` holds installed and trained ones;
``<model dir>/active.json`` names the version in use for each nnU-Net dataset (101 = step 1, 102 = step 2). A version
never changes once it exists, so a rollback only has to name an older one.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from totalspineseg_server import places
from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import read_json, staged_folder, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry import registry_messages
from totalspineseg_server.registry.activations import before_last, made, note

STARTER: Final = "starter"
OFFICIAL: Final = "official"
OFFICIAL_PREFIX: Final = f"{OFFICIAL}-"
"""Prefix reserved for releases that ``weights install`` checks and names."""
DATASET_OF_STEP: Final[Mapping[int, str]] = {1: "101", 2: "102"}
"""Step -> nnU-Net's dataset id, which is the key in the pointer file."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Pattern of a version's name, which is also the name of its folder: no separators, no leading dot."""


def dataset_name(step: int) -> str:
    """Return nnU-Net's folder name of a step's dataset."""
    return f"Dataset{DATASET_OF_STEP[step]}_TotalSpineSeg_step{step}"


@dataclass(frozen=True)
class Choice:
    """The weights in use for a step.

    Attributes:
        name: "starter", a version's name, or the name of a folder that somebody chose.
        root: Folder that contains the model folder of the step, possibly in subfolders.
    """

    name: str
    root: Path


class ModelStore:
    """The models of one installation.

    Args:
        model_dir: The app's model folder.
        weights: Weights to use: "" follows the pointer file (the starter weights while there is none),
            "starter", "official" (the newest installed release), the name of a version, or a folder.
    """

    def __init__(self, model_dir: Path | str, *, weights: str = "") -> None:
        self.model_dir = Path(model_dir)
        self.weights = weights.strip()

    @property
    def starter_dir(self) -> Path:
        """The folder of the starter weights; it may not exist. An installed wheel has its own inside the package."""
        own = self.model_dir / STARTER
        if places.INSTALLED and not own.is_dir() and self.model_dir.resolve() == places.model_dir().resolve():
            return places.SHIPPED / "model" / STARTER
        return own

    @property
    def versions_dir(self) -> Path:
        """The folder of installed and trained versions; it may not exist yet."""
        return self.model_dir / "versions"

    @property
    def pointer(self) -> Path:
        """The pointer file; it is missing until something was activated."""
        return self.model_dir / "active.json"

    def versions(self) -> tuple[str, ...]:
        """Return the names of all complete versions, sorted, without the starter weights."""
        if not self.versions_dir.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.versions_dir.iterdir() if p.is_dir() and NAME.fullmatch(p.name)))

    def active(self) -> Mapping[int, str]:
        """Return step -> name from the pointer file; empty if there is none.

        Raises:
            WeightsError: The pointer file is damaged.
        """
        if not self.pointer.exists():
            return {}
        try:
            content = read_json(self.pointer, registry_messages.REPAIR)
        except StorageError as error:
            raise WeightsError(str(error)) from error
        names = {step: content[key] for step, key in DATASET_OF_STEP.items() if key in content}
        if strangers := [n for n in names.values() if not isinstance(n, str) or not NAME.fullmatch(n)]:
            raise WeightsError(
                registry_messages.DAMAGED_POINTER.format(
                    file=str(self.pointer), strangers=strangers, remedy=registry_messages.REPAIR
                )
            )
        return names

    def resolve(self, step: int) -> Choice:
        """Return the weights to use for a step, which the ``weights`` setting chooses.

        Raises:
            WeightsError: The weights that the setting or the pointer names do not exist.
        """
        if not self.weights:
            return self.named(self.active().get(step, STARTER))
        if self.weights == OFFICIAL:
            return self.named(self._newest_official())
        if NAME.fullmatch(self.weights) and (self.weights == STARTER or self.weights in self.versions()):
            return self.named(self.weights)
        folder = Path(self.weights).expanduser()
        if not folder.is_dir():
            known = f" ({', '.join(self.versions())})" if self.versions() else ""
            raise WeightsError(registry_messages.UNKNOWN_WEIGHTS.format(known=known, weights=self.weights))
        return Choice(folder.resolve().name, folder)

    def activate(self, name: str, *, steps: Collection[int] = (1, 2)) -> None:
        """Put a version into use for some steps; running servers use it from their next request.

        The caller has checked that the version holds a model of each of the steps.

        Args:
            name: "starter" or a version's name.
            steps: Steps to change; the others stay as they are.

        Raises:
            WeightsError: There is no such version.
            StorageError: The pointer cannot be written.
        """
        self.activate_each(dict.fromkeys(steps, name))

    def activate_each(self, names: Mapping[int, str]) -> None:
        """Put a version into use for each step, all at once.

        Args:
            names: Step -> "starter" or a version's name; missing steps stay as they are.

        Raises:
            WeightsError: There is no such version.
            StorageError: The pointer cannot be written.
        """
        with locked(self.model_dir):
            self._point(names)

    def go_back(self) -> Mapping[int, str]:
        """Put the previous versions into use again; running servers follow at once.

        Returns:
            Step -> version in use now.

        Raises:
            WeightsError: See ``before_last``.
            StorageError: The pointer cannot be written.
        """
        with locked(self.model_dir):
            before = self.before_last()
            self._point(before, back=True)
        return before

    def before_last(self) -> Mapping[int, str]:
        """Return step -> version that ``go_back`` would put into use, skipping versions that no longer exist.

        Raises:
            WeightsError: Nothing was changed before, or no earlier version exists anymore.
        """
        return before_last(self.model_dir, self.active(), STARTER, (*self.versions(), STARTER))

    def activate_in_place_of(self, compared: Mapping[int, Choice], names: Mapping[int, str]) -> Mapping[int, str]:
        """Activate versions if the weights they were compared with are still in use.

        Args:
            compared: Step -> weights in the comparison.
            names: Step -> version's name; missing steps stay as they are.

        Returns:
            Empty if this was done, now or before. Otherwise step -> weights in use instead; then nothing was changed.

        Raises:
            WeightsError: There is no such version.
            StorageError: The pointer cannot be written.
        """
        with locked(self.model_dir):
            if names.items() <= self.active().items():
                return {}
            others = self.in_use_instead(compared)
            if not others:
                self._point(names)
            return others

    def in_use_instead(self, compared: Mapping[int, Choice]) -> Mapping[int, str]:
        """Return step -> name in the pointer file where it differs from ``compared``, whatever the ``weights`` setting
        is.
        """
        active = self.active()
        named = {step: active.get(step, STARTER) for step in compared}
        return {s: name for s, name in named.items() if self._root(name).resolve() != compared[s].root.resolve()}

    def is_taken_back(self, name: str) -> bool:
        """Return whether a version was in use once, for any step, and is no longer."""
        active = self.active()
        used = made(self.model_dir, active, STARTER)
        return name not in active.values() and any(name in change.after.values() for change in used)

    def _point(self, names: Mapping[int, str], *, back: bool = False) -> None:
        """Change the pointer; the caller holds the lock."""
        for name in names.values():
            self.named(name)
        before = self.active()
        after = {**before, **names}
        note(self.model_dir, before, after, back=back)
        write_json(self.pointer, {DATASET_OF_STEP[step]: value for step, value in after.items()})

    @contextmanager
    def publish(self, name: str) -> Iterator[Path]:
        """Yield an empty hidden folder to fill; when the block ends without an error, it becomes the version.

        Args:
            name: Letters, digits, ".", "_" and "-"; not used yet.

        Raises:
            WeightsError: The name cannot be a version's name.
            StorageError: The version exists or cannot be written.
        """
        if not NAME.fullmatch(name) or name in (STARTER, OFFICIAL):
            raise WeightsError(registry_messages.BAD_NAME.format(name=name))
        with staged_folder(self.versions_dir / name) as staging:
            yield staging

    def named(self, name: str) -> Choice:
        """Return an installed version, or the starter weights.

        Raises:
            WeightsError: There is none of this name.
        """
        root = self._root(name)
        if not NAME.fullmatch(name) or not root.is_dir():
            raise WeightsError(
                registry_messages.NOT_INSTALLED.format(name=name, folder=str(self.model_dir), command=COMMAND)
            )
        return Choice(name, root)

    def _root(self, name: str) -> Path:
        return self.starter_dir if name == STARTER else self.versions_dir / name

    def _newest_official(self) -> str:
        releases = [name for name in self.versions() if name.startswith(OFFICIAL_PREFIX)]
        if not releases:
            raise WeightsError(registry_messages.NO_OFFICIAL_WEIGHTS.format(command=COMMAND))
        return releases[-1]
