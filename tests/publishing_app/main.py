"""Define the real app with trainings that publish without a judgment and wait until their server was killed."""

import time
from pathlib import Path
from typing import Any

from short_trainings import BEFORE, shorten_trainings
from totalspineseg_server.app import App as RealApp
from totalspineseg_server.processes import parent_is_gone


class MONAILabelApp(RealApp):  # type: ignore[misc]
    """Has this name because MONAI Label looks for a direct child of such a class, and then finds the one below."""

    def train(self, request: dict[str, Any]) -> Any:
        from totalspineseg_server.registry import model_store as store
        from totalspineseg_server.training import candidates

        shorten_trainings(BEFORE)
        self._hold("copying", candidates.shutil, "copytree", call=2)
        self._hold("activating", store, "write_json", call=1)
        return super().train(request)

    def _hold(self, moment: str, module: Any, name: str, *, call: int) -> None:
        """Wait before the n-th call of a function if the file "hold" names this moment."""
        original, calls = getattr(module, name), [0]
        hold = Path(self.app_dir).parent / "signals" / "hold"

        def held(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == call and hold.exists() and hold.read_text(encoding="utf-8") == moment:
                hold.rename(hold.with_name(f"held {moment}"))
                while not parent_is_gone():
                    time.sleep(0.05)
            return original(*args, **options)

        setattr(module, name, held)


class App(MONAILabelApp):
    """The app that MONAI Label loads."""
