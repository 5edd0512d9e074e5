"""Handle a submission: store it, read it, map its names to codes, check it, file it, and show it to clients."""

import asyncio
import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.attribution import Attribution, resolve_image
from totalspineseg_server.corrections.checks import beside_prediction, finished_meanwhile, is_unchanged
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore, Received
from totalspineseg_server.corrections.datastore import is_safe_tag
from totalspineseg_server.corrections.displayed_corrections import FINAL_TAG, DisplayedCorrections, display_tag, info_of
from totalspineseg_server.corrections.predictions import DrawnMaps, PredictionStore
from totalspineseg_server.corrections.receipts import SEG_SUFFIX, Claims, Receipt, Receipts, Sender, Waiting
from totalspineseg_server.corrections.renames import follow_rename
from totalspineseg_server.corrections.submission import (
    Mapped,
    is_marked_accepted,
    map_names,
    read_submission,
    submitted_grid,
)
from totalspineseg_server.corrections.unreviewed import (
    ACCEPTED_NAMES,
    ALL,
    UNREVIEWED_NAMES,
    with_unreviewed,
    with_untouched,
)
from totalspineseg_server.errors import (
    GridError,
    ImageError,
    LabelError,
    MemoryShortageError,
    StorageError,
    SubmissionError,
    TotalSpineSegError,
    UnknownImageError,
)
from totalspineseg_server.files import FULL_DISK, sha256_of
from totalspineseg_server.geometry import Grid, LabelArray, same_voxels
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.volumes import read_image
from totalspineseg_server.locks import NamedLocks, file_lock
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.segments import Submission

logger = logging.getLogger(__name__)

UNCHANGED_PARAMETER: Final = "unchanged"
"""Parameter of a submission: true if its author looked at the prediction and finished it as it was."""
POLL_SECONDS: Final = 0.1
"""Time between two checks whether submissions are finished when the server ends, seconds."""

Lint = Callable[[LabelArray, Grid], tuple[Mapping[str, Any], ...]]
"""A function that checks a label map in codes, with ``UNREVIEWED`` where nobody checked."""
Hide = Callable[[str, str], None]
"""``hide(image_id, tag)`` stops showing a label under the tag."""


@dataclass(frozen=True)
class Studies:
    """The images that submissions belong to.

    Attributes:
        image_file: ``image_file(image_id)`` is the file or folder of an image, or None.
        publish: ``publish(image_id, file, tag, info)`` shows a label map in wire ids under a tag of the datastore.
        sources: ``sources(image_id)`` is the file or folder with the DICOM files of an image, or None; a DICOM
            segmentation may place its frames by references to them.
        offered: ``offered(image_id, sender)`` says how the image was offered to the sender (see ``Correction``), or
            None.
    """

    image_file: Callable[[str], Path | None]
    publish: Callable[[str, str, str, dict[str, Any]], object]
    sources: Callable[[str], Path | None] = lambda image_id: None
    offered: Callable[[str, Sender], Mapping[str, Any] | None] = lambda image_id, sender: None


@dataclass(frozen=True)
class _Label:
    """A submission that was read and mapped."""

    mapped: Mapped
    grid: Grid
    findings: tuple[Mapping[str, Any], ...]
    renumbered: Mapping[str, Any] | None


class Ongoing:
    """Counts the submissions in progress in all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more submission while this block runs."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    async def finish(self, seconds: float) -> bool:
        """Wait until no submission is in progress, but no longer than these seconds.

        Returns:
            Whether none is in progress.
        """
        deadline = time.monotonic() + seconds
        while self._count and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return not self._count


class Inbox:
    """Takes submissions for a studies folder: it first stores them, and reads them afterwards.

    Args:
        receipts: Store of submissions that are not read yet.
        corrections: Store of submissions that were read.
        predictions: Predictions that they may correct.
        lint: Checks a label.
        maps: Recent output of the networks.
        studies: The images.

    Attributes:
        ongoing: The submissions in progress.
    """

    def __init__(
        self,
        receipts: Receipts,
        corrections: CorrectionStore,
        predictions: PredictionStore,
        lint: Lint,
        maps: DrawnMaps,
        studies: Studies,
    ) -> None:
        self._receipts = receipts
        self._corrections = corrections
        self._displayed = DisplayedCorrections(corrections)
        self._attribution = Attribution(predictions, maps)
        self._lint = lint
        self._studies = studies
        self.ongoing = Ongoing()
        self._locks = NamedLocks()
        self._guard = threading.Lock()
        self._in_work: set[str] = set()

    def submit(
        self,
        image_id: str,
        file: Path,
        *,
        tag: str,
        sender: Sender,
        params: Mapping[str, Any],
        claims: Claims | None = None,
        info: Mapping[str, Any] | None = None,
        fault: str = "",
    ) -> Correction:
        """Store a submission, read it, and show it to clients if it can be used.

        If the same submission is sent again after the server failed to read it, it is read again, not stored twice.

        Args:
            image_id: Image for which it was sent.
            file: The submitted file; one that ends in .dcm is a DICOM segmentation. Not modified.
            tag: Tag under which it was sent. A step-1 map gets STEP1_TAG instead, or, if it is unfinished, a tag with
                this ending.
            sender: Who sent it.
            params: Parameters sent with it: ``label_info``; ``prediction`` if the client knows it; ``unreviewed``,
                names of structures nobody checked; ``accepted``, names of structures that are right as predicted, or
                "all".
            claims: Other images to which it may belong.
            info: Other information that is shown with the label.
            fault: Why it cannot be used, if that is known already; otherwise empty.

        Returns:
            The record, which is stored already.

        Raises:
            LabelError: The label cannot be used, or its image is not a volume; the message has the reason and says
                where the file is.
            UnknownImageError: There is no such image; the file is stored for a while.
            StorageError: It could not be stored, or it was stored and could not be read or shown; the message says
                which.
            MemoryShortageError: It was stored, but there was not enough memory to read it.
            SubmissionError: It was stored, but could not be read because of another fault of the server.
        """
        sent: dict[str, Any] = {"tag": tag, "sender": sender, "params": params, "fault": fault}
        with self.ongoing.one():
            return self._submit(image_id, file, sent, claims or Claims(), info or {})

    def interpret_waiting(self, *, again: bool) -> tuple[Waiting, ...]:
        """Read the submissions that could not be read when they were sent.

        Args:
            again: Whether to try again those that failed before; a submission that ended the server may end it again.

        Returns:
            The submissions that still wait.
        """
        with self.ongoing.one():
            for waiting in self._receipts.waiting():
                if again or waiting.reason == answers.NOT_TRIED:
                    self._interpret_again(waiting.receipt)
        return self._receipts.waiting()

    def _interpret_again(self, receipt: Receipt) -> None:
        """Read a waiting submission, unless somebody is reading it now."""
        if not self._begin(receipt.id):
            return
        try:
            with self._reading(receipt, wait=False) as is_free:
                if not is_free:
                    logger.info("Another server is reading submission %s", receipt.id)
                    return
                if not self._receipts.folder(receipt).is_dir():
                    # It was sent again and has been read since.
                    return
                self._receipts.fail(receipt, answers.STOPPED_WHILE_READING)
                correction = self._interpret(receipt)
            logger.info("Waiting submission %s is now a correction of %r", receipt.id, correction.image)
        except TotalSpineSegError as error:
            logger.warning("Waiting submission %s: %s", receipt.id, error)
        finally:
            self._done(receipt.id)

    def _submit(
        self, image_id: str, file: Path, sent: Mapping[str, Any], claims: Claims, info: Mapping[str, Any]
    ) -> Correction:
        sha256 = sha256_of(file)
        with self._guard:
            receipt = self._waiting_same(image_id, sha256, sent)
            images = filter(None, {image_id, *claims.renamed})
            earlier = {*self._in_work, *(known for image in images for known in self._corrections.ids(image))}
            receipt_id = self._receipts.new_id(earlier) if receipt is None else receipt.id
            self._in_work.add(receipt_id)
        try:
            if receipt is None:
                receipt = self._receipts.keep(
                    receipt_id, image_id, file, raw_sha256=sha256, **sent, info=info, claims=claims
                )
            with self._reading(receipt):
                if not self._receipts.folder(receipt).is_dir():
                    return self._read_elsewhere(receipt)
                return self._interpret(receipt)
        finally:
            self._done(receipt_id)

    def _waiting_same(self, image_id: str, sha256: str, sent: Mapping[str, Any]) -> Receipt | None:
        """Return an identical submission if one waits and is not being read now."""
        for receipt in (waiting.receipt for waiting in self._receipts.waiting()):
            known = {"tag": receipt.tag, "sender": receipt.sender, "params": receipt.params, "fault": receipt.fault}
            same = (receipt.image, receipt.raw_sha256, known) == (image_id, sha256, sent)
            if same and receipt.id not in self._in_work:
                return receipt
        return None

    def _begin(self, receipt_id: str) -> bool:
        with self._guard:
            is_free = receipt_id not in self._in_work
            self._in_work.add(receipt_id)
            return is_free

    def _done(self, receipt_id: str) -> None:
        with self._guard:
            self._in_work.discard(receipt_id)

    @contextmanager
    def _reading(self, receipt: Receipt, *, wait: bool = True) -> Iterator[bool]:
        """Lock a submission while it is read and shown, because another server may serve the same folder.

        Args:
            receipt: The submission.
            wait: Whether to wait until another server has read it.

        Yields:
            Whether it is locked; False if another server reads it and ``wait`` is False.

        Raises:
            StorageError: It cannot be locked.
        """
        file = self._receipts.lock_file(receipt)
        with ExitStack() as held:
            try:
                stream = held.enter_context(file_lock(file, math.inf if wait else 0))
            except StorageError as error:
                raise _failure(error, receipt) from error
            try:
                yield stream is not None
            finally:
                if stream is not None and not self._receipts.folder(receipt).is_dir():
                    # The submission was read. Others that wait for the lock notice that its folder is gone.
                    with suppress(OSError):
                        file.unlink()

    def _read_elsewhere(self, receipt: Receipt) -> Correction:
        """Return the correction that another server made from a submission.

        Raises:
            LabelError: It cannot be used, or belongs to no image.
        """
        images = filter(None, {receipt.image, *receipt.claims.renamed})
        found = (c for image in images for c in self._corrections.of_image(image) if c.id == receipt.id)
        correction = next(found, None)
        if correction is None:
            raise LabelError(answers.not_used(receipt.id))
        if correction.status == "parked":
            raise _parked(correction)
        return correction

    def _interpret(self, receipt: Receipt) -> Correction:
        """Read a stored submission, file it, and show it; see ``submit``."""
        with self._waits_on_failure(receipt):
            received, judged = self._judged(receipt)
        # If two are read at once, the one that is shown must be the one that counts as newer.
        with self._locks.of(received.image_id):
            if isinstance(judged, TotalSpineSegError):
                with self._waits_on_failure(receipt):
                    parked = self._corrections.park(received, judged)
                raise _parked(parked) from judged
            tag = display_tag(receipt.tag, judged.mapped.step)
            with self._waits_on_failure(receipt):
                findings = (
                    *judged.findings,
                    *finished_meanwhile(self._displayed.under(received.image_id, tag), received),
                )
                later = self._later(received.image_id, tag, receipt.id)
                correction = self._corrections.accept(received, judged.mapped, judged.grid, findings, judged.renumbered)
            if not later:
                self._publish(correction, receipt.info)
            elif withdrawn := self._corrections.withdrawals.of_image(received.image_id) & later:
                # It had waited, and somebody withdrew the labels that were sent after it. None of them should be shown.
                logger.info("Correction %s is withdrawn, as %s was", correction.id, max(withdrawn))
                self._corrections.withdrawals.add(received.image_id, correction.id, correction.user)
        return correction

    @contextmanager
    def _waits_on_failure(self, receipt: Receipt) -> Iterator[None]:
        """If this block fails, let the submission wait, with the reason, and tell the sender that it is stored."""
        try:
            yield
        except UnknownImageError as error:
            self._receipts.set_aside(receipt, str(error))
            raise UnknownImageError(receipt.image, answers.kept_for_a_while(receipt.id)) from error
        except ImageError as error:
            # The image is not a volume, and will not become one.
            self._receipts.set_aside(receipt, str(error))
            raise LabelError(answers.not_usable(str(error), receipt.id)) from error
        except Exception as error:
            logger.exception("Submission %s for image %r could not be read", receipt.id, receipt.image)
            self._receipts.fail(receipt, f"{type(error).__name__}: {error}")
            raise _failure(error, receipt) from error

    def _judged(self, receipt: Receipt) -> tuple[Received, _Label | TotalSpineSegError]:
        """Return a submission with its label, or with the reason why it cannot be used."""
        folder, fault = self._receipts.folder(receipt), receipt.fault
        if not fault and not is_safe_tag(receipt.tag):
            fault = answers.unsafe_tag(receipt.tag)
        try:
            image_id = resolve_image(
                receipt.image,
                receipt.claims,
                lambda other: self._studies.image_file(other) is not None,
                lambda other: self._is_on_grid(folder / receipt.raw, other),
            )
        except LabelError as error:
            image_id, fault = receipt.image, str(error)
        if image_id != receipt.image:
            logger.info(
                "A label sent for %r belongs to %r. The upload of that image under the first name was refused",
                receipt.image,
                image_id,
            )
        image = self._studies.image_file(image_id)
        if image is None:
            raise UnknownImageError(image_id)
        received = Received(receipt, folder, image_id, sha256_of(image))
        offered = self._studies.offered(image_id, receipt.sender)
        received = replace(received, prediction=self._attribution.likely(received), offered=offered)
        if fault:
            return received, LabelError(fault)
        try:
            self._attribution.require_of_image(received)
            return self._label(received, image)
        except (LabelError, GridError, ImageError) as error:
            return received, error

    def _is_on_grid(self, label: Path, image_id: str) -> bool:
        """Return whether a submitted file is on the grid of an image; False if either is missing or cannot be read."""
        image = self._studies.image_file(image_id)
        try:
            return image is not None and same_voxels(submitted_grid(label), read_image(image).grid)
        except ImageError:
            return False

    def _label(self, received: Received, image: Path) -> tuple[Received, _Label]:
        params, grid = received.receipt.params, read_image(image).grid
        submission = _read(received.file, grid, params.get("label_info"), self._studies.sources(received.image_id))
        followed = None
        if (corrected := self._attribution.corrected(received, submission, grid)) is not None:
            received = replace(received, prediction=corrected.prediction)
            followed = None if corrected.compared is None else follow_rename(corrected.compared)
        unreviewed, accepted = params.get(UNREVIEWED_NAMES), params.get(ACCEPTED_NAMES)
        accepted = ALL if is_marked_accepted(submission) else accepted
        if followed is not None:
            submission = followed.submission
            unreviewed, accepted = followed.now(unreviewed), followed.now(accepted)
        mapped = with_unreviewed(map_names(submission, grid), unreviewed)
        compared, marked = (None, ()) if corrected is None else (corrected.compared, corrected.prediction.marked)
        mapped = with_untouched(mapped, compared, accepted, marked=marked)
        if params.get(UNCHANGED_PARAMETER) is True:
            mapped = replace(mapped, unchanged=compared is not None and is_unchanged(compared, mapped))
        lint = self._lint(mapped.codes, grid)
        findings = (*beside_prediction(corrected, mapped, lint), *lint, *_replaced(received))
        return received, _Label(mapped, grid, findings, None if followed is None else followed.report)

    def withdraw(self, image_id: str, tag: str, *, user: str, hide: Hide) -> tuple[str, ...]:
        """Withdraw all labels of an image that were shown under a tag; they stay in the history, which records who did
        it.

        All of them are withdrawn, because each earlier label was replaced for a reason.

        Args:
            image_id: Image to which they belong.
            tag: Tag of the datastore.
            user: Who withdraws them.
            hide: Called after the withdrawal is stored, to stop showing a label under the tag.

        Returns:
            Ids of the corrections that do not count anymore; empty if only a prediction was shown.

        Raises:
            StorageError: It could not be stored, or the label could not be removed. Call it again to do the rest.
        """
        with self._locks.of(image_id):
            withdrawn = tuple(c.id for c in self._displayed.under(image_id, tag))
            for correction_id in withdrawn:
                self._corrections.withdrawals.add(image_id, correction_id, user)
            hide(image_id, tag)
        return withdrawn

    def undo(self, image_id: str, correction_id: str, *, user: str, hide: Hide) -> str:
        """Withdraw only the newest label of an image; the finished label before it is shown again.

        Args:
            image_id: Image that it belongs to.
            correction_id: The newest correction that counts and was shown under ``FINAL_TAG``.
            user: Who withdraws it.
            hide: See ``withdraw``.

        Returns:
            Id of the correction that is shown again; empty if there is none.

        Raises:
            LabelError: It is not the newest label anymore.
            StorageError: It could not be stored, or the labels could not be changed.
        """
        with self._locks.of(image_id):
            *earlier, newest = self._displayed.under(image_id, FINAL_TAG) or (None,)
            if newest is None or newest.id != correction_id:
                raise LabelError("Somebody has changed the label since. Open the scan again.")
            self._corrections.withdrawals.add(image_id, correction_id, user)
            before = earlier[-1] if earlier else None
            if before is None or self._studies.image_file(image_id) is None:
                hide(image_id, FINAL_TAG)
                return ""
            self._publish(before, {})
            return before.id

    def _later(self, image_id: str, tag: str, correction_id: str) -> frozenset[str]:
        """Return the ids of later corrections of an image that are or were shown under a tag."""
        known = (c for c in self._corrections.of_image(image_id) if c.id > correction_id)
        return frozenset(c.id for c in known if c.step is not None and display_tag(c.tag, c.step) == tag)

    def _publish(self, correction: Correction, more: Mapping[str, Any]) -> None:
        tag = display_tag(correction.tag, correction.step or 2)
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = self._displayed.draw(correction, Path(folder))
                self._studies.publish(correction.image, str(file), tag, info_of(correction, more))
        except StorageError as error:
            raise type(error)(answers.not_shown(str(error), correction.id, correction.image)) from error
        except Exception as error:
            logger.exception("Correction %s is not shown", correction.id)
            raise SubmissionError(answers.not_shown(answers.NOT_SHOWABLE, correction.id, correction.image)) from error


def _parked(correction: Correction) -> LabelError:
    return LabelError(answers.parked(correction.reason, correction.id, correction.image))


def _failure(error: Exception, receipt: Receipt) -> TotalSpineSegError:
    """Return the error for a client whose submission could not be read and waits."""
    if isinstance(error, StorageError):
        return type(error)(answers.not_read(str(error), receipt.id))
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return StorageError(answers.not_read(answers.DISK_IS_FULL, receipt.id))
    if isinstance(error, MemoryShortageError | MemoryError):
        return MemoryShortageError(answers.not_read(answers.NO_MEMORY, receipt.id))
    return SubmissionError(answers.not_read(answers.NOT_READABLE, receipt.id))


def _replaced(received: Received) -> tuple[Mapping[str, Any], ...]:
    """Return a finding if the image was replaced after the prediction was made."""
    predicted = received.prediction
    if predicted is None or predicted.image_sha256 in ("", received.image_sha256):
        return ()
    return (Finding("image_replaced", BACKGROUND, answers.IMAGE_REPLACED).as_dict(np.eye(4)),)


def _read(file: Path, grid: Grid, label_info: object, sources: Path | None) -> Submission:
    if file.name.lower().endswith(SEG_SUFFIX):
        return read_seg(file, grid, sources=sources)
    return read_submission(file, label_info).on(grid)
