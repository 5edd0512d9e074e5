"""Define the MONAI Label app. Constructing it is cheap and touches no GPU."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi import HTTPException
from monailabel.config import settings as host_settings
from monailabel.interfaces.app import MONAILabelApp

from totalspineseg_server import places
from totalspineseg_server.activelearning.rounds import ImageScoring, SpineBatch, is_result_of
from totalspineseg_server.activelearning.scorer import Scorer
from totalspineseg_server.activelearning.scores import WHOLE_MODEL, Scores
from totalspineseg_server.activelearning.selection import FinishedLevels, counts_of, rarity
from totalspineseg_server.activelearning.strategies import (
    DoubtfulFirst,
    First,
    Last,
    MostToLearn,
    Offers,
    Random,
    SurestFirst,
)
from totalspineseg_server.anatomy import NAME_OF
from totalspineseg_server.bids import subject_of
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore, is_safe_tag
from totalspineseg_server.corrections.datastore import SpineDatastore
from totalspineseg_server.corrections.ids import HISTORY_DIR, STUDIES_DIR, is_usable_id
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.predictions import MapStore, PredictionStore
from totalspineseg_server.corrections.receipts import Receipt, Receipts, Sender, Uploads
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import (
    ImageError,
    SettingError,
    StorageError,
    TotalSpineSegError,
    UnknownImageError,
    WeightsError,
)
from totalspineseg_server.files import sha256_of
from totalspineseg_server.infers.http import NOT_FOUND, UnknownLabelError
from totalspineseg_server.infers.listed import ALWAYS_LISTED
from totalspineseg_server.infers.published import FullTask, Step1Task, Step2Task
from totalspineseg_server.infers.review import ReviewTask
from totalspineseg_server.infers.services import Networks, Services
from totalspineseg_server.infers.sessions import TrustedPath, remove_expired
from totalspineseg_server.infers.settings import doubtful_names_of, result_tag
from totalspineseg_server.pacs.outcomes import Outcome, Outcomes
from totalspineseg_server.processes import end_with_parent
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.releases import warning_of, weights_text
from totalspineseg_server.training.holdout import read_split
from totalspineseg_server.training.runs import is_running
from totalspineseg_server.training.site import Site
from totalspineseg_server.training.train_task import SpineTrainTask
from totalspineseg_server.version import VERSION
from totalspineseg_server.worklist.lab import open_lab

if TYPE_CHECKING:
    from totalspineseg_server.io.dicom.seg_object import SegReference

logger = logging.getLogger(__name__)

CITATIONS: Final = (
    "Cite: Warszawer et al., TotalSpineSeg, 2025, doi 10.13140/RG.2.2.31318.56649 and 10.5281/zenodo.13894354; "
    "Isensee et al., nnU-Net, Nature Methods 18(2), 203-211, 2021; Diaz-Pinto et al., MONAI Label, arXiv 2203.12362."
)


class App(MONAILabelApp):  # type: ignore[misc]
    """TotalSpineSeg on a folder of studies.

    Args:
        app_dir: The app folder; its models are in ``model``.
        studies: Folder of images, or a DICOMweb address.
        conf: ``weights`` ("starter", an installed version, or a folder), ``device``, ``runtime``.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        # MONAI Label builds another app for each training and batch inference, in a process that would outlive a killed
        # server.
        end_with_parent()
        self._settings = dict(conf or {})
        root = history_root(studies, self._settings)
        self._networks = self.make_networks(Path(app_dir), self._settings)
        self._corrections = CorrectionStore(root)
        self._levels = FinishedLevels(self._corrections)
        self._predictions = PredictionStore(root)
        self._maps = MapStore(root)
        self._receipts = Receipts(root)
        self._datastore = store = self.open_studies(studies, root)
        uploads = Uploads(signed_in=host_settings.MONAI_LABEL_AUTH_ENABLE)
        self.inbox = Inbox(self._receipts, self._corrections, self._predictions, self._maps, store, uploads=uploads)
        self.outcomes = Outcomes()
        names = doubtful_names_of(self._settings.get("doubtful_names") or "")
        self._services = Services(self._networks, self._predictions, self._maps, store, self.weights_text, names)
        scores = Scores(root, self._predictions, self._maps)
        self._scorer = Scorer(scores, self._services, self.infer)
        models = ModelStore(Path(app_dir) / "model", weights=self._settings.get("weights") or "")
        self._weights_texts: dict[tuple[tuple[int, str], ...], str] = {}
        self._site = Site(root, models, self._corrections, store.image_file, self._subject)
        self.lab = open_lab(root, store, scores, self._maps, self._corrections, self.inbox)
        super().__init__(
            app_dir,
            studies,
            dict(conf or {}),
            name="TotalSpineSeg",
            description=self._description(),
            version=VERSION,
            labels=[NAME_OF[code] for code in ALWAYS_LISTED],
        )
        # Otherwise MONAI Label would predict every image in a process of its own at each start, after each next sample
        # and each training, while readers wait for the processor.
        self._auto_update_scoring = False

    def make_networks(self, app_dir: Path, conf: Mapping[str, str]) -> Networks:
        """Return the networks that serve requests; nothing is loaded yet."""
        from totalspineseg_server.nnunet.networks import Networks as WarmNetworks
        from totalspineseg_server.nnunet.runtimes import runtime_of

        store = ModelStore(app_dir / "model", weights=conf.get("weights") or "")
        return WarmNetworks(
            store,
            device=conf.get("device") or "auto",
            runtime=runtime_of(conf.get("runtime") or ""),
            whole_image=bool(conf.get("whole_image")),
        )

    @property
    def models(self) -> ModelStore:
        """The versions of the weights."""
        return self._site.models

    @property
    def training_dir(self) -> Path:
        """Folder of the trainings on these studies; it may not exist yet."""
        return self._site.training_dir

    def judge_words(self, version: str) -> list[str]:
        """Return the arguments of ``totalspineseg models judge`` for a version, beside these studies."""
        folder = self._settings.get("work") or ("" if is_address(self.studies) else self.studies)
        # Without labels there are no hold-out scans, and the folder has no history yet.
        site = [str(folder or self._site.history)] if self._site.history.is_dir() else []
        device = self._settings.get("device") or "auto"
        return [version, *site, "--device", device, "--data-dir", str(self._site.models.model_dir)]

    def warm_up(self) -> None:
        """Load the networks before a request needs them. If there are no usable weights, the request itself says so."""
        logger.info(self.weights_text())
        try:
            self._networks.warm_up()
        except WeightsError as error:
            logger.warning("The networks could not be loaded: %s", error)

    def free_networks(self) -> None:
        """Release the networks' memory before a training starts; the next request loads them again."""
        self._networks.free()

    def is_training(self) -> bool:
        """Return whether a process trains on these studies, whoever started it."""
        return is_running(self._site.training_dir)

    def info(self) -> dict[str, Any]:
        """Return the information about the app and its models that clients display; never "config", which would
        override requests.
        """
        return {**super().info(), "description": self._description(), "warning": self.weights_warning()}

    def _description(self) -> str:
        return f"Spine MRI: every vertebra, disc, the cord and the canal by name. {self.weights_text()} {CITATIONS}"

    def weights_text(self) -> str:
        """Return one sentence about the weights in use, for clients; nothing is loaded."""
        try:
            names = {step: self._networks.folder(step).name for step in (1, 2)}
        except WeightsError as error:
            return f"No weights are in use: {str(error).rstrip('.')}."
        # Versions do not change, so their records are read once.
        key = tuple(names.items())
        if key not in self._weights_texts:
            self._weights_texts[key] = weights_text(self._site.models, names)
        return self._weights_texts[key]

    def weights_warning(self) -> str:
        """Return the warning that results are not for patients; "" if the weights in use have none."""
        try:
            return warning_of(self._site.models, [self._networks.folder(step).name for step in (1, 2)])
        except WeightsError:
            return ""

    def init_datastore(self) -> SpineDatastore:
        """Return the studies, which are already open."""
        return self._datastore

    def open_studies(self, studies: str, root: Path) -> SpineDatastore:
        """Return the studies: the folder, guarded against lost data, or the PACS.

        Args:
            studies: The folder, or its address.
            root: Folder of the history.
        """
        if is_address(studies):
            from totalspineseg_server.pacs.cache import MAX_GB
            from totalspineseg_server.pacs.configured_store import pacs_datastore

            room = float(self._settings.get("cache_gb") or MAX_GB)
            return pacs_datastore(root, is_needed=self._is_needed, cache_gb=room, corrections=self._corrections)
        work = self._settings.get("work")
        return StudiesDatastore(
            str(Path(work) / STUDIES_DIR) if work else studies,
            images=studies if work else "",
            auto_reload=host_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=host_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            corrections=self._corrections,
        )

    def _is_needed(self, series: str) -> bool:
        """Return whether a series of the PACS must stay here: it was corrected, or its patient's scans are used for
        training or for comparing models."""
        if self._corrections.any_of(series):
            return True
        try:
            return self._subject(series) in read_split(self._site.holdout_file).role
        except StorageError:
            # The patients of the hold-out are not known now.
            return True

    def cleanup_sessions(self) -> None:
        """Remove expired sessions; MONAI Label calls this at the start and every five minutes."""
        if self._sessions is not None:
            remove_expired(self._sessions)

    def init_infers(self) -> dict[str, Any]:
        """Return the models by name. MONAI Label would look for them in a folder of its own."""
        return {
            WHOLE_MODEL: FullTask(self._services),
            f"{WHOLE_MODEL}_review": ReviewTask(self._services),
            f"{WHOLE_MODEL}_step1": Step1Task(self._services),
            f"{WHOLE_MODEL}_step2": Step2Task(self._services),
        }

    def init_trainers(self) -> dict[str, Any]:
        """Return the trainers of the models that have one."""
        steps = {WHOLE_MODEL: (1, 2), f"{WHOLE_MODEL}_step1": (1,), f"{WHOLE_MODEL}_step2": (2,)}
        return {model: SpineTrainTask(self._site, steps=trained) for model, trained in steps.items()}

    def check_training(self, model: str, request: Mapping[str, Any]) -> None:
        """Check that a training by an existing trainer can begin; see ``SpineTrainTask.check``, also for the errors."""
        self._trainers[model].check(request)

    def init_strategies(self) -> dict[str, Any]:
        """Return the orders in which images are offered."""
        offers, known = Offers(), self._scorer.known
        return {
            "first": First(offers),
            "random": Random(offers),
            "last": Last(offers),
            "doubtful_first": DoubtfulFirst(offers, known),
            "surest_first": SurestFirst(offers, known),
            "most_to_learn": MostToLearn(offers, known, self._finished_levels),
        }

    def init_scoring_methods(self) -> dict[str, Any]:
        """Return the scores that can be computed for all images in the background."""
        return {
            "doubt": ImageScoring(
                "How doubtful the result for each image is: uncertain names, findings, and differences between the two "
                "steps and between the image and its mirror image. Images that these weights have not predicted yet "
                "are predicted first.",
                self._scorer.fill,
            ),
            "doubt_scale": ImageScoring(
                "How doubtful each result is, as for 'doubt', and how much it changes if the image is scaled like that "
                "of a smaller person. Each image is predicted once more.",
                self._scorer.fill_scale,
            ),
        }

    def init_batch_infer(self) -> SpineBatch:
        """Return a batch inference that works without a GPU and skips images that are done."""
        return SpineBatch(self._done_before)

    def scoring_progress(self) -> dict[str, int]:
        """Return the number of images, and how many the weights in use have scored; see ``Scorer.progress``."""
        return self._scorer.progress(self._datastore.list_images())

    def batch_progress(self, images: Sequence[str], begun: str) -> dict[str, Any]:
        """Return the progress of a batch over these images (all if none are named); see ``Scorer.round``."""
        return self._scorer.round(images or self._datastore.list_images(), begun)

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a model.

        Args:
            request: ``model``; ``image``: the id of an image of the studies, or a ``TrustedPath`` from the front, never
                a path that a client names; ``label``: also a ``TrustedPath``, or the tag of a label of the image;
                settings; ``save_label`` and ``label_tag`` to store the result.
            datastore: Unused; there is only the app's own.

        Returns:
            ``file`` (temporary), ``label``, ``tag`` and ``params``.

        Raises:
            TotalSpineSegError: The request cannot be served.
            HTTPException: There is no such model.
        """
        model = request.get("model")
        task = self._infers.get(model)
        if task is None:
            raise HTTPException(NOT_FOUND, f"There is no model {model!r}. Use one of {', '.join(self._infers)}.")
        image = request.get("image")
        with self._services.progress.of(str(model), "" if isinstance(image, TrustedPath) else str(image or "")):
            return self._infer(task, request)

    def infer_progress(self) -> dict[str, Any] | None:
        """Return the progress of the current inference, or None; see ``Progress.as_json``."""
        return self._services.progress.as_json()

    def _infer(self, task: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a model, score its result, and save it if the request says so; see ``infer``."""
        model, prepared = request.get("model"), self._prepared(request)
        tag = result_tag(prepared, task.part)
        image_id, scored = str(prepared["image_id"]), model == WHOLE_MODEL
        fingerprint = self._datastore.fingerprint(image_id) if scored and image_id else ""
        try:
            file, report = task(prepared)
        except TotalSpineSegError as error:
            if fingerprint:
                self._scorer.refused(image_id, fingerprint, Path(prepared["image"]), error)
            raise
        if fingerprint:
            self._scorer.predicted(image_id, fingerprint, report)
        label = file
        if tag:
            info = {"model": model, "params": report, IMAGE_HASH: report.get("image_sha256", "")}
            try:
                label = self._datastore.save_label(prepared["image_id"], file, tag, info)
            except BaseException:
                # Nothing else knows about this file.
                Path(file).unlink(missing_ok=True)
                raise
        return {"label": label, "tag": tag or "original", "file": file, "params": report}

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the image to annotate next; in a PACS only volumes are offered."""
        sample = self._next_sample(request)
        sample.update(self._score_note(sample))
        self.inbox.uploads.record_offer(str(request.get("client_id") or ""), str(sample.get("id") or ""))
        return sample

    def _next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._datastore.send_waiting()
        for _ in range(len(self._datastore.list_images()) + 1):
            try:
                sample: dict[str, Any] = super().next_sample(request)
            except ImageError:
                # The datastore has removed it from its list.
                continue
            return sample
        return {}

    def _score_note(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``score`` that an image is offered with, and how rare its levels are; empty if it has none."""
        score = self._scorer.known([sample["id"]]).get(sample["id"]) if sample else None
        if score is None:
            return {}
        rare = rarity(score.codes, counts_of(self._finished_levels()))
        return {"score": {**score.as_note(), "rarity": round(rare, 4)}}

    def _finished_levels(self) -> list[frozenset[int]]:
        """Return the structures in each finished label."""
        return self._levels.of(self._datastore.get_labeled_images())

    def _done_before(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the result of an earlier run of a batch request by the weights in use; None if it is still to be
        done."""
        model, image_id = request["model"], request["image"]
        task = self._infers.get(model)
        score = self._scorer.current(image_id) if model == WHOLE_MODEL else None
        if score is not None and score.refused:
            return {"error": score.message}
        if task is None:
            return None
        tag = result_tag(request, task.part)
        is_stored = self._datastore.label_file(image_id, tag) is not None
        info = self._datastore.get_label_info(image_id, tag)
        if not is_stored or not is_result_of(info, request, self._scorer.versions()):
            return None
        # A label from before scores were stored, or whose score was deleted, still has its record.
        return self._scorer.fill(image_id) if model == WHOLE_MODEL else {"skipped": True}

    def add_image(self, image_id: str, file: Path, info: Mapping[str, Any], sender: Sender) -> str:
        """Add an image to the studies; see ``StudiesDatastore.add_image``.

        Raises:
            FileExistsError: Another image has this id.
        """
        content, uploads = sha256_of(file), self.inbox.uploads
        try:
            added: str = self._datastore.add_image(image_id, str(file), dict(info))
        except FileExistsError:
            uploads.record_refusal(uploads.name_of(sender), image_id, content)
            raise
        uploads.record_upload(uploads.name_of(sender), added, content)
        return added

    def unused_submissions(self) -> list[tuple[Receipt | Correction, str, str]]:
        """Return the submissions that are not used, oldest first, each with its status ("parked", "unfiled", "waiting")
        and the reason."""
        parked = [(one, "parked", one.reason) for one in self._corrections.all() if one.status == "parked"]
        unfiled = [(one.receipt, "unfiled", one.reason) for one in self._receipts.unfiled()]
        waiting = [(one.receipt, "waiting", one.reason) for one in self._receipts.waiting()]
        return sorted((*parked, *unfiled, *waiting), key=lambda unused: unused[0].id)

    def withdraw_label(self, image_id: str, tag: str, user: str) -> tuple[str, ...]:
        """Take back the labels of an image under a tag; see ``Inbox.withdraw``.

        Raises:
            UnknownLabelError: There is no such label now, and there never was.
            StorageError: The withdrawal could not be stored.
        """
        if not (is_usable_id(image_id) and is_safe_tag(tag)):
            raise UnknownLabelError(image_id, tag)
        is_listed = tag in self._datastore.get_labels_by_image_id(image_id)
        withdrawn = self.inbox.withdraw(image_id, tag, user=user)
        if not is_listed and not withdrawn:
            raise UnknownLabelError(image_id, tag)
        return withdrawn

    def submit_segmentation(self, file: Path, reference: "SegReference", sender: Sender) -> Outcome:
        """Accept a DICOM segmentation that a viewer stored in the PACS; see ``pacs.submissions``."""
        from totalspineseg_server.pacs.submissions import submit_segmentation

        return submit_segmentation(self._datastore, self.inbox.submit, self._corrections, file, reference, sender)

    def segmentation(self, image_id: str, file: Path, report: Mapping[str, Any]) -> bytes:
        """Return a result as DICOM SEG.

        Args:
            image_id: Series of the PACS.
            file: The result in wire ids, on the grid of the series.
            report: The result's report.

        Raises:
            SettingError: The image is not a series of a PACS.
        """
        folder = self._datastore.series_folder(image_id) if image_id else None
        if folder is None:
            raise SettingError("Only a series of a PACS can be sent as DICOM SEG. Request the result as an image.")
        from totalspineseg_server.pacs.results import result_segmentation

        return result_segmentation(file, folder, report)

    def _prepared(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request; it has paths only where the server itself put them."""
        prepared = dict(request)
        image = request.get("image")
        if isinstance(image, TrustedPath):
            prepared |= {"image": str(image), "image_id": "", "save_label": False}
        else:
            image_id = image if isinstance(image, str) else ""
            path = self._datastore.image_file(image_id)
            if path is None:
                raise UnknownImageError(image_id)
            prepared |= {"image": str(path), "image_id": image_id}
        label = prepared.pop("label", None)
        prepared["label_from"] = ""
        if isinstance(label, TrustedPath):
            prepared["label"] = str(label)
        elif label:
            if not (isinstance(label, str) and is_safe_tag(label)):
                raise SettingError(f"expected a label file or the tag of a label, got {label!r}")
            prepared["label_from"] = label
        return prepared

    def _subject(self, image_id: str) -> str:
        """Return the subject of an image: the patient, if known. All images of a patient are used for training, or all
        for comparing models.
        """
        return self._datastore.subject(image_id) or subject_of(image_id)


def is_address(studies: str) -> bool:
    """Return whether the studies are on a server rather than in a folder."""
    return re.match(r"https?://", studies) is not None


def history_root(studies: str, conf: Mapping[str, str]) -> Path:
    """Return the folder for the history of these studies: ``conf["work"]``, or else inside the studies folder.

    Corrections must outlive a cleaned cache, so for studies on a server it is in the user's data folder. A history that
    version 0.1 began in another folder is continued there.
    """
    if conf.get("work"):
        return Path(conf["work"])
    if not is_address(studies):
        return Path(studies) / HISTORY_DIR
    name = hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:16]
    earlier = Path.home() / ".local" / "share" / "totalspineseg" / name
    return earlier if earlier.is_dir() else places.data_dir() / name
