"""Define the real app with predictors that need no weights, for servers in tests."""

import time
from pathlib import Path
from typing import Any

from phantom import CodeReader
from short_trainings import shorten_trainings
from totalspineseg_server.app import App as RealApp
from totalspineseg_server.errors import WeightsError

ONE_STEP = {"iterations": "1", "batch_size": "1", "replay_cases": "0", "device": "cpu"}


class Readers:
    """Replaces the loaded networks; files beside the studies tell it to fail or to be slow."""

    def __init__(self, signals: Path) -> None:
        self._signals = signals

    def folder(self, step: int) -> object:
        self.wait("slow-folder")
        if (self._signals / "no-weights").exists():
            raise WeightsError("There is no model folder. Install weights.")
        return type("Folder", (), {"name": "starter"})()

    def free(self) -> None:
        with (self._signals / "freed").open("a", encoding="utf-8") as calls:
            calls.write("freed\n")
        self.wait("slow-free")

    def get(self, step: int) -> CodeReader:
        self.folder(step)
        self.wait("slow")
        return CodeReader(step)

    def version(self, step: int) -> str:
        self.folder(step)
        return CodeReader(step).version

    def wait(self, name: str) -> None:
        signal = self._signals / name
        if signal.exists():
            time.sleep(float(signal.read_text(encoding="utf-8")))

    def warm_up(self) -> None:
        (self._signals / "warmed").touch()


class MONAILabelApp(RealApp):
    """Has this name because MONAI Label looks for a direct child of such a class, and then finds the one below."""

    def make_networks(self, app_dir: Path, conf: dict[str, str]) -> Readers:
        return Readers(app_dir.parent / "signals")

    def open_studies(self, *arguments: Any) -> Any:
        store = super().open_studies(*arguments)
        save = store.save_label

        def slowly(*label: Any) -> str:
            self._networks.wait("slow-label")
            return save(*label)

        store.save_label = slowly
        return store

    def train(self, request: dict[str, Any]) -> Any:
        after = Path(self.app_dir).parent / "signals" / "gate"
        if after.exists():
            shorten_trainings(float(after.read_text(encoding="utf-8")))
            request = {**request, **ONE_STEP}
        return super().train(request)


class App(MONAILabelApp):
    """The app that MONAI Label loads."""
