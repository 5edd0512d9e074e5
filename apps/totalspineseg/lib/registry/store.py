"""Where models live, and which one is in use.

``<model dir>/starter`` ships with the project; ``<model dir>/versions/<name>`` holds installed and trained ones;
``<model dir>/active.json`` names the version in use per nnU-Net dataset (101 = step 1, 102 = step 2). A version is
never changed after it appeared, so going back is naming an older one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lib.errors import WeightsError
from lib.registry.activations import note
from lib.registry.files import locked, staged_folder, write_json

STARTER: Final = "starter"
OFFICIAL: Final = "official"
DATASET_OF_STEP: Final[Mapping[int, str]] = {1: "101", 2: "102"}
"""nnU-Net's dataset ids, as keys of the pointer file."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Version names are folder names: no separators, no leading dot."""


@dataclass(frozen=True)
class Choice:
    """The weights in use for a step.

    Attributes:
        name: "starter", a version's name, or the name of a folder somebody pointed at.
        root: Folder that holds the model folder of the step, possibly some levels down.
    """

    name: str
    root: Path


class ModelStore:
    """The models of one installation.

    Args:
        model_dir: The app's model folder.
        weights: Whose weights to use: "" follows the pointer file (the starter weights while there is none),
            "starter", "official" (the newest installed release), the name of a version, or a folder.
    """

    def __init__(self, model_dir: Path | str, *, weights: str = "") -> None:
        self.model_dir = Path(model_dir)
        self.weights = weights.strip()

    @property
    def versions_dir(self) -> Path:
        """Folder of installed and trained versions; may not exist yet."""
        return self.model_dir / "versions"

    @property
    def pointer(self) -> Path:
        """The pointer file; absent until something was activated."""
        return self.model_dir / "active.json"

    def versions(self) -> tuple[str, ...]:
        """Names of all complete versions, sorted; the starter weights are not among them."""
        if not self.versions_dir.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.versions_dir.iterdir() if p.is_dir() and NAME.fullmatch(p.name)))

    def active(self) -> Mapping[int, str]:
        """Step -> name the pointer file gives; empty when there is none.

        Raises:
            WeightsError: The pointer file is damaged.
        """
        try:
            content = json.loads(self.pointer.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"a readable {str(self.pointer)!r} is required, got {error}; {_REPAIR}") from error
        if not isinstance(content, dict):
            raise WeightsError(f"{str(self.pointer)!r} must map 101 and 102 to versions, got {content!r}; {_REPAIR}")
        names = {step: content[key] for step, key in DATASET_OF_STEP.items() if key in content}
        if strangers := [n for n in names.values() if not isinstance(n, str) or not NAME.fullmatch(n)]:
            raise WeightsError(f"{str(self.pointer)!r} must name versions, got {strangers!r}; {_REPAIR}")
        return names

    def resolve(self, step: int) -> Choice:
        """The weights to use for a step, by the ``weights`` setting.

        Raises:
            WeightsError: What the setting or the pointer names is not there.
        """
        if not self.weights:
            return self.named(self.active().get(step, STARTER))
        if self.weights == OFFICIAL:
            return self.named(self._newest_official())
        if NAME.fullmatch(self.weights) and (self.weights == STARTER or self.weights in self.versions()):
            return self.named(self.weights)
        folder = Path(self.weights).expanduser()
        if not folder.is_dir():
            raise WeightsError(
                f"weights must be 'starter', 'official', an installed version {self.versions()!r} or a folder, "
                f"got {self.weights!r}"
            )
        return Choice(folder.resolve().name, folder)

    def activate(self, name: str, *, steps: Collection[int] = (1, 2)) -> None:
        """Let the pointer name a version for some steps; running servers take it at their next request.

        The caller has checked that the version holds a model of each of the steps.

        Args:
            name: "starter" or a version's name.
            steps: Which steps; the others keep what they have.

        Raises:
            WeightsError: There is no such version.
            StorageError: The pointer cannot be written.
        """
        self.activate_each(dict.fromkeys(steps, name))

    def activate_each(self, names: Mapping[int, str], *, back: bool = False) -> None:
        """``activate`` with a version of its own for each step, in one step for all.

        Args:
            names: Step -> "starter" or a version's name; steps left out keep what they have.
            back: Whether this goes back to what was in use before.

        Raises:
            WeightsError: There is no such version.
            StorageError: The pointer cannot be written.
        """
        for name in names.values():
            self.named(name)
        with locked(self.model_dir):
            self._point(names, back=back)

    def activate_in_place_of(self, compared: Mapping[int, Choice], names: Mapping[int, str]) -> Mapping[int, str]:
        """``activate_each``, if what a version was compared with is still in use.

        Args:
            compared: Step -> weights that others were found no worse than.
            names: Step -> version's name; steps left out keep what they have.

        Returns:
            Empty when it was done, or had been before. Else nothing was changed: step -> what is in use instead.

        Raises:
            WeightsError: There is no such version.
            StorageError: The pointer cannot be written.
        """
        for name in names.values():
            self.named(name)
        with locked(self.model_dir):
            if names.items() <= self.active().items():
                return {}
            others = self.in_use_instead(compared)
            if not others:
                self._point(names)
            return others

    def in_use_instead(self, compared: Mapping[int, Choice]) -> Mapping[int, str]:
        """Step -> what the pointer names, where that is not what is given; ``weights`` plays no part."""
        active = self.active()
        named = {step: active.get(step, STARTER) for step in compared}
        return {s: name for s, name in named.items() if self._root(name).resolve() != compared[s].root.resolve()}

    def _point(self, names: Mapping[int, str], *, back: bool = False) -> None:
        before = self.active()
        after = {**before, **names}
        note(self.model_dir, before, after, back=back)
        write_json(self.pointer, {DATASET_OF_STEP[step]: value for step, value in after.items()})

    @contextmanager
    def publish(self, name: str) -> Iterator[Path]:
        """Add a version: yields an empty hidden folder to fill, which becomes the version when the block succeeds.

        Args:
            name: Letters, digits, ".", "_" and "-"; not taken yet.

        Raises:
            ValueError: The name cannot be a version's name.
            StorageError: The version exists or cannot be written.
        """
        if not NAME.fullmatch(name) or name in (STARTER, OFFICIAL):
            raise ValueError(
                f"a version name takes letters, digits, '.', '_' and '-' and is not reserved, got {name!r}"
            )
        with staged_folder(self.versions_dir / name) as staging:
            yield staging

    def named(self, name: str) -> Choice:
        """An installed version, or the starter weights.

        Raises:
            WeightsError: There is none of this name.
        """
        root = self._root(name)
        if not NAME.fullmatch(name) or not root.is_dir():
            raise WeightsError(
                f"an installed version is required, got {name!r} which is not in {str(self.model_dir)!r}; "
                "run 'totalspineseg weights install' or choose WEIGHTS=starter"
            )
        return Choice(name, root)

    def _root(self, name: str) -> Path:
        return self.model_dir / STARTER if name == STARTER else self.versions_dir / name

    def _newest_official(self) -> str:
        releases = [name for name in self.versions() if name.startswith(f"{OFFICIAL}-")]
        if not releases:
            raise WeightsError(
                "the official weights are required, got none installed; run 'totalspineseg weights install'"
            )
        return releases[-1]


_REPAIR: Final = "delete the file to go back to the starter weights, or activate a version again"
