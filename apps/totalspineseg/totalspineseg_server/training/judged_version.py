"""Let the gate judge an existing version, trained elsewhere or judged on other studies, before it is put into use."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings
from totalspineseg_server.nnunet.model_folder import ModelFolder, models_of
from totalspineseg_server.registry.judgments import Judgment, keep_judgment
from totalspineseg_server.registry.model_store import Choice, ModelStore
from totalspineseg_server.registry.records import images_trained_on
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.holdout import foreseen_split
from totalspineseg_server.training.judging import Judging, never_seen
from totalspineseg_server.training.material import judged_cases, line_of, site_material
from totalspineseg_server.training.remembered import own_answers
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.scoring import JudgedCase, Model, reference_cases
from totalspineseg_server.training.site import Site


@dataclass(frozen=True)
class _Version:
    """A version that is compared with the weights in use.

    Attributes:
        name: Its name.
        models: Step -> its network.
    """

    name: str
    models: Mapping[int, ModelFolder]

    def open(self, step: int, share: float = 1) -> ModelFolder:
        """Return the version's network of a step; ``share`` is ignored, because nothing is mixed."""
        return self.models[step]


def judge_version(
    store: ModelStore,
    name: str,
    site: Site | None = None,
    *,
    device: str = "auto",
    tell: Callable[[str], None] = lambda _: None,
) -> Judgment:
    """Compare a version with the weights in use (or, if it is in use itself, with the previous ones), and store the
    judgment.

    The weights in use, the hold-out list and the report published with the version do not change.

    Args:
        store: The store that holds the version.
        name: "starter" or a version's name.
        site: The site whose hold-out is used in addition to the reference set. A subject that no training has used yet
            gets the role that it will have in the next one. None for the reference set alone.
        device: Device of the computation.
        tell: Called with a line of progress.

    Raises:
        WeightsError: There is no such version, nothing to compare it with, or a model cannot be loaded.
        StorageError: The hold-out list is damaged, or the judgment cannot be written.
        MemoryShortageError: A scan does not fit into memory.
    """
    models = models_of(store, name)
    compared = _compared_with(store, name, models)
    parents = {step: ModelFolder.open(choice.root, step=step, name=choice.name) for step, choice in compared.items()}
    both = {name, *(choice.name for choice in compared.values())}
    line = line_of(store, both)
    foreseen = site_material(site, line=line, split_of=foreseen_split).holdout if site else ()
    fair, unfair = never_seen(store, both, foreseen)
    holdout, unreadable = judged_cases(fair)
    settings = RetrainSettings(tuple(models), FinetuneSettings(device=device), new_weights=(1.0,))

    def say(line: str, **values: Any) -> None:
        # The details are not logged here, because they are in the judgment.
        if not values:
            tell(line)

    seen = frozenset[str]().union(*(images_trained_on(store, each) for each in both))

    def own(model: Model, count: int) -> tuple[JudgedCase, ...]:
        if site is None:
            return ()
        return tuple(answer.judged() for answer in own_answers(site, model, count, judges=True, seen=seen, tell=tell))

    judging = Judging(store, parents, _Version(name, models), settings, say=say, tell=tell)
    report = judging.verdict(
        lambda: reference_cases(settings.reference_cases),
        holdout,
        own_answers=own,
        unreadable=(*unfair, *unreadable),
    ).report
    judgment = Judgment(
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        site=str(site.history.resolve()) if site else "",
        passed=report.publish,
        verdict=f"{'passed' if report.publish else 'did not pass'}: {'; '.join(entry.reason for entry in report.sets)}",
        report=report.as_json(),
    )
    keep_judgment(store, name, judgment)
    return judgment


def _compared_with(store: ModelStore, name: str, steps: Collection[int]) -> Mapping[int, Choice]:
    in_use = {step: store.resolve(step) for step in (1, 2)}
    if any(in_use[step].name != name for step in steps):
        return in_use
    before = {step: store.named(other) for step, other in store.before_last().items()}
    if all(before[step].name == name for step in steps):
        raise WeightsError(training_messages.NOTHING_TO_COMPARE.format(name=name))
    return before
