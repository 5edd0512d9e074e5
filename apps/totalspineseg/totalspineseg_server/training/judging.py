"""Compare trained networks with those in use and with those from which the first training began."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from totalspineseg_server.agreement import CaseScore
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet.cases import ScanSource, Skipped
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import images_trained_on, lineage
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.candidates import Judged
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.remembered import as_in_truth
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.scoring import JudgedCase, Model, handled, named, score_models, score_prediction
from totalspineseg_server.training.verdict import Beginning, judge

Known = tuple[dict[str, CaseScore], dict[str, CaseScore]]
"""Scores by case, for the reference set and for the hold-out."""


class Contender(Protocol):
    """Networks that are judged: those that a run has trained, or those of a version."""

    @property
    def name(self) -> str:
        """The name in the report."""

    def open(self, step: int, share: float = 1) -> ModelFolder:
        """Return a network with this share of new weights."""


@dataclass(frozen=True)
class _Rated:
    """A model with its scores so far.

    Attributes:
        model: Both networks.
        known: Scores so far. New ones are added, so that each model segments each scan only once.
    """

    model: Model
    known: Known = field(default_factory=lambda: ({}, {}))


class Judging:
    """The gate of one run, or of one version.

    Args:
        store: The model versions.
        parents: Step -> the network in use, from which the training started.
        candidates: The networks that are judged.
        settings: Steps to judge, shares of the new weights, device.
        say: Called with a line for the log.
        tell: Called with a line of progress.
    """

    def __init__(
        self,
        store: ModelStore,
        parents: Mapping[int, ModelFolder],
        candidates: Contender,
        settings: RetrainSettings,
        *,
        say: Callable[..., None],
        tell: Callable[[str], None],
    ) -> None:
        self._store, self._parents, self._candidates, self._settings = store, parents, candidates, settings
        self._say, self._tell = say, tell

    def verdict(
        self,
        reference: Callable[[], Iterable[JudgedCase]],
        holdout: Sequence[JudgedCase],
        *,
        own_answers: Callable[[Model, int], Sequence[JudgedCase]] = lambda *_: (),
        unreadable: Sequence[Skipped] = (),
        on_left_out: Callable[[Skipped], None] = lambda _: None,
    ) -> Judged:
        """Return the verdict on the first share of new weights that passes; on the first share if none passes.

        Args:
            reference: Makes the fixed scans.
            holdout: The scans of the site.
            own_answers: Segments scans of the site with the weights in use and returns those whose names are not
                doubtful: as many as there are spines of the reference set that these weights do not handle.
            unreadable: Scans of the site that cannot be used.
            on_left_out: Called with every other scan that cannot be used.

        Raises:
            WeightsError: A model cannot be loaded.
            MemoryShortageError: A scan does not fit into memory.
        """
        steps = self._settings.steps
        left_out = {case.name: case.reason for case in unreadable}

        def skip(name: str, reason: str) -> None:
            left_out[name] = reason
            on_left_out(Skipped(name, reason))

        served = "+".join(self._parents[step].version for step in steps)
        active, beginnings = self._rated(self._parents), self._beginnings(left_out)
        first = self._rated({**self._parents, **beginnings})
        verdicts: list[Judged] = []
        own: Sequence[JudgedCase] | None = None
        for share in self._settings.new_weights:
            trained = {step: self._candidates.open(step, share) for step in steps}
            candidate = self._rated({**self._parents, **trained})
            on_reference, on_holdout = self._scores(active, candidate, (reference(), holdout), skip)
            judging = handled(on_reference)
            sure = named(judging)
            if own is None:
                unhandled = len(on_reference) - len(judging)
                own = own_answers(active.model, unhandled) if unhandled else ()
            since = None
            if beginnings:
                name = "+".join(sorted({folder.name for folder in beginnings.values()}))
                since_reference, since_holdout = self._scores(first, candidate, (reference(), holdout), skip)
                since = Beginning(name, named(handled(since_reference)), since_holdout)
            report = judge(
                served,
                self._candidates.name,
                reference=sure,
                holdout=on_holdout,
                own_answers=self._beside_own(own, active, candidate, skip),
                unhandled=len(on_reference) - len(judging),
                doubted=len(judging) - len(sure),
                beginning=since,
                left_out=[f"{name}: {reason}" for name, reason in left_out.items()],
                untouched=sum(case.left.count for case in holdout if case.name not in left_out),
            )
            verdicts.append(Judged(report, share))
            if report.publish:
                break
            self._say(f"{share:.0%} of the new weights: {report.reason}", gate=report.as_json())
        return verdicts[-1] if verdicts[-1].report.publish else verdicts[0]

    def _scores(
        self,
        active: _Rated,
        candidate: _Rated,
        sets: tuple[Iterable[JudgedCase], Iterable[JudgedCase]],
        skip: Callable[[str, str], None],
    ) -> list[tuple[SubjectScores, ...]]:
        return [
            score_models(
                cases,
                active=active.model,
                candidate=candidate.model,
                known=known,
                known_candidate=rated,
                before_each=lambda name: self._tell(f"comparing on {name}"),
                on_left_out=skip,
            )
            for cases, known, rated in zip(sets, active.known, candidate.known, strict=True)
        ]

    def _beside_own(
        self, cases: Sequence[JudgedCase], active: _Rated, candidate: _Rated, skip: Callable[[str, str], None]
    ) -> list[SubjectScores]:
        """Score a candidate and the weights in use against the answers of the weights in use, for each group in
        them."""
        if not cases:
            return []
        scores = score_models(
            cases,
            active=active.model,
            candidate=candidate.model,
            known={case.name: score_prediction(case, case.truth.data) for case in cases},
            before_each=lambda name: self._tell(f"comparing on {name}"),
            on_left_out=skip,
        )
        return [replace(entry, candidate=tuple(map(as_in_truth, entry.active, entry.candidate))) for entry in scores]

    def _beginnings(self, left_out: dict[str, str]) -> dict[int, ModelFolder]:
        """Return the network from which the first training of each step began, for steps that were trained before.

        If that network was removed, its oldest successor that still exists is used, and ``left_out`` has the reason.
        """
        found: dict[int, ModelFolder] = {}
        for step in self._settings.steps:
            for name in lineage(self._store, self._parents[step].name, step)[:0:-1]:
                try:
                    found[step] = ModelFolder.open(self._store.named(name).root, step=step, name=name)
                    break
                except WeightsError as error:
                    left_out[f"{name}, from which step {step} began"] = str(error)
                    self._say(f"step {step} is not compared with {name}, from which its first training began: {error}")
        return found

    def _rated(self, folders: Mapping[int, ModelFolder]) -> _Rated:
        step1, step2 = (WarmPredictor(folders[step], device=self._settings.finetune.device) for step in (1, 2))
        return _Rated(Model(step1, step2))


def never_seen(
    store: ModelStore, names: Collection[str], holdout: Sequence[ScanSource]
) -> tuple[tuple[ScanSource, ...], tuple[Skipped, ...]]:
    """Return the hold-out without the images on which one of the versions was trained.

    Another server that shares the models may have used these images, or this server under another name.

    Args:
        store: The model versions.
        names: "starter" or versions' names.
        holdout: Scans of the hold-out.

    Returns:
        The scans that may be used, and the others with the reason.
    """
    seen = frozenset[str]().union(*(images_trained_on(store, name) for name in names))
    learned = [source for source in holdout if source.provenance["image_sha256"] in seen]
    fair = tuple(source for source in holdout if source not in learned)
    return fair, tuple(Skipped(source.name, training_messages.LEARNED) for source in learned)
