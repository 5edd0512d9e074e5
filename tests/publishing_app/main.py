"""The real app with trainings that publish without judging, and wait during that until their server has been killed."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from totalspineseg_server.agreement import GROUPS, CaseScore
from totalspineseg_server.app import App as RealApp
from totalspineseg_server.gate.compare import SubjectScores
from totalspineseg_server.processes import parent_is_gone


def unjudged(cases: Iterable[Any], **_: Any) -> tuple[SubjectScores, ...]:
    """Return five subjects on which nothing has changed."""
    score = CaseScore(dict.fromkeys(GROUPS, 0.8), 10, 9, 9)
    return tuple(SubjectScores(f"s{k}", (score,), (score,)) for k in range(5)) if list(cases) else ()


class MONAILabelApp(RealApp):
    """Named so that the host, which looks for a direct child of this name, finds the class below."""

    def train(self, request: dict[str, Any]) -> Any:
        from totalspineseg_server.nnunet.training_log import TrainingLog
        from totalspineseg_server.registry import model_store as store
        from totalspineseg_server.trainers import judging, publication
        from totalspineseg_server.trainers import retraining as retrain

        judging.score_models = unjudged
        retrain.reference_cases = range
        TrainingLog.draw = lambda self: None
        self._hold("copying", publication.shutil, "copytree", call=2)
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
    """The app that the host loads."""
