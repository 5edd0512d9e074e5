"""The whole loop: corrections and replay in, a fine-tuned model judged, published or kept with its report."""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, cast

from lib.errors import StorageError, TrainingError
from lib.gate.measures import CaseScore
from lib.gate.reference import reference_cases
from lib.gate.scoring import JudgedCase, Model, score_models
from lib.gate.verdict import GateReport, judge
from lib.nnunet.candidate import mixed_weights, write_candidate
from lib.nnunet.cases import ScanSource, Skipped, prepare_cases
from lib.nnunet.finetune import Progress, Stopped, fine_tune
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.predictor import WarmPredictor
from lib.nnunet.runtimes import resolve_devices
from lib.nnunet.training_log import TrainingLog
from lib.nnunet.training_state import STATE_FILE, run_key
from lib.registry.files import storage_errors, write_json
from lib.registry.records import VersionRecord, trained_on, write_record
from lib.trainers.material import Material, judged_cases, site_material
from lib.trainers.replay import replay_sources
from lib.trainers.runs import ProgressFile, RunState, Status, begin, only_one
from lib.trainers.settings import RetrainSettings
from lib.trainers.site import Site

logger = logging.getLogger(__name__)

GATE_FILE: Final = "gate.json"
CANDIDATE_DIR: Final = "candidate"
MIXED_DIR: Final = "mixed-"
"""The candidate's weights mixed with those in use; their share follows."""
DONE_FILE: Final = "done.json"
"""In a candidate's folder once it is whole."""


@dataclass(frozen=True)
class Retrained:
    """How a retraining ended.

    Attributes:
        run: Folder of the run: logs, curves, gate report.
        version: Name of the new version.
        report: The gate's report.
        skipped: Cases that could not be used.
    """

    run: Path
    version: str
    report: GateReport
    skipped: tuple[Skipped, ...]


def retrain(
    site: Site,
    settings: RetrainSettings | None = None,
    *,
    replay: Sequence[ScanSource] | None = None,
    reference: Callable[[], Iterable[JudgedCase]] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Retrained:
    """Learn from a site's corrections, and serve the result if nothing became worse.

    Killed at any moment, the next call goes on from the last stored state; what is served is always the last
    version that passed.

    Args:
        site: Studies, corrections and models.
        settings: What to do.
        replay: Scans against forgetting; None takes the synthetic ones of ``settings``.
        reference: Draws the scans that judge beside the hold-out; None takes the fixed synthetic ones.
        should_stop: Asked after every iteration.

    Raises:
        TrainingError: Another training runs, there is no correction to learn from or no such device, or memory does not
            suffice.
        WeightsError: The model in use cannot be loaded.
        StorageError: Disk full or no permission; nothing is published.
        Stopped: ``should_stop`` said so.
    """
    settings = settings or RetrainSettings()
    try:
        resolve_devices(settings.finetune.device, settings.finetune.gpus)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    with only_one(site.training_dir):
        parents = {step: _parent(site, step) for step in (1, 2)}
        known = frozenset().union(*(trained_on(site.models, parents[step].name) for step in settings.steps))
        material = site_material(site, known)
        if not any(set(source.steps) & set(settings.steps) for source in material.training):
            raise TrainingError(
                "at least one accepted correction of a subject that is not held out is required, got "
                f"{len(material.training)} for these steps; submit a corrected label first"
            )
        run = _Retraining(site, settings, parents, material)
        run.replay = replay_sources(settings.replay_cases) if replay is None else tuple(replay)
        count = settings.reference_cases
        return run.go(should_stop, reference or (lambda: reference_cases(count)))


def _parent(site: Site, step: int) -> ModelFolder:
    choice = site.models.resolve(step)
    return ModelFolder.open(choice.root, step=step, name=choice.name)


class _Retraining:
    """One run, from material to verdict."""

    def __init__(
        self, site: Site, settings: RetrainSettings, parents: dict[int, ModelFolder], material: Material
    ) -> None:
        self.site, self.settings, self.parents, self.material = site, settings, parents, material
        self.replay: tuple[ScanSource, ...] = ()
        about: dict[str, Any] = {
            "parents": {str(step): parents[step].version for step in settings.steps},
            "settings": _plain(asdict(settings)),
            "training": [dict(source.provenance) for source in material.training],
        }
        # A run goes on wherever there is a device for it.
        anywhere = replace(settings, finetune=replace(settings.finetune, device="", gpus=1))
        key = run_key(about | {"settings": _plain(asdict(anywhere))})
        self.run = begin(site.training_dir, key, about, resume=settings.resume)
        self.log = TrainingLog(self.run)
        # A run that goes on knows what was left out before.
        self.skipped = [Skipped(e["case"], e["reason"]) for e in self.log.events() if "reason" in e]
        for case in material.skipped:
            self._skip(case)
        self.progress = ProgressFile(self.run)
        self.epochs = -(-settings.finetune.iterations // settings.finetune.epoch)
        self.epochs_done = 0
        self._tell("running", message="preparing cases")

    def go(self, should_stop: Callable[[], bool], reference: Callable[[], Iterable[JudgedCase]]) -> Retrained:
        """Run it; whatever happens, the run's state says so."""
        counts = (
            f"{self.material.fresh} new and {len(self.material.training) - self.material.fresh} earlier corrections"
        )
        self.log.say(f"run {self.run.name}: {counts}, {len(self.material.holdout)} hold-out scans")
        for source in self.material.training:
            for finding in source.provenance.get("findings", ()):
                self.log.say(f"case {source.name} trains, though: {finding}", case=source.name)
        try:
            for step in self.settings.steps:
                self._train(step, should_stop)
            self._tell("running", message="comparing with the model in use")
            report, share = self._judge(reference)
            version = self._publish(report, share)
        except Stopped as stop:
            self._tell("stopped", message=str(stop))
            raise
        except Exception as error:
            self.log.say(f"run {self.run.name} failed: {error}")
            self._tell_of_failure(str(error))
            raise
        self.log.say(f"version {version}: {report.reason}")
        for step in self.settings.steps:
            for share in {1.0, *self.settings.new_weights}:
                shutil.rmtree(self._candidate(step, share), ignore_errors=True)
        self._tell("published" if report.publish else "refused", message=report.reason)
        return Retrained(self.run, version, report, tuple(self.skipped))

    def _tell_of_failure(self, message: str) -> None:
        try:
            self._tell("failed", message=message)
        except StorageError:
            # A full disk is what failed: the run then shows as interrupted.
            logger.warning("the state of run %s could not be written", self.run.name)

    def _tell(self, status: Status, *, step: int = 0, done: int = 0, seconds: float = 0.0, **rest: Any) -> None:
        settings = self.settings.finetune
        if step:
            epoch = self.epochs if done == settings.iterations else done // settings.epoch
            self.epochs_done = self.settings.steps.index(step) * self.epochs + epoch
        state = RunState(
            run=self.run.name,
            status=status,
            step=step,
            epoch=self.epochs_done,
            total_epochs=len(self.settings.steps) * self.epochs,
            seconds=round(seconds, 1),
            **rest,
        )
        self.progress.write(state, now=not step)

    def _work(self, step: int) -> Path:
        return self.run / f"step{step}"

    def _candidate(self, step: int, share: float) -> Path:
        """Folder of what is judged, with so much of the trained weights."""
        return self._work(step) / (CANDIDATE_DIR if share == 1 else f"{MIXED_DIR}{share:g}")

    def _mix(self, step: int, share: float) -> None:
        parent, folder = self.parents[step], self._candidate(step, share)
        trained = ModelFolder.open(self._candidate(step, 1), step=step, name="candidate")
        shutil.rmtree(folder, ignore_errors=True)
        write_candidate(parent, mixed_weights(parent, trained, share), folder)

    def _train(self, step: int, should_stop: Callable[[], bool]) -> None:
        parent = self.parents[step]
        if (self._work(step) / CANDIDATE_DIR / DONE_FILE).is_file():
            self.epochs_done = (self.settings.steps.index(step) + 1) * self.epochs
            return
        sources: tuple[ScanSource, ...] = (*self.material.training, *self.replay)
        cases = prepare_cases(sources, parent, on_skip=self._skip, finder=self._finder() if step == 2 else None)
        if not any(case.name in {source.name for source in self.material.training} for case in cases):
            raise TrainingError(
                f"at least one usable correction for step {step} is required, got none; the log says why each was "
                "left out"
            )

        def tell(progress: Progress) -> None:
            best = None if progress.best != progress.best else round(progress.best, 4)
            self._tell("running", step=step, done=progress.iteration, seconds=progress.seconds, best_metric=best)

        settings = self.settings.finetune
        trained = fine_tune(parent, cases, self._work(step), settings, on_progress=tell, should_stop=should_stop)
        write_candidate(parent, trained.weights, self._work(step) / CANDIDATE_DIR)
        write_json(self._work(step) / CANDIDATE_DIR / DONE_FILE, {"best": _plain(trained.best)})
        (self._work(step) / STATE_FILE).unlink(missing_ok=True)

    def _finder(self) -> WarmPredictor:
        """The step-1 network that will guide step 2: just trained, or the one in use."""
        folder = self.parents[1]
        if 1 in self.settings.steps:
            folder = ModelFolder.open(self._candidate(1, 1), step=1, name="candidate")
        return WarmPredictor(folder, device=self.settings.finetune.device)

    def _skip(self, case: Skipped) -> None:
        if case not in self.skipped:
            self.skipped.append(case)
            self.log.say(f"case {case.name} left out: {case.reason}", case=case.name, reason=case.reason)

    def _judge(self, reference: Callable[[], Iterable[JudgedCase]]) -> tuple[GateReport, float]:
        """The report of the first share of new weights that passes, and the share; of the first share if none does."""
        active = self._model(self.parents)
        known: tuple[dict[str, CaseScore], dict[str, CaseScore]] = ({}, {})
        holdout, skipped = judged_cases(self.material.holdout)
        for case in skipped:
            self._skip(case)
        served = "+".join(self.parents[step].version for step in self.settings.steps)
        reports: list[tuple[GateReport, float]] = []
        for share in self.settings.new_weights:
            candidate = self._trained_model(share)
            scores = [
                score_models(cases, active=active, candidate=candidate, known=rated, before_each=self._tell_of_judging)
                for cases, rated in zip((reference(), holdout), known, strict=True)
            ]
            report = judge(served, self.run.name, reference=scores[0], holdout=scores[1])
            reports.append((report, share))
            if report.publish:
                break
            self.log.say(f"{share:.0%} of the new weights: {report.reason}", gate=report.as_json())
        chosen = reports[-1] if reports[-1][0].publish else reports[0]
        write_json(self.run / GATE_FILE, chosen[0].as_json() | {"new_weights": chosen[1]})
        return chosen

    def _model(self, folders: Mapping[int, ModelFolder]) -> Model:
        step1, step2 = (WarmPredictor(folders[step], device=self.settings.finetune.device) for step in (1, 2))
        return Model(step1, step2)

    def _trained_model(self, share: float) -> Model:
        """What was trained with so much of its weights, beside the network in use of a step that was not."""
        folders = dict(self.parents)
        for step in self.settings.steps:
            if share != 1:
                self._mix(step, share)
            folders[step] = ModelFolder.open(self._candidate(step, share), step=step, name="candidate")
        return self._model(folders)

    def _tell_of_judging(self, name: str) -> None:
        self._tell("running", message=f"judging on {name}")

    def _publish(self, report: GateReport, share: float) -> str:
        store = self.site.models
        name = f"trained-{self.run.name}"
        if name not in store.versions():
            with store.publish(name) as staging:
                with storage_errors(staging):
                    for step in self.settings.steps:
                        source = self._candidate(step, share)
                        shutil.copytree(source, staging, ignore=lambda *_: [DONE_FILE], dirs_exist_ok=True)
                models = {step: ModelFolder.open(staging, step=step, name=name) for step in self.settings.steps}
                write_record(staging, self._record(name, report, share, models))
        if report.publish:
            store.activate(name, steps=self.settings.steps)
            if store.weights:
                self.log.say(f"this server is told to serve {store.weights!r}; start it without to serve {name}")
        return name

    def _record(self, name: str, report: GateReport, share: float, models: dict[int, ModelFolder]) -> VersionRecord:
        steps = self.settings.steps
        return VersionRecord(
            name=name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            steps=steps,
            parents={str(s): {"name": self.parents[s].name, "version": self.parents[s].version} for s in steps},
            models={str(step): model.version for step, model in models.items()},
            training=[dict(source.provenance) for source in self.material.training if not self._left_out(source)],
            replay=[dict(source.provenance) for source in self.replay],
            skipped=[{"case": case.name, "reason": case.reason} for case in self.skipped],
            settings=cast(dict[str, Any], _plain(asdict(self.settings))),
            gate=report.as_json(),
            run=self.run.name,
            new_weights=share,
        )

    def _left_out(self, source: ScanSource) -> bool:
        return source.name in {case.name for case in self.skipped}


def _plain(value: Any) -> Any:
    """JSON values: tuples as lists, nan as null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value != value:
        return None
    return value
