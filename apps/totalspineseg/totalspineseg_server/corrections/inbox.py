"""Take a submission: store it as it was sent, interpret it, file its record, and show it to clients."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.comparison import check, finished_meanwhile
from totalspineseg_server.corrections.correction_store import FINAL_TAG, Correction, CorrectionStore
from totalspineseg_server.corrections.interpretation import Interpreter, Lint, Studies
from totalspineseg_server.corrections.predictions import MapStore, PredictionStore
from totalspineseg_server.corrections.receipts import Receipt, Receipts, Uploads, Waiting, unread
from totalspineseg_server.errors import (
    ImageError,
    LabelError,
    StorageError,
    SubmissionError,
    TotalSpineSegError,
    UnknownImageError,
)
from totalspineseg_server.geometry import Volume
from totalspineseg_server.locks import NamedLocks

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""Time between two checks whether submissions are finished when the server ends, seconds."""

Submit = Callable[[Receipt, Path], Correction]
"""A function that accepts a submission and its file, see ``Inbox.submit``."""


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
        maps: Recent output of the networks.
        studies: The images, and the labels that clients see.
        lint: Checks a label.
        uploads: The volumes that clients uploaded or were offered; None if nobody uploads any.

    Attributes:
        ongoing: The submissions in progress.
        uploads: See above.
    """

    def __init__(
        self,
        receipts: Receipts,
        corrections: CorrectionStore,
        predictions: PredictionStore,
        maps: MapStore,
        studies: Studies,
        lint: Lint = check,
        uploads: Uploads | None = None,
    ) -> None:
        self.uploads = uploads or Uploads()
        self._receipts = receipts
        self._corrections = corrections
        self._interpreter = Interpreter(predictions, maps, studies, lint)
        self._studies = studies
        self.ongoing = Ongoing()
        self._locks = NamedLocks()
        self._guard = threading.Lock()
        self._in_work: set[str] = set()

    def submit(self, sent: Receipt, file: Path) -> Correction:
        """Store a submission, read it, and show it to clients if it can be used.

        If the same submission is sent again after the server failed to read it, it is read again, not stored twice.

        Args:
            sent: The submission, from ``receipt_of``.
            file: The submitted file. Not modified.

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
        with self.ongoing.one():
            claims = self.uploads.claims(self.uploads.name_of(sent.sender), sent.image)
            return self._submit(replace(sent, renamed=claims.renamed, uploaded=claims.uploaded), file)

    def interpret_waiting(self, *, again: bool) -> tuple[Waiting, ...]:
        """Read the submissions that could not be read when they were sent.

        Args:
            again: Whether to try again those that failed before; a submission that ended the server may end it again.

        Returns:
            The submissions that still wait.
        """
        with self.ongoing.one():
            self._receipts.remove_old_locks()
            for waiting in self._receipts.waiting():
                if again or waiting.reason == answers.NOT_TRIED:
                    self._interpret_again(waiting.receipt)
        return self._receipts.waiting()

    def _interpret_again(self, receipt: Receipt) -> None:
        """Read a waiting submission, unless somebody is reading it now."""
        if not self._begin(receipt.id):
            return
        try:
            with self._receipts.reading(receipt, wait=False) as is_free:
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

    def _submit(self, sent: Receipt, file: Path) -> Correction:
        """Store a submission and read it; one that waits already gets no second id."""
        with self._guard:
            waiting = self._waiting_same(sent)
            images = filter(None, {sent.image, *sent.renamed})
            earlier = {*self._in_work, *(known for image in images for known in self._corrections.ids(image))}
            receipt = waiting or replace(sent, id=self._receipts.new_id(earlier))
            self._in_work.add(receipt.id)
        try:
            if waiting is None:
                self._receipts.keep(receipt, file)
            with self._receipts.reading(receipt):
                if not self._receipts.folder(receipt).is_dir():
                    return self._read_elsewhere(receipt)
                return self._interpret(receipt)
        finally:
            self._done(receipt.id)

    def _waiting_same(self, sent: Receipt) -> Receipt | None:
        """Return an identical submission if one waits and is not being read now."""
        for receipt in (waiting.receipt for waiting in self._receipts.waiting()):
            if receipt.id not in self._in_work and _content(receipt) == _content(sent):
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
        folder = self._receipts.folder(receipt)
        with self._waits_on_failure(receipt):
            correction, codes = self._interpreter.interpret(receipt, folder / receipt.raw)
        image_id, tag = correction.image, correction.displayed_tag
        # If two are read at once, the one that is shown must be the one that counts as newer.
        with self._locks.of(image_id):
            with self._waits_on_failure(receipt):
                if codes is not None:
                    earlier = self._corrections.under(image_id, tag)
                    findings = (*correction.findings, *finished_meanwhile(earlier, correction))
                    correction = replace(correction, findings=findings)
                later = self._later(image_id, tag, receipt.id)
                correction = self._corrections.file(folder, correction, codes)
            if codes is None:
                raise _parked(correction)
            if not later:
                self._show(correction, codes, receipt.info)
            elif withdrawn := self._corrections.withdrawals.of_image(image_id) & later:
                # It had waited, and somebody withdrew the labels that were sent after it. None of them should be shown.
                logger.info("Correction %s is withdrawn, as the later %s was", correction.id, max(withdrawn))
                self._corrections.withdrawals.add(image_id, correction.id, correction.user)
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
            raise unread(error, receipt) from error

    def withdraw(self, image_id: str, tag: str, *, user: str) -> tuple[str, ...]:
        """Withdraw all labels of an image that were shown under a tag; they stay in the history, which records who did
        it.

        All of them are withdrawn, because each earlier label was replaced for a reason.

        Args:
            image_id: Image to which they belong.
            tag: Tag of the datastore.
            user: Who withdraws them.

        Returns:
            Ids of the corrections that do not count anymore; empty if only a prediction was shown.

        Raises:
            StorageError: It could not be stored, or the label could not be removed. Call it again to do the rest.
        """
        with self._locks.of(image_id):
            withdrawn = tuple(c.id for c in self._corrections.under(image_id, tag))
            for correction_id in withdrawn:
                self._corrections.withdrawals.add(image_id, correction_id, user)
            self._studies.remove_label(image_id, tag)
        return withdrawn

    def undo(self, image_id: str, correction_id: str, *, user: str) -> str:
        """Withdraw only the newest label of an image; the finished label before it is shown again.

        Args:
            image_id: Image that it belongs to.
            correction_id: The newest correction that counts and was shown under ``FINAL_TAG``.
            user: Who withdraws it.

        Returns:
            Id of the correction that is shown again; empty if there is none.

        Raises:
            LabelError: It is not the newest label anymore.
            StorageError: It could not be stored, or the labels could not be changed.
        """
        with self._locks.of(image_id):
            *earlier, newest = self._corrections.under(image_id, FINAL_TAG) or (None,)
            if newest is None or newest.id != correction_id:
                raise LabelError(answers.CHANGED_SINCE)
            self._corrections.withdrawals.add(image_id, correction_id, user)
            before = earlier[-1] if earlier else None
            if before is None or self._studies.image_file(image_id) is None:
                self._studies.remove_label(image_id, FINAL_TAG)
                return ""
            self._show(before, None, {})
            return before.id

    def _later(self, image_id: str, tag: str, correction_id: str) -> frozenset[str]:
        """Return the ids of later corrections of an image that are or were shown under a tag."""
        known = (c for c in self._corrections.of_image(image_id) if c.id > correction_id)
        return frozenset(c.id for c in known if c.status == "accepted" and c.displayed_tag == tag)

    def _show(self, correction: Correction, codes: Volume | None, more: Mapping[str, Any]) -> None:
        """Show a correction to clients; its codes are read if they are not given."""
        try:
            self._studies.show(correction, codes or self._corrections.volume(correction), more)
        except StorageError as error:
            raise type(error)(answers.stored_only(str(error), correction.id, correction.image)) from error
        except Exception as error:
            logger.exception("Correction %s is not shown", correction.id)
            raise SubmissionError(answers.stored_only(answers.NOT_SHOWABLE, correction.id, correction.image)) from error


def _parked(correction: Correction) -> LabelError:
    return LabelError(answers.parked(correction.reason, correction.id, correction.image))


def _content(receipt: Receipt) -> tuple[object, ...]:
    """Return the fields that do not change if a submission is sent again."""
    return receipt.image, receipt.raw_sha256, receipt.tag, receipt.sender, receipt.params, receipt.fault
