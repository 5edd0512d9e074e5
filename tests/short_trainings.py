"""Make trainings of an app in tests short, with a gate whose scores are given."""

from collections.abc import Iterable
from typing import Any

from totalspineseg_server.agreement import GROUPS, CaseScore
from totalspineseg_server.training.compare import SubjectScores

BEFORE = 0.8
"""Dice of the weights in use."""


def shorten_trainings(after: float) -> None:
    """Let the trainings of this process draw no picture, and be judged by five subjects.

    Args:
        after: Dice of the new weights on all of them.
    """
    from totalspineseg_server.nnunet.training_log import TrainingLog
    from totalspineseg_server.training import judging
    from totalspineseg_server.training import retraining as retrain

    def scored(cases: Iterable[Any], **_: Any) -> tuple[SubjectScores, ...]:
        old, new = (CaseScore(dict.fromkeys(GROUPS, dice), 10, 9, 9) for dice in (BEFORE, after))
        return tuple(SubjectScores(f"s{k}", (old,), (new,)) for k in range(5)) if list(cases) else ()

    judging.score_models = scored
    retrain.reference_cases = range  # type: ignore[assignment]
    TrainingLog.draw = lambda self: None  # type: ignore[method-assign]
