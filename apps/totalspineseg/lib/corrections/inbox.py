"""What happens to a submission: it is kept, read, mapped by name, checked, filed, and put where clients find it."""

import errno
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout

from lib.anatomy import BACKGROUND, WIRE_LABELS
from lib.corrections import history
from lib.corrections.attribution import Attribution
from lib.corrections.datastore import is_safe_tag
from lib.corrections.doubts import beside_prediction, is_unchanged
from lib.corrections.drawn_maps import DrawnMaps
from lib.corrections.imprints import DRAWN_ON
from lib.corrections.meanwhile import finished_meanwhile
from lib.corrections.names import Mapped, map_names
from lib.corrections.predictions import PredictionStore
from lib.corrections.receipts import NOT_TRIED, SEG_SUFFIX, Receipt, Receipts, Sender, Waiting
from lib.corrections.renames import follow_rename
from lib.corrections.store import Correction, CorrectionStore, Received
from lib.corrections.submission import read_submission, submitted_grid
from lib.corrections.unreviewed import PARAMETER as UNREVIEWED_NAMES
from lib.corrections.unreviewed import with_unreviewed, without_regions
from lib.corrections.untouched import PARAMETER as ACCEPTED_NAMES
from lib.corrections.untouched import with_untouched
from lib.corrections.uploads import Claims, resolve_image
from lib.corrections.wire import STEP1_WIRE_LABELS, to_wire
from lib.dicom.seg_reader import read_seg
from lib.errors import (
    GridError,
    ImageError,
    LabelError,
    MemoryShortageError,
    StorageError,
    SubmissionError,
    TotalSpineSegError,
    UnknownImageError,
)
from lib.geometry import Grid, LabelArray, same_voxels
from lib.numbering.findings import Finding
from lib.segments import Submission
from lib.turns import Turns
from lib.volume_io import read_image, write_volume

logger = logging.getLogger(__name__)

FINAL_TAG: Final = "final"
"""Datastore tag of what a reader finished: its names are certain. Clients that name no tag mean it."""
STEP1_TAG: Final = "step1"
"""Datastore tag of corrected step-1 maps: input of step 2, never a finished label."""
READER_TAGS: Final = (STEP1_TAG, FINAL_TAG)
"""Datastore tags that only a reader's submission may fill; any other is a prediction's, or work in progress."""
UNCHANGED_PARAMETER: Final = "unchanged"
"""Of a submission: true where its author looked at the prediction and finished it as it was."""
RENUMBERED: Final = "renumbered"
"""What is known about a label that is shown: whether it has other names than it came with."""
FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)

Lint = Callable[[LabelArray, Grid], tuple[Mapping[str, Any], ...]]
"""Says what is odd about a label map in codes, with ``UNREVIEWED`` where nobody has looked."""
Hide = Callable[[str, str], None]
"""``hide(image_id, tag)``: show none under it any more."""


@dataclass(frozen=True)
class Studies:
    """The images that submissions belong to.

    Attributes:
        image_file: ``image_file(image_id)`` is the file or folder of an image, or None.
        publish: ``publish(image_id, file, tag, info)`` shows a label map in wire ids under a tag of the datastore.
        sources: ``sources(image_id)`` are the DICOM files of an image, or None; a DICOM segmentation may place its
            frames by reference to them.
        offered: ``offered(image_id, sender)`` is how the sender was offered an image, see ``Correction``, or None.
    """

    image_file: Callable[[str], Path | None]
    publish: Callable[[str, Path, str, dict[str, Any]], None]
    sources: Callable[[str], Path | None] = lambda image_id: None
    offered: Callable[[str, Sender], Mapping[str, Any] | None] = lambda image_id, sender: None


@dataclass(frozen=True)
class _Label:
    """A submission that was understood."""

    mapped: Mapped
    grid: Grid
    findings: tuple[Mapping[str, Any], ...]
    renumbered: Mapping[str, Any] | None


class Inbox:
    """Takes submissions for one studies folder: keeps what comes first, and reads it afterwards.

    Args:
        receipts: Submissions that are not read yet.
        corrections: Those that are.
        predictions: What they may correct.
        lint: Says what is odd about a label.
        maps: What the networks drew lately.
        studies: The images.
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
        self._attribution = Attribution(predictions, maps)
        self._lint = lint
        self._studies = studies
        self._turns = Turns()
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
        """Keep a submission, read it, and publish it when it is understood.

        The same submission sent again after the server failed to read it is read again, not kept twice.

        Args:
            image_id: Image it was sent for.
            file: The submitted file; one that ends in .dcm is a DICOM segmentation. Not modified.
            tag: Tag it was sent for; a step-1 map goes to STEP1_TAG instead, unfinished to
                one that ends so.
            sender: Who sent it.
            params: What came with it: ``label_info``; ``prediction`` when the client knows it; ``unreviewed``, names
                of structures nobody checked; ``accepted``, names of those found right as predicted, or "all".
            claims: Other images it may belong to.
            info: What else is known about the label, to be shown with it.
            fault: Why it cannot be understood, where that is known already; empty where it is not.

        Returns:
            The record, already kept.

        Raises:
            LabelError: The label is not understood, or its image is no volume; the message says why and where the file
                was kept.
            UnknownImageError: There is no such image; the file is kept for a while.
            StorageError: It could not be kept, or it is kept and could not be read or shown; the message says which.
            MemoryShortageError: It is kept, and there was not enough memory to read it.
            SubmissionError: It is kept, and could not be read for another fault of the server.
        """
        sent: dict[str, Any] = {"tag": tag, "sender": sender, "params": params, "fault": fault}
        claims = claims or Claims()
        sha256 = history.sha256_of(file)
        with self._guard:
            receipt = self._waiting_same(image_id, sha256, sent)
            images = filter(None, {image_id, *claims.renamed})
            earlier = {*self._in_work, *(known for image in images for known in self._corrections.ids(image))}
            receipt_id = self._receipts.new_id(earlier) if receipt is None else receipt.id
            self._in_work.add(receipt_id)
        try:
            if receipt is None:
                receipt = self._receipts.keep(
                    receipt_id, image_id, file, raw_sha256=sha256, **sent, info=info or {}, claims=claims
                )
            with self._reading(receipt):
                if not self._receipts.folder(receipt).is_dir():
                    return self._read_elsewhere(receipt)
                return self._interpret(receipt)
        finally:
            self._done(receipt_id)

    def interpret_waiting(self, *, again: bool) -> tuple[Waiting, ...]:
        """Read what could not be read when it came.

        Args:
            again: Whether to try again what failed before. What ended the server once may do so again.

        Returns:
            What still waits.
        """
        for waiting in self._receipts.waiting():
            receipt = waiting.receipt
            if not (again or waiting.reason == NOT_TRIED) or not self._begin(receipt.id):
                continue
            try:
                with self._reading(receipt, wait=False):
                    if not self._receipts.folder(receipt).is_dir():
                        # It was sent again meanwhile.
                        continue
                    self._receipts.fail(receipt, "The server ended while it read the label.")
                    correction = self._interpret(receipt)
                logger.info("submission %s that waited is now a correction of %r", receipt.id, correction.image)
            except Timeout:
                logger.info("another server reads submission %s", receipt.id)
            except TotalSpineSegError as error:
                logger.warning("submission %s that waited: %s", receipt.id, error)
            finally:
                self._done(receipt.id)
        return self._receipts.waiting()

    def _waiting_same(self, image_id: str, sha256: str, sent: Mapping[str, Any]) -> Receipt | None:
        """Return the very same submission that waits, and that nobody reads now."""
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
    def _reading(self, receipt: Receipt, *, wait: bool = True) -> Iterator[None]:
        """Hold a submission while it is read and shown: another server may serve the same folder.

        Args:
            receipt: The submission.
            wait: Whether to wait until another server has read it.

        Raises:
            Timeout: Another server reads it, and nobody is to wait.
            StorageError: The disk is full.
            SubmissionError: It cannot be held.
        """
        file = self._receipts.lock_file(receipt)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise
        except OSError as error:
            raise _failure(error, receipt) from error
        try:
            yield
        finally:
            if not self._receipts.folder(receipt).is_dir():
                # It is read, and whoever waits for the lock finds that out.
                with suppress(OSError):
                    file.unlink()
            lock.release()

    def _read_elsewhere(self, receipt: Receipt) -> Correction:
        """Return what another server made of a submission.

        Raises:
            LabelError: It was not understood, or belongs to no image.
        """
        images = filter(None, {receipt.image, *receipt.claims.renamed})
        found = (c for image in images for c in self._corrections.of_image(image) if c.id == receipt.id)
        correction = next(found, None)
        if correction is None:
            raise LabelError(f"The label is not used. The file is kept for a while (submission {receipt.id}).")
        if correction.status == "parked":
            raise _parked(correction)
        return correction

    def _interpret(self, receipt: Receipt) -> Correction:
        """Read a submission that is kept, file it, and show it; see ``submit``."""
        with self._waits_on_failure(receipt):
            received, judged = self._judged(receipt)
        # Of two at once the one that counts as the newer is the one that is shown.
        with self._turns.at(received.image_id):
            if isinstance(judged, TotalSpineSegError):
                with self._waits_on_failure(receipt):
                    parked = self._corrections.park(received, judged)
                raise _parked(parked) from judged
            shown_as = _shown_as(receipt.tag, judged.mapped.step)
            with self._waits_on_failure(receipt):
                findings = (*judged.findings, *finished_meanwhile(self._shown(received.image_id, shown_as), received))
                later = self._later(received.image_id, shown_as, receipt.id)
                correction = self._corrections.accept(received, judged.mapped, judged.grid, findings, judged.renumbered)
            if not later:
                self._publish(correction, judged.mapped.codes, judged.grid, receipt.info)
            elif withdrawn := self._corrections.withdrawals.of_image(received.image_id) & later:
                # It had waited, and whoever took back what followed it wanted none of it shown.
                logger.info("correction %s is taken back as %s was", correction.id, max(withdrawn))
                self._corrections.withdrawals.add(received.image_id, correction.id, correction.user)
        return correction

    @contextmanager
    def _waits_on_failure(self, receipt: Receipt) -> Iterator[None]:
        """Let a submission wait where something fails in this block, with the reason, and say that it is kept."""
        try:
            yield
        except UnknownImageError as error:
            self._receipts.set_aside(receipt, str(error))
            note = f"The file is kept for a while (submission {receipt.id})."
            raise UnknownImageError(receipt.image, note) from error
        except ImageError as error:
            # It is no volume, and none whenever it is asked for.
            self._receipts.set_aside(receipt, str(error))
            reason = str(error).rstrip(".")
            raise LabelError(f"{reason}. The file is kept for a while (submission {receipt.id}).") from error
        except Exception as error:
            logger.exception("submission %s for image %r could not be read", receipt.id, receipt.image)
            self._receipts.fail(receipt, f"{type(error).__name__}: {error}")
            raise _failure(error, receipt) from error

    def _judged(self, receipt: Receipt) -> tuple[Received, _Label | TotalSpineSegError]:
        """Return a submission with its label, or with the reason why it is not understood."""
        folder, fault = self._receipts.folder(receipt), receipt.fault
        if not fault and not is_safe_tag(receipt.tag):
            fault = f"The tag {receipt.tag!r} has other characters than letters, digits, '-' and '_'. Use 'final'."
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
            logger.info("a label sent for %r is one of %r, which was refused that name", receipt.image, image_id)
        image = self._studies.image_file(image_id)
        if image is None:
            raise UnknownImageError(image_id)
        received = Received(receipt, folder, image_id, history.sha256_of(image))
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
        """Whether a submitted file lies on the grid of an image; not where either cannot be read or is missing."""
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
        if followed is not None:
            submission = followed.submission
            unreviewed, accepted = followed.now(unreviewed), followed.now(accepted)
        mapped = with_unreviewed(map_names(submission, grid), unreviewed)
        mapped = with_untouched(mapped, None if corrected is None else corrected.compared, accepted)
        if params.get(UNCHANGED_PARAMETER) is True:
            compared = None if corrected is None else corrected.compared
            mapped = replace(mapped, unchanged=compared is not None and is_unchanged(compared, mapped))
        lint = self._lint(mapped.codes, grid)
        findings = (*beside_prediction(corrected, mapped, lint), *lint, *_replaced(received))
        return received, _Label(mapped, grid, findings, None if followed is None else followed.report)

    def withdraw(self, image_id: str, tag: str, *, user: str, hide: Hide) -> tuple[str, ...]:
        """Take back all labels of an image that were shown under a tag; the history keeps them and says who did it.

        Not the newest alone: the one before it was replaced for a reason.

        Args:
            image_id: Image they belong to.
            tag: Tag of the datastore.
            user: Who takes them back.
            hide: Called once the withdrawal is kept: no label is to be shown under the tag any more.

        Returns:
            Ids of the corrections that count no more; none where only a prediction was shown.

        Raises:
            StorageError: It could not be kept, or the label could not be removed; asked again, the rest is done.
        """
        with self._turns.at(image_id):
            taken = tuple(c.id for c in self._shown(image_id, tag))
            for correction_id in taken:
                self._corrections.withdrawals.add(image_id, correction_id, user)
            hide(image_id, tag)
        return taken

    def undo(self, image_id: str, correction_id: str, *, user: str, hide: Hide) -> str:
        """Take back the newest label of an image alone; the finished one before it is shown again.

        Args:
            image_id: Image it belongs to.
            correction_id: The newest correction that counts and was shown under ``FINAL_TAG``.
            user: Who takes it back.
            hide: See ``withdraw``.

        Returns:
            Id of the correction that is shown again; empty where there is none.

        Raises:
            LabelError: It is not the newest one any more.
            StorageError: It could not be kept, or the labels could not be changed.
        """
        with self._turns.at(image_id):
            *earlier, newest = self._shown(image_id, FINAL_TAG) or (None,)
            if newest is None or newest.id != correction_id:
                raise LabelError("Somebody has changed the label meanwhile. Open the scan again.")
            self._corrections.withdrawals.add(image_id, correction_id, user)
            before = earlier[-1] if earlier else None
            image = self._studies.image_file(image_id)
            if before is None or image is None:
                hide(image_id, FINAL_TAG)
                return ""
            self._publish(before, self._corrections.codes(before), read_image(image).grid, {})
            return before.id

    def _shown(self, image_id: str, tag: str) -> tuple[Correction, ...]:
        """The corrections of an image that count and were shown under a tag of the datastore, oldest first."""
        standing = self._corrections.standing(image_id)
        return tuple(c for c in standing if c.step is not None and _shown_as(c.tag, c.step) == tag)

    def _later(self, image_id: str, tag: str, correction_id: str) -> frozenset[str]:
        """Return the ids of corrections that came after another one and were shown under its tag, or are."""
        known = (c for c in self._corrections.of_image(image_id) if c.id > correction_id)
        return frozenset(c.id for c in known if c.step is not None and _shown_as(c.tag, c.step) == tag)

    def _publish(self, correction: Correction, codes: LabelArray, grid: Grid, more: Mapping[str, Any]) -> None:
        step = correction.step or 2
        labels = STEP1_WIRE_LABELS if step == 1 else WIRE_LABELS
        info = {
            "correction": correction.id,
            "user": correction.user,
            "client_id": correction.client,
            "label_info": [{"name": name, "idx": value} for name, value in labels.items()],
            "prediction": correction.prediction,
            DRAWN_ON: correction.image_sha256,
            RENUMBERED: correction.renumbered is not None,
            **more,
        }
        kept = f"(the label is kept, but not shown: correction {correction.id} of image {correction.image!r})"
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "label.nii.gz"
                write_volume(file, to_wire(without_regions(codes)), grid)
                self._studies.publish(correction.image, file, _shown_as(correction.tag, step), info)
        except StorageError as error:
            raise type(error)(f"{error} {kept}") from error
        except Exception as error:
            logger.exception("correction %s is not shown", correction.id)
            raise SubmissionError(f"The server failed to show the label; its log says why {kept}.") from error


def _parked(correction: Correction) -> LabelError:
    kept = f"(the file is kept but not used: correction {correction.id} of image {correction.image!r})"
    return LabelError(f"{correction.reason} {kept}")


def _failure(error: Exception, receipt: Receipt) -> TotalSpineSegError:
    """Return what a client hears when a submission could not be read; it waits."""
    kept = f"The label is kept (submission {receipt.id}), but not read yet: submit it again later."
    if isinstance(error, StorageError):
        return type(error)(f"{error} {kept}")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return StorageError(f"The server's disk is full. {kept}")
    if isinstance(error, MemoryShortageError | MemoryError):
        return MemoryShortageError(f"The server had not enough memory to read the label. {kept}")
    return SubmissionError(f"The server failed to read the label; its log says why. {kept}")


def _shown_as(tag: str, step: int) -> str:
    """The datastore's tag of a label; a step-1 map that is work in progress does not stand for a finished one."""
    if step == 2:
        return tag
    return STEP1_TAG if tag in READER_TAGS else f"{tag}-{STEP1_TAG}"


def _replaced(received: Received) -> tuple[Mapping[str, Any], ...]:
    """A finding where the label may belong to what the image was before."""
    predicted = received.prediction
    if predicted is None or predicted.image_sha256 in ("", received.image_sha256):
        return ()
    message = "The image was replaced after this prediction was made. Check that your label fits the new image."
    return (Finding("image_replaced", BACKGROUND, message).as_dict(np.eye(4)),)


def _read(file: Path, grid: Grid, label_info: object, sources: Path | None) -> Submission:
    if file.name.lower().endswith(SEG_SUFFIX):
        return read_seg(file, grid, sources=sources)
    return read_submission(file, label_info).on(grid)
