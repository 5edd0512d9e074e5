"""Fine-tune the weights in use on corrections and replayed scans, let the gate judge the result, and publish it."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, cast

from totalspineseg_server.errors import MemoryShortageError, TrainingError
from totalspineseg_server.files import content_key, storage_errors, write_json
from totalspineseg_server.nnunet.calibration import STEPS, calibrate, joined
from totalspineseg_server.nnunet.cases import Origin, ScanSource, Skipped, prepare_cases
from totalspineseg_server.nnunet.draws import draws_of, in_order_of_choice
from totalspineseg_server.nnunet.finetune import Stopped, fine_tune
from totalspineseg_server.nnunet.finetune_job import store_cases
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.registry.model_store import Choice
from totalspineseg_server.registry.records import VersionRecord, images_trained_on, removed_versions
from totalspineseg_server.registry.releases import release_of
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.candidates import (
    PREFIX,
    Candidates,
    Judged,
    Lesson,
    clear,
    not_served,
    publish,
    published,
    refused_since,
    taken_back,
)
from totalspineseg_server.training.judging import Judging, never_seen
from totalspineseg_server.training.material import Material, judged_cases, start_of
from totalspineseg_server.training.remembered import own_answers, replay_of
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.runs import Reporter, begin, only_one
from totalspineseg_server.training.scoring import JudgedCase, Model, reference_cases
from totalspineseg_server.training.site import Site
from totalspineseg_server.training.verdict import GateReport
from totalspineseg_server.trust import Trust

GATE_FILE: Final = "gate.json"
GATE: Final = "gate"
"""Key for scans that are left out of the gate; other cases are left out of a step."""
CALIBRATION: Final = "calibration"


@dataclass(frozen=True)
class Retrained:
    """The result of a retraining.

    Attributes:
        run: Folder of the run: logs, curves, gate report.
        version: Name of the new version.
        report: The gate's report.
        served: Whether the version is in use. A version that passed is not always put into use.
        message: The gate's reason, or why a version that passed was not put into use.
        skipped: Cases that could not be used.
    """

    run: Path
    version: str
    report: GateReport
    served: bool
    message: str
    skipped: tuple[Skipped, ...]


def retrain(
    site: Site,
    settings: RetrainSettings | None = None,
    *,
    replay: Sequence[ScanSource] | None = None,
    reference: Callable[[], Iterable[JudgedCase]] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    show: Callable[[str], None] = lambda line: None,
) -> Retrained:
    """Fine-tune on a site's corrections, and put the result into use if nothing became worse.

    It may be killed at any moment: the next call continues from the last stored state. The version in use is always the
    last one that passed, or one that somebody activated.

    Args:
        site: Studies, corrections and models.
        settings: Settings of the training.
        replay: Scans to replay; None for synthetic spines as far as the weights in use handle them, and otherwise for
            the answers of these weights on scans of the site.
        reference: Makes the reference scans, on which models are compared besides the hold-out; None for the fixed
            synthetic ones.
        should_stop: Called after every iteration.
        show: Called with each line about what the training is doing.

    Raises:
        TrainingError: Another training is running, there is no correction to train on or no such device, or there is
            too little memory.
        WeightsError: The model in use cannot be loaded.
        StorageError: Disk full or no permission; nothing is published.
        Stopped: ``should_stop`` returned True.
    """
    settings = settings or RetrainSettings()
    with only_one(site.training_dir):
        start = start_of(site, settings)
        untrained = tuple(step for step in settings.steps if step not in start.steps)
        run = _Retraining(site, replace(settings, steps=start.steps), start.choices, start.material, untrained, show)
        run.replay = replay
        count = settings.reference_cases
        return run.go(should_stop, reference or (lambda: reference_cases(count)))


class _Retraining:
    """One run, from its material to its verdict."""

    def __init__(
        self,
        site: Site,
        settings: RetrainSettings,
        choices: dict[int, Choice],
        material: Material,
        untrained: tuple[int, ...],
        show: Callable[[str], None],
    ) -> None:
        self.site, self.settings, self.choices, self.material = site, settings, choices, material
        self.untrained = "".join(
            f"; step {step} stays as it is: there is no finished label for it" for step in untrained
        )
        self.parents = {s: ModelFolder.open(choice.root, step=s, name=choice.name) for s, choice in choices.items()}
        self.replay: Sequence[ScanSource] | None = None
        about: dict[str, Any] = {
            "parents": {str(step): self.parents[step].version for step in settings.steps},
            "settings": _plain(asdict(settings)),
            "training": [dict(s.provenance) for s in material.training if set(s.steps) & set(settings.steps)],
        }
        # The device is not part of the key: a run continues on any device.
        anywhere = replace(settings, finetune=replace(settings.finetune, device=""))
        key = content_key(about | {"settings": _plain(asdict(anywhere))})
        self.run = begin(site.training_dir, key, about, resume=settings.resume)
        if f"{PREFIX}{self.run.name}" in removed_versions(site.models):
            # The version was published before a kill and has been removed since. No other weights may get its name.
            self.run = begin(site.training_dir, key, about, resume=False)
        for other in site.training_dir.iterdir():
            if other != self.run:
                # Remove the remains of a killed run that is not continued.
                clear(other)
        self.version = f"{PREFIX}{self.run.name}"
        self.candidates = Candidates(self.run, self.parents)
        self.lessons: dict[int, Lesson] = {}
        self.left_out: dict[Skipped, list[str]] = {}
        self._measured: dict[int, Trust] | None = None
        self.reporter = Reporter(self.run, settings, show)
        self.reporter.tell("preparing cases")

    def go(self, should_stop: Callable[[], bool], reference: Callable[[], Iterable[JudgedCase]]) -> Retrained:
        """Carry out the run; its state always records how it ended."""
        self._report_material()
        try:
            with storage_errors(self.run):
                before = published(self.site.models, self.version)
                if before is None:
                    self.replay = self._remembered() if self.replay is None else self.replay
                    for step in self.settings.steps:
                        self._train(step, should_stop)
                    self.reporter.tell("comparing with the model in use")
                    judged = self._judge(reference)
                    why_not = self._publish(judged)
                else:
                    judged, why_not = before[0], self._take_up(*before)
                if judged.report.publish and not why_not:
                    why_not = self._serve()
        except Stopped as stop:
            self.reporter.end("stopped", str(stop))
            raise
        except Exception as error:
            self.reporter.say(f"run {self.run.name} failed: {error}")
            self.reporter.end("failed", str(error))
            raise
        report, message = judged.report, (why_not or judged.sentence) + self.untrained
        self.reporter.say(f"version {self.version}: {message}")
        served = report.publish and not why_not
        # Report the end before the candidates are removed: a run without an end is continued and needs them.
        self.reporter.end("published" if served else "kept" if report.publish else "refused", message)
        clear(self.run)
        return Retrained(self.run, self.version, report, served, message, tuple(self.left_out))

    def _report_material(self) -> None:
        counts = []
        for step in self.settings.steps:
            lessons = self.material.lessons(step)
            fresh = sum(source.origin is Origin.CORRECTION for source in lessons)
            accepted = sum(source.origin is Origin.ACCEPTED for source in lessons)
            earlier = len(lessons) - fresh - accepted
            unchanged = f" and {accepted} results accepted unchanged" if accepted else ""
            counts.append(f"step {step} from {fresh} new and {earlier} earlier corrections{unchanged}")
        held = f"{len(self.material.holdout)} hold-out scans"
        self.reporter.say(f"run {self.run.name}: {', '.join(counts)}; {held}{self.untrained}")
        for source in self.material.training:
            for finding in source.provenance.get("findings", ()):
                self.reporter.say(
                    f"case {source.name} is used for training, although the checks found: {finding}", case=source.name
                )
        for case in self.material.skipped:
            self._leave_out(case, *(f"step {step}" for step in self.settings.steps))

    def _remembered(self) -> tuple[ScanSource, ...]:
        """Return the scans that are replayed so that the network does not forget."""
        networks = [WarmPredictor(self.parents[step], device=self.settings.finetune.device) for step in STEPS]

        def tell(line: str) -> None:
            self.reporter.tell(line, now=False)

        try:
            found = replay_of(self.site, Model(*networks), self.settings.replay_cases, tell=tell)
        except MemoryShortageError as error:
            raise TrainingError(training_messages.WEIGHTS_FAIL.format(error=error)) from error
        for network in networks:
            network.free()
        spines = sum("synthetic" in source.provenance for source in found)
        self.reporter.say(
            f"to prevent forgetting: {spines} synthetic spines and {len(found) - spines} scans of the site that the "
            "weights in use name without doubt"
        )
        return found

    def _train(self, step: int, should_stop: Callable[[], bool]) -> None:
        lesson = self.candidates.lesson(step) or self._fine_tune(step, should_stop)
        self.lessons[step] = lesson
        for case in lesson.skipped:
            self._leave_out(case, f"step {step}")
        self.reporter.finished(step, lesson.best)

    def _fine_tune(self, step: int, should_stop: Callable[[], bool]) -> Lesson:
        parent, lessons, skipped = self.parents[step], self.material.lessons(step), list[Skipped]()

        def skip(case: Skipped) -> None:
            skipped.append(case)
            self._leave_out(case, f"step {step}")

        work, settings = self.candidates.work(step), self.settings.finetune
        sources = in_order_of_choice(
            [source for source in (*lessons, *(self.replay or ())) if step in source.steps], settings.seed
        )
        draws = draws_of(sources, settings.replay_share, settings.accepted_share)
        wanted = draws.count(settings.iterations * settings.batch_size)
        counted = itertools.count(1)

        def tell(_: str) -> None:
            self.reporter.tell(f"preparing case {next(counted)} for step {step}", now=False)

        finder = self._finder() if step == 2 else None
        prepared = prepare_cases(sources, parent, on_skip=skip, at_most=wanted, before_each=tell, finder=finder)
        cases = store_cases(prepared, parent, work)
        if finder is not None:
            finder.free()
        names = frozenset(case.name for case in cases)
        if names.isdisjoint(source.name for source in lessons):
            raise TrainingError(training_messages.NO_USABLE_CORRECTION.format(step=step))
        trained = fine_tune(parent, cases, work, settings, on_progress=self.reporter.trained, should_stop=should_stop)
        lesson = Lesson(names, tuple(skipped), _plain(trained.best))
        self.candidates.keep(step, trained.weights, lesson, self._trust(step))
        return lesson

    def _trust(self, step: int) -> Trust:
        """Return how far a network is trusted. Its corrections also count: they are measured with the network before
        it, which was not trained on them."""
        parent = self.parents[step]
        if self._measured is None:
            lessons = [[s for s in self.material.lessons(k) if s.origin is Origin.CORRECTION] for k in STEPS]
            fresh = [s for s in lessons[1] if s.name in {other.name for other in lessons[0]}]
            self._measured = {}
            if fresh and set(self.parents) == set(STEPS):
                self._measured = calibrate(
                    self.parents,
                    fresh,
                    device=self.settings.finetune.device,
                    on_skip=lambda case: self._leave_out(case, CALIBRATION),
                    before_each=lambda name: self.reporter.tell(f"measuring the names of {name}", now=False),
                )
        measured = self._measured.get(step)
        return parent.trust if measured is None else joined(parent.trust, measured)

    def _finder(self) -> WarmPredictor:
        """Return the step-1 network that finds the discs for step 2: the one just trained, or the one in use."""
        folder = self.candidates.open(1) if 1 in self.settings.steps else self.parents[1]
        return WarmPredictor(folder, device=self.settings.finetune.device)

    def _leave_out(self, case: Skipped, *places: str) -> None:
        known = self.left_out.setdefault(case, [])
        if not known:
            self.reporter.say(f"case {case.name} left out: {case.reason}", case=case.name, reason=case.reason)
        known += [place for place in places if place not in known]

    def _judge(self, reference: Callable[[], Iterable[JudgedCase]]) -> Judged:
        parents = {folder.name for folder in self.parents.values()}
        fair, learned = never_seen(self.site.models, parents, self.material.holdout)
        holdout, unreadable = judged_cases(fair)
        skipped = (*learned, *unreadable)
        for case in skipped:
            self._leave_out(case, GATE)
        judging = Judging(
            self.site.models,
            self.parents,
            self.candidates,
            self.settings,
            say=self.reporter.say,
            tell=self.reporter.tell,
        )
        seen = frozenset[str]().union(*(images_trained_on(self.site.models, name) for name in parents))

        def own(model: Model, count: int) -> tuple[JudgedCase, ...]:
            answers = own_answers(self.site, model, count, judges=True, seen=seen, tell=self.reporter.tell)
            return tuple(answer.judged() for answer in answers)

        judged = judging.verdict(
            reference,
            holdout,
            own_answers=own,
            unreadable=skipped,
            on_left_out=lambda case: self._leave_out(case, GATE),
        )
        write_json(self.run / GATE_FILE, judged.report.as_json() | {"new_weights": judged.share})
        return judged

    def _publish(self, judged: Judged) -> str:
        """Publish the version; return why it must not be put into use although it passed, or ""."""
        why_not = ""
        if judged.report.publish:
            why_not = not_served(self.version, self.choices, self.site.models.in_use_instead(self.choices))
        publish(self.site.models, self._record(judged, why_not), self.candidates)
        return why_not

    def _take_up(self, judged: Judged, record: Mapping[str, Any]) -> str:
        """Continue with a version that an earlier process published; the result is that of ``_publish``."""
        for step in self.settings.steps:
            lesson = self.candidates.lesson(step)
            self.reporter.finished(step, lesson.best if lesson else None)
        for entry in record.get("skipped", ()):
            self._leave_out(Skipped(entry["case"], entry["reason"]), *entry.get("left_out_of", ()))
        if not judged.report.publish:
            return ""
        models, name = self.site.models, self.version
        return str(record.get("not_served", "")) or taken_back(models, name) or refused_since(models, name)

    def _serve(self) -> str:
        """Put the version into use; return why that was not possible, or ""."""
        store = self.site.models
        names = dict.fromkeys(self.settings.steps, self.version)
        why_not = not_served(self.version, self.choices, store.activate_in_place_of(self.choices, names))
        if store.weights and not why_not:
            self.reporter.say(training_messages.FIXED_WEIGHTS.format(weights=store.weights, version=self.version))
        return why_not

    def _record(self, judged: Judged, why_not: str) -> VersionRecord:
        steps = self.settings.steps
        return VersionRecord(
            name=self.version,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            steps=steps,
            parents={str(s): {"name": self.parents[s].name, "version": self.parents[s].version} for s in steps},
            models={},
            training=self._trained_on(self.material.training),
            replay=self._trained_on(self.replay or ()),
            skipped=[
                {"case": case.name, "reason": case.reason, "left_out_of": places}
                for case, places in self.left_out.items()
            ],
            settings=cast(dict[str, Any], _plain(asdict(self.settings))),
            gate=judged.report.as_json(),
            not_served=why_not,
            run=self.run.name,
            new_weights=judged.share,
            releases={
                str(s): release for s in steps if (release := release_of(self.site.models, self.parents[s].name, s))
            },
        )

    def _trained_on(self, sources: Iterable[ScanSource]) -> list[dict[str, Any]]:
        """Return the cases that networks were trained on, each with the steps that learned from it."""
        steps = {s.name: [step for step in self.lessons if s.name in self.lessons[step].cases] for s in sources}
        return [dict(s.provenance) | {"taught": steps[s.name]} for s in sources if steps[s.name]]


def _plain(value: Any) -> Any:
    """Return a value for JSON: tuples as lists, nan as null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value != value:
        return None
    return value
